"""What is sparse in a model, and whether anything profits: layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.layers import PackedConv2d, PackedLinear, SparseConv2d, SparseLinear
from gossamer.patterns import NM, Block, Channel, WeightPattern

SPARSE_LAYERS = (SparseLinear, SparseConv2d, PackedLinear, PackedConv2d)
DENSE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NEARLY_DENSE = 0.99  # above, zeros are taken for accidents
PATTERNS: dict[str, WeightPattern] = {  # the most regular first
    "output channels": Channel(0),
    "input channels": Channel(1),
    **{f"block {m}x{n}": Block(m, n) for m, n in ((16, 16), (8, 8), (4, 4), (8, 1), (4, 1))},
    **{f"{n}:{m}": NM(n, m) for n, m in ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (1, 16))},
}


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer's weight.

    Parameters
    ----------
    name : str
        Of the module.
    kind : str
        Its class.
    shape : tuple of int
        Of the dense weight; of a sparse convolution's, flattened to [out, in].
    density : float
        Share of weights kept.
    pattern : str
        The most regular pattern that the kept weights fit: "dense", "empty", channels, a block,
        "n:m", or "unstructured".
    kernel : {"dense", "sparse"}
        What computes the layer.
    dead_outputs, dead_inputs : int
        Rows and columns without a weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    pattern: str
    kernel: Literal["dense", "sparse"]
    dead_outputs: int
    dead_inputs: int

    @property
    def simulated(self) -> bool:
        """Whether there are zeros that a dense kernel multiplies all the same."""
        return self.kernel == "dense" and self.pattern != "dense"


@dataclass(frozen=True)
class Diagnosis:
    """All linear and convolution layers of a model.

    Parameters
    ----------
    layers : tuple of LayerDiagnosis
    """

    layers: tuple[LayerDiagnosis, ...]

    @property
    def density(self) -> float:
        """Share of all their weights kept; 1.0 without any layer."""
        size = sum(torch.Size(layer.shape).numel() for layer in self.layers)
        kept = sum(layer.density * torch.Size(layer.shape).numel() for layer in self.layers)
        return kept / size if size else 1.0

    @property
    def simulated(self) -> bool:
        """Whether the sparsity, where there is any, is in zeros only."""
        return any(layer.simulated for layer in self.layers)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Layers that have no weight left: nothing passes them but a bias."""
        return tuple(layer.name for layer in self.layers if not layer.density)


def diagnose(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Diagnosis:
    """Tell real from simulated sparsity.

    Parameters
    ----------
    model : nn.Module
    masks : mapping of str to bool Tensor, optional
        The kept weights of layers, by module name, as `Attachment.masks` returns them. Without,
        the zeros of a weight count as dropped, which takes accidental ones along.

    Returns
    -------
    Diagnosis

    Raises
    ------
    TypeError
        If the model is not a module.
    ValueError
        If a mask is of no such layer, or of another shape.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.mul_(torch.arange(16) % 4 < 2)
    >>> [(layer.name, layer.pattern, layer.simulated) for layer in diagnose(model).layers]
    [('0', 'input channels', True), ('2', 'dense', False)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be an nn.Module, got {type(model).__name__}")
    masks = dict(masks or {})
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, SPARSE_LAYERS + DENSE_LAYERS):
            continue
        kept = _kept(module)
        if name in masks:
            mask = masks.pop(name)
            if mask.numel() != kept.numel() or mask.dtype != torch.bool:
                raise ValueError(
                    f"expected the mask of {name!r} to be bool {list(kept.shape)}, got "
                    f"{mask.dtype} {list(mask.shape)}"
                )
            kept = mask.reshape(kept.shape)
        layers.append(_diagnose_layer(name, module, kept))
    if masks:
        name = next(iter(masks))
        raise ValueError(f"expected masks of linear or convolution layers, got {name!r}")
    return Diagnosis(tuple(layers))


@torch.no_grad()
def _kept(module: nn.Module) -> Tensor:
    if isinstance(module, SparseLinear | SparseConv2d):
        return module.pattern.to_mask()
    if isinstance(module, PackedLinear | PackedConv2d):
        return module.weight.to_dense() != 0
    return module.weight.detach() != 0  # pyright: ignore[reportCallIssue]


def _diagnose_layer(name: str, module: nn.Module, kept: Tensor) -> LayerDiagnosis:
    matrix = kept.flatten(1)
    return LayerDiagnosis(
        name=name,
        kind=type(module).__name__,
        shape=tuple(kept.shape),
        density=float(kept.double().mean()),
        pattern=_fitting(kept),
        kernel="sparse" if isinstance(module, SPARSE_LAYERS) else "dense",
        dead_outputs=int((~matrix.any(1)).sum()),
        dead_inputs=int((~kept.movedim(1, 0).flatten(1).any(1)).sum()),
    )


def _fitting(kept: Tensor) -> str:
    density = float(kept.double().mean())
    if not density:
        return "empty"
    if density > NEARLY_DENSE:
        return "dense"
    matrices = kept.movedim((0, 1), (-2, -1))  # [..., out, in], as a product reads them
    for word, pattern in PATTERNS.items():
        try:
            pattern.from_mask(kept if isinstance(pattern, Channel) else matrices)
        except ValueError:
            continue
        return word
    return "unstructured"
