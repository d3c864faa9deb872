"""Schedules: how a value moves over steps, and when a choice is made again.

All are frozen records and pure functions of the step, so a resumed run sees what an uninterrupted
one does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    Examples
    --------
    >>> Constant(0.3)(1000)
    0.3
    """

    value: float

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.value


@dataclass(frozen=True)
class InverseTime:
    """Ever slower towards zero: ``initial / (1 + decay * step)``.

    Examples
    --------
    >>> [InverseTime(1.0, decay=0.5)(step) for step in (0, 2, 6)]
    [1.0, 0.5, 0.25]
    """

    initial: float
    decay: float

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise ValueError(f"expected decay of at least 0, got {self.decay}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        return self.initial / (1 + self.decay * step)


@dataclass(frozen=True)
class _Ramp(ABC):
    """From `initial` at step `begin` to `final`, reached `steps` later and kept."""

    initial: float
    final: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected steps of at least 1, got {self.steps}")
        if self.begin < 0:
            raise ValueError(f"expected begin of at least 0, got {self.begin}")

    def __call__(self, step: int) -> float:
        _check_step(step)
        if step <= self.begin:
            return self.initial
        if step >= self.begin + self.steps:
            return self.final
        remaining = self._remaining((step - self.begin) / self.steps)
        value = self.final + (self.initial - self.final) * remaining
        low, high = sorted((self.initial, self.final))
        return min(max(value, low), high)  # rounding may not leave the interval

    @abstractmethod
    def _remaining(self, progress: float) -> float:
        """Share of the way still to go, from 1 to 0 as progress goes from 0 to 1."""


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from `initial` at `begin` to `final`, `steps` later.

    Examples
    --------
    >>> [Linear(1.0, 0.5, steps=4)(step) for step in (0, 2, 4, 9)]
    [1.0, 0.75, 0.5, 0.5]
    """

    def _remaining(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True)
class Cubic(_Ramp):
    """Fast at first, then slow: ``final + (initial - final) * (1 - progress) ** 3``.

    The rule of gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878).

    Examples
    --------
    >>> [Cubic(1.0, 0.0, steps=4)(step) for step in (0, 2, 4, 9)]
    [1.0, 0.125, 0.0, 0.0]
    """

    def _remaining(self, progress: float) -> float:
        return (1 - progress) ** 3


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine: ``final + (initial - final) * (1 + cos(pi * progress)) / 2``.

    With ``final=0`` the drop fraction of RigL (arXiv 1911.11134).

    Examples
    --------
    >>> [round(Cosine(0.3, 0.0, steps=4)(step), 6) for step in (0, 2, 4, 9)]
    [0.3, 0.15, 0.0, 0.0]
    """

    def _remaining(self, progress: float) -> float:
        return (1 + cos(pi * progress)) / 2


@dataclass(frozen=True)
class Once:
    """Decide at one step only.

    Examples
    --------
    >>> [Once().due(step) for step in (0, 1)]
    [True, False]
    """

    step: int = 0

    def __post_init__(self) -> None:
        _check_step(self.step)

    def due(self, step: int) -> bool:
        """Return whether the choice is made at `step`."""
        _check_step(step)
        return step == self.step


@dataclass(frozen=True)
class EverySteps:
    """Decide every `n` steps, from `begin` on and before `until`.

    Examples
    --------
    >>> [step for step in range(20) if EverySteps(4, until=12).due(step)]
    [0, 4, 8]
    """

    n: int
    until: int | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"expected n of at least 1, got {self.n}")
        if self.begin < 0:
            raise ValueError(f"expected begin of at least 0, got {self.begin}")
        if self.until is not None and self.until < self.begin:
            raise ValueError(f"expected until of at least begin={self.begin}, got {self.until}")

    def due(self, step: int) -> bool:
        """Return whether the choice is made at `step`."""
        _check_step(step)
        started = step >= self.begin and (step - self.begin) % self.n == 0
        return started and (self.until is None or step < self.until)


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"expected step of at least 0, got {step}")
