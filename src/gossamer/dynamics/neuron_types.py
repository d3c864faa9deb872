"""Neuron types: every unit of a layer is a ReLU, the identity, or nothing."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NeuronType(IntEnum):
    """What a neuron makes of its pre-activation z."""

    RELU = 0  # max(z, 0): the only one that costs a mixed-integer program a binary variable
    IDENTITY = 1  # z: merges into the next affine map
    ZERO = 2  # 0: leaves the network


@dataclass(frozen=True, eq=False)
class NeuronTypes:
    """The pattern at the granularity of neurons: a type for each, layer by layer.

    Parameters
    ----------
    layers : tuple of Tensor [width] int8
        Codes of `NeuronType`.

    Raises
    ------
    ValueError
        If a layer is not a vector of int8 codes 0, 1 and 2.

    Examples
    --------
    >>> types = NeuronTypes((torch.tensor([0, 1, 2, 2], dtype=torch.int8),))
    >>> types.count(NeuronType.RELU), types.density
    (1, 0.25)
    """

    layers: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for layer in self.layers:
            known = layer.dtype == torch.int8 and bool(((layer >= 0) & (layer <= 2)).all())
            if not known or layer.ndim != 1:
                raise ValueError(
                    f"expected layers of int8 codes 0 (ReLU), 1 (identity) and 2 (zero), got "
                    f"{layer.dtype} {list(layer.shape)}"
                )

    @classmethod
    def of(cls, model: nn.Module) -> "NeuronTypes":
        """Read the types of a model's `SparseActivation` layers, in order."""
        return cls(tuple(layer.types.clone() for layer in sparse_activations(model)))

    def count(self, kind: NeuronType) -> int:
        """Return how many neurons have a type."""
        return sum(int((layer == kind).sum()) for layer in self.layers)

    @property
    def density(self) -> float:
        """Share of neurons that are ReLUs; NaN without neurons."""
        size = sum(layer.numel() for layer in self.layers)
        return self.count(NeuronType.RELU) / size if size else float("nan")


class SparseActivation(nn.Module):
    """An activation each of whose neurons learns whether it needs its ReLU.

    ``h = max(z, 0)``, ``z`` or ``0`` by `types`, at first all ReLU. While `temperature` is set and
    the module trains, the types of those that are still ReLUs are drawn anew at every call, by
    Gumbel-softmax with straight-through gradients to `logits`. In eval mode nothing is drawn.

    Based on "Model-Based Control with Sparse Neural Dynamics" (arXiv 2312.12791).

    Parameters
    ----------
    width : int
        Neurons, the size of the last dimension.

    Attributes
    ----------
    logits : Parameter [width, 3]
        Of ReLU, identity and zero; log(1/3) at first.
    types : Tensor [width] int8
        Codes of `NeuronType`.
    temperature : float or None
        Of the draws.

    Examples
    --------
    >>> layer = SparseActivation(3)
    >>> layer.types.copy_(torch.tensor([NeuronType.RELU, NeuronType.IDENTITY, NeuronType.ZERO]))
    tensor([0, 1, 2], dtype=torch.int8)
    >>> layer(torch.tensor([-1.0, -1.0, -1.0])).tolist()
    [0.0, -1.0, 0.0]
    """

    types: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        self.logits = nn.Parameter(torch.empty(width, len(NeuronType)))
        self.register_buffer("types", torch.full((width,), NeuronType.RELU, dtype=torch.int8))
        self.temperature: float | None = None
        self.reset_logits()

    def forward(self, z: Tensor) -> Tensor:
        """Return the activations of pre-activations z [..., width]."""
        if z.shape[-1] != len(self.types):
            raise ValueError(f"expected [..., {len(self.types)}], got {list(z.shape)}")
        if self.training and self.temperature is not None:
            chosen = self.sample(self.temperature)
            return chosen[:, 0] * z.relu() + chosen[:, 1] * z
        kept = torch.where(self.types == NeuronType.IDENTITY, z, z.relu())
        return torch.where(self.types == NeuronType.ZERO, 0.0, kept)

    def sample(self, tau: float = 0.5) -> Tensor:
        """Draw one-hot types [width, 3] of the neurons that are still ReLUs; others keep theirs.

        Parameters
        ----------
        tau : float
            Temperature of the gradients' softmax (0.5 in the follow-up's configurations).
        """
        if not tau > 0:
            raise ValueError(f"tau: expected a temperature above 0, got {tau}")
        drawn = F.gumbel_softmax(self.logits, tau, hard=True)
        settled = F.one_hot(self.types.long(), len(NeuronType)).to(drawn.dtype)
        return torch.where((self.types == NeuronType.RELU)[:, None], drawn, settled)

    @property
    def scores(self) -> Tensor:
        """Tensor [width]: the probability of ReLU where that is still open, else -inf."""
        kept = self.logits.detach().softmax(-1)[:, NeuronType.RELU]
        return torch.where(self.types == NeuronType.RELU, kept, -torch.inf)

    @torch.no_grad()
    def freeze(self, keep: Tensor) -> None:
        """Give the ReLUs outside `keep` [width] bool their likelier other type, for good."""
        others = self.logits[:, 1:].argmax(-1).to(torch.int8) + 1
        leaves = (self.types == NeuronType.RELU) & ~keep
        self.types.copy_(torch.where(leaves, others, self.types))
        self.temperature = None

    @torch.no_grad()
    def reset_logits(self) -> None:
        """Make the three types equally likely again, which does not change types that are set."""
        self.logits.fill_(1 / len(NeuronType)).log_()

    def extra_repr(self) -> str:
        counts = ", ".join(f"{kind.name}={int((self.types == kind).sum())}" for kind in NeuronType)
        return f"{len(self.types)}, {counts}"


def sparse_mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return linear layers with a `SparseActivation` after all but the last.

    Examples
    --------
    >>> [type(layer).__name__ for layer in sparse_mlp(4, (8,), 2)]
    ['Linear', 'SparseActivation', 'Linear']
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), SparseActivation(width)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def sparse_activations(model: nn.Module) -> list[SparseActivation]:
    """Return a model's `SparseActivation` layers, in order."""
    return [layer for layer in model.modules() if isinstance(layer, SparseActivation)]
