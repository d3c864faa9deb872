"""Group pruning: remove the weights of `group` output channels that read one input channel.

Based on "SparseByteNN: A Novel Mobile Inference Acceleration Framework Based on Fine-Grained Group
Sparsity" (arXiv 2310.19509); the score and the budget are those of 1xN pruning (arXiv 2105.14713)::

    score(m, k) = sum over the group's channels i and the kernel of |w[m g + i, k, :, :]|
    each layer loses its int(n * sparsity) units of lowest score

What stays has the pattern ``Block(group, 1)`` in 1x1 convolutions and linear layers, where
`gossamer.kernels.pack` finds it, and whole kernels in other convolutions. Depthwise convolutions,
the first convolution and the classifier stay dense: little is to be gained there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.allocations import erk
from gossamer.compression.kernel_groups import (
    Layer,
    group_mask,
    group_scores,
    kept_units,
    kernel_scores,
    prunable_layers,
)
from gossamer.scores import magnitude, sensitivity

Score = Literal["l1", "l2", "sensitivity"]
Allocation = Literal["uniform", "erk"]
GROUP = 8  # rows of an AVX-512 kernel; 4 on NEON


@dataclass(frozen=True)
class GroupPruner:
    """Prune convolutions and linear layers in groups of output channels, at once or step by step.

    Rearrange the channels first (`channel_rearrange`), then prune; fine-tune with the masks held
    by `apply` after each optimiser step.

    Parameters
    ----------
    sparsity : float or callable
        Share of units removed, in [0, 1); or a schedule of the step, for instance
        ``Cubic(0.0, 0.5, steps=1000)``.
    group : int or mapping of str to int, default=8
        Output channels a group, for all layers or by name (8 for those not named).
    score : {"l1", "l2", "sensitivity"}, default="l1"
        Sum of ``|w|``, of ``w ** 2``, or of ``|w * dL/dw|``, for which `collect` takes gradients.
    allocation : {"uniform", "erk"}, default="uniform"
        One sparsity for all layers, or `gossamer.allocations.erk`.
    dense : tuple of str, optional
        Layers left alone; by default the first convolution and the last linear layer.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 2))
    >>> pruner = GroupPruner(0.5, group=4)
    >>> masks = pruner.decide(model)
    >>> pruner.apply(model, masks)
    >>> list(masks), float((model[1].weight == 0).float().mean())
    (['1'], 0.5)
    """

    sparsity: float | Callable[[int], float]
    group: int | Mapping[str, int] = GROUP
    score: Score = "l1"
    allocation: Allocation = "uniform"
    dense: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not callable(self.sparsity):
            _check_sparsity(self.sparsity)
        sizes = [self.group] if isinstance(self.group, int) else self.group.values()
        if not all(size >= 1 for size in sizes):
            raise ValueError(f"expected groups of at least 1, got {self.group}")
        for name, options in (("score", Score), ("allocation", Allocation)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(
                    f"expected {name} to be one of {', '.join(get_args(options))}, got "
                    f"{getattr(self, name)!r}"
                )

    def collect(
        self, model: nn.Module, batches: Iterable, loss: Callable[[nn.Module, object], Tensor]
    ) -> dict[str, Tensor]:
        """Return the mean gradient of `loss(model, batch)` of each layer's weight.

        Only the score "sensitivity" reads it. Gradients that parameters hold are left alone.

        Raises
        ------
        ValueError
            If there are no batches.
        """
        layers = prunable_layers(model, self.dense)
        weights = [layer.weight for layer in layers.values()]
        sums = [torch.zeros_like(weight) for weight in weights]
        count = 0
        for batch in batches:
            gradients = torch.autograd.grad(loss(model, batch), weights)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
            count += 1
        if not count:
            raise ValueError("expected batches to collect gradients from, got none")
        return {name: total / count for name, total in zip(layers, sums, strict=True)}

    @torch.no_grad()
    def decide(
        self, model: nn.Module, gradients: Mapping[str, Tensor] | None = None, *, step: int = 0
    ) -> dict[str, Tensor]:
        """Return the mask of each layer's weight, bool; the model is not changed.

        Parameters
        ----------
        model : nn.Module
        gradients : mapping of str to Tensor, optional
            From `collect`.
        step : int, default=0
            Where a schedule of the sparsity stands.
        """
        sparsity = self.sparsity(step) if callable(self.sparsity) else self.sparsity
        _check_sparsity(sparsity)
        if self.score == "sensitivity" and gradients is None:
            raise ValueError("score 'sensitivity' needs gradients; try those that collect returns")
        layers = prunable_layers(model, self.dense)
        if self.allocation == "erk":
            shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
            shares = {name: 1 - density for name, density in erk(shapes, 1 - sparsity).items()}
        else:
            shares = dict.fromkeys(layers, sparsity)
        masks = {}
        for name, layer in layers.items():
            group = self.group if isinstance(self.group, int) else self.group.get(name, GROUP)
            scores = self._scores(layer, gradients[name] if gradients else None)
            kept = kept_units(group_scores(scores, group), shares[name])
            masks[name] = group_mask(kept, layer.weight.shape, group)
        return masks

    @torch.no_grad()
    def apply(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Set the weights outside their masks to zero, in place."""
        for name, mask in masks.items():
            weight = model.get_submodule(name).get_parameter("weight")
            weight.masked_fill_(~mask, 0.0)

    def _scores(self, layer: Layer, gradient: Tensor | None) -> Tensor:
        if gradient is not None and self.score == "sensitivity":
            return kernel_scores(sensitivity(layer.weight, gradient))
        scores = magnitude(layer.weight)
        return kernel_scores(scores if self.score == "l1" else scores.square())


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"expected sparsity in [0, 1), got {sparsity}")
