"""The training family: what a method decides, and what every method shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer import allocations, scores
from gossamer.budgets import Density, TopK

Allocation = Literal["uniform", "erdos_renyi", "erk"]


@dataclass(frozen=True)
class Update:
    """What a method wants done at one optimizer step.

    Parameters
    ----------
    drop : float, default 0.0
        Share of each layer's active weights exchanged for others, rounded down.
    density : float or None
        Density of all sparse layers together from now on; None leaves each layer's as it is.
    gradient : bool, default False
        Whether `score` or `grow` reads the gradient of every weight, dropped ones included.
    replaces_step : bool, default False
        Whether the optimizer takes no step of its own this time; else the update follows it.
    """

    drop: float = 0.0
    density: float | None = None
    gradient: bool = False
    replaces_step: bool = False


@dataclass(eq=False)
class WeightState:
    """What a method may know of one layer's weight.

    Attributes
    ----------
    name : str
        Of the module in the model.
    weight : Tensor [out, in, ...]
        Zero where it is dropped.
    mask : bool Tensor [out, in, ...]
        Active weights; none at the start.
    generator : torch.Generator
        The run's source of randomness, on the CPU, the same on all ranks.
    gradient : Tensor [out, in, ...] or None
        Of every weight, summed over the step's batches; None unless the update asked for it.
    """

    name: str
    weight: Tensor
    mask: Tensor
    generator: torch.Generator = field(repr=False)
    gradient: Tensor | None = None

    def random(self) -> Tensor:
        """Draw a score for every weight, uniform in [0, 1), the same on every device."""
        return torch.rand(self.weight.shape, generator=self.generator).to(self.weight.device)


class TrainingMethod:
    """Root of every training method: a frozen set of hyper-parameters.

    See `MaskedTraining` for weights that are dropped and grown, and `ProjectedTraining` for dense
    weights that are made sparse at each forward pass. A method that is neither trains densely.
    """

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the method cannot take a weight of this shape."""


@dataclass(frozen=True)
class MaskedTraining(TrainingMethod):
    """Base of methods whose dropped weights are zero: override `score`, `grow` and `schedule`.

    At the start each layer grows its share of weights from none; they keep the values that they
    were initialised with. At every update the active weights of the lowest score are dropped and
    as many grown, at zero and with an optimizer state of zero.

    Parameters
    ----------
    density : float
        Share of the weights of all sparse layers kept, in (0, 1].
    allocation : {"erk", "erdos_renyi", "uniform"}, default "erk"
        How it is spread over the layers; see `gossamer.allocations`.
    """

    density: float
    allocation: Allocation = "erk"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"expected density in (0, 1], got {self.density}")
        if self.allocation not in get_args(Allocation):
            raise ValueError(
                f"expected allocation to be one of {', '.join(get_args(Allocation))}, got "
                f"{self.allocation!r}"
            )

    @property
    def initial_density(self) -> float:
        """Density at the start."""
        return self.density

    def schedule(self, step: int) -> Update | None:
        """Return what happens at optimizer step `step`, counted from 0; by default nothing."""
        return None

    def score(self, state: WeightState) -> Tensor:
        """Score every weight; the lowest active ones are dropped. By default magnitude."""
        return scores.magnitude(state.weight)

    def grow(self, state: WeightState) -> Tensor:
        """Score every weight; the highest inactive ones grow. By default at random."""
        return state.random()

    def start(self, state: WeightState, count: int) -> Tensor:
        """Return the first mask, of `count` weights."""
        return _top(self.grow(state), count)

    def counts(self, shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, int]:
        """Return how many weights of each layer are active when all together have `density`."""
        densities = getattr(allocations, self.allocation)(shapes, density)
        return {
            name: Density(densities[name]).count(torch.Size(shape).numel())
            for name, shape in shapes.items()
        }

    def exchange(self, state: WeightState, count: int, drop: float) -> tuple[Tensor, Tensor]:
        """Drop and grow one layer's weights until `count` are active.

        Parameters
        ----------
        state : WeightState
        count : int
            Active weights afterwards.
        drop : float
            Share of the active weights to drop, rounded down; dropped ones may grow again.

        Returns
        -------
        (bool Tensor, bool Tensor)
            The weights that stay, and those that grow. They have none in common.
        """
        active = int(state.mask.count_nonzero())
        stays = min(active - int(drop * active), count)
        kept = _top(self.score(state).masked_fill(~state.mask, -torch.inf), stays)
        if stays == count:
            return kept, torch.zeros_like(kept)
        return kept, _top(self.grow(state).masked_fill(kept, -torch.inf), count - stays)


class ProjectedTraining(TrainingMethod, ABC):
    """Base of methods that train a dense weight and compute with its kept entries only.

    The gradient of the sparse weight goes to all entries of the dense one (straight-through), so
    dropped weights can come back; `regularize` may add to it.
    """

    @abstractmethod
    def mask(self, weight: Tensor) -> Tensor:
        """Return the bool mask of what is kept, decided anew from the weight [out, in, ...]."""

    def regularize(self, weight: Tensor, mask: Tensor, lr: float) -> None:
        """Change ``weight.grad`` or the weight in place, right before the optimizer's step."""


def _top(scores: Tensor, k: int) -> Tensor:
    return TopK(k, dim=None).select(scores) if k else torch.zeros_like(scores, dtype=torch.bool)
