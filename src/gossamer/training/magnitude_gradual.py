"""Gradual magnitude pruning: from dense to sparse along a cubic schedule."""

from dataclasses import dataclass

from torch import Tensor

from gossamer import scores
from gossamer.schedules import Cubic, EverySteps
from gossamer.training.base import Allocation, MaskedTraining, Update, WeightState


@dataclass(frozen=True)
class MagnitudeGradual(MaskedTraining):
    """Start dense and drop the smallest weights every `every` steps, many at first, then few.

    After step ``t = begin, begin + every, ..., until`` the weights of the least ``|w|`` are dropped
    until the density is ``final + (1 - final) * (1 - (t - begin) / (until - begin)) ** 3``. What
    is dropped stays so.

    Based on "To prune, or not to prune: exploring the efficacy of pruning for model compression"
    (arXiv 1710.01878).

    Limits: with ``storage="sparse"`` the memory falls with the density, from more than dense.

    Parameters
    ----------
    density : float
        Share of the weights of all sparse layers kept at the end, in (0, 1].
    allocation : {"erk", "erdos_renyi", "uniform"}, default "uniform"
        How it is spread over the layers.
    begin : int, default 0
        Step of the first update; a tenth of the training is usual.
    until : int, default 25_000
        Step of the last one; three quarters of the training are usual.
    every : int, default 100
        Steps from one update to the next.

    Examples
    --------
    >>> method = MagnitudeGradual(density=0.1, until=1000)
    >>> [round(method.schedule(step).density, 3) for step in (0, 500, 1000)]
    [1.0, 0.213, 0.1]
    """

    allocation: Allocation = "uniform"
    begin: int = 0
    until: int = 25_000
    every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"expected every of at least 1, got {self.every}")
        if not 0 <= self.begin < self.until:
            raise ValueError(f"expected 0 <= begin < until, got {self.begin} and {self.until}")

    @property
    def initial_density(self) -> float:
        return 1.0

    def schedule(self, step: int) -> Update | None:
        moment = EverySteps(self.every, until=self.until, begin=self.begin)
        if not moment.due(step) and step != self.until:
            return None
        ramp = Cubic(1.0, self.density, steps=self.until - self.begin, begin=self.begin)
        return Update(density=ramp(step))

    def grow(self, state: WeightState) -> Tensor:
        return scores.magnitude(state.weight)  # all at the start, none later
