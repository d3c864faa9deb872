"""Static sparse training: one mask, drawn before the first step."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from gossamer import scores
from gossamer.budgets import ELEMENTS, Density
from gossamer.patterns import NM, WeightPattern
from gossamer.training.base import MaskedTraining, WeightState
from gossamer.training.nm import check_nm_layer

Criterion = Literal["random", "magnitude"]


@dataclass(frozen=True)
class StaticSparse(MaskedTraining):
    """Train a fixed choice of weights; the others are zero from the start.

    Attached to a trained model with ``criterion="magnitude"`` it is one-shot pruning, and what it
    takes to retrain: with ``pattern=NM(2, 4)`` and ``allocation="uniform"`` the recipe that N:M
    hardware came with (prune once, train again with the mask fixed).

    Parameters
    ----------
    density : float
        Share of the weights of all sparse layers kept, in (0, 1].
    allocation : {"erk", "erdos_renyi", "uniform"}, default "erk"
        How it is spread over the layers.
    criterion : {"random", "magnitude"}, default "random"
        Which weights of a layer are kept: any, or the largest at attachment.
    pattern : WeightPattern, default Unstructured()
        What is kept or dropped together; convolutions are taken as [kh, kw, out, in]. For N:M,
        `density` is n / m.

    Examples
    --------
    >>> StaticSparse(density=0.5, allocation="uniform", pattern=NM(2, 4)).schedule(0) is None
    True
    """

    criterion: Criterion = "random"
    pattern: WeightPattern = ELEMENTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in get_args(Criterion):
            raise ValueError(
                f"expected criterion to be 'random' or 'magnitude', got {self.criterion!r}"
            )
        if isinstance(self.pattern, NM) and (
            self.allocation != "uniform" or self.density * self.pattern.m != self.pattern.n
        ):
            raise ValueError(
                f"expected density={self.pattern.n / self.pattern.m:g} and allocation='uniform' "
                f"for {self.pattern}, got {self.density:g} and {self.allocation!r}"
            )

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        if isinstance(self.pattern, NM):
            check_nm_layer(name, shape, self.pattern.m)

    def grow(self, state: WeightState) -> Tensor:
        return state.random() if self.criterion == "random" else scores.magnitude(state.weight)

    def start(self, state: WeightState, count: int) -> Tensor:
        matrices = self.grow(state).movedim((0, 1), (-2, -1))  # [..., out, in]
        budget = Density(count / matrices.numel(), dim=-1 if isinstance(self.pattern, NM) else None)
        return budget.select(matrices, self.pattern).movedim((-2, -1), (0, 1))
