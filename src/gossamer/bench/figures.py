"""Measured ratios of a benchmark, and the bars they are held against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.bench.timing import Samples, ratio


@dataclass(frozen=True)
class Figure:
    """One measured ratio.

    Parameters
    ----------
    name : str
        What was measured, against what.
    density : float
        Share of the work that is left.
    milliseconds, baseline_milliseconds : float or None
        Medians; None where the ratio is a mean over cases, or not of times.
    ratio : float
        Median of the rounds' ratios, baseline over ours.
    spread : float
        Their interquartile range.
    bar : float or None
        What the ratio is to reach.
    holds : bool or None
        Whether it does; None without a bar.
    """

    name: str
    density: float
    milliseconds: float | None
    baseline_milliseconds: float | None
    ratio: float
    spread: float
    bar: float | None = None
    holds: bool | None = None


def figure(
    name: str, density: float, base: Samples, ours: Samples, bar: float | None = None
) -> Figure:
    """Compare two series of seconds that were timed in the same rounds."""
    paired = ratio(base, ours)
    holds = None if bar is None else paired.median >= bar
    times = 1e3 * ours.median, 1e3 * base.median
    return Figure(name, density, *times, paired.median, paired.spread, bar, holds)


def mean_figure(
    name: str, density: float, ratios: Sequence[Samples], bar: float | None = None
) -> Figure:
    """Take the geometric mean over cases, round by round.

    Examples
    --------
    >>> mean_figure("both", 0.1, [Samples((2.0, 2.0)), Samples((8.0, 8.0))], bar=3.0).ratio
    4.0
    """
    rounds = zip(*(case.values for case in ratios), strict=True)
    means = Samples(tuple(math.prod(case) ** (1 / len(case)) for case in rounds))
    holds = None if bar is None else means.median >= bar
    return Figure(name, density, None, None, means.median, means.spread, bar, holds)


def check(ours: Tensor, oracle: Tensor, tolerance: float) -> None:
    """Refuse to time a kernel that is wrong.

    Raises
    ------
    ArithmeticError
        If a value is further off than `tolerance` times the largest of the oracle, or not finite.
    """
    scale = max(1.0, float(oracle.abs().max())) if oracle.numel() else 1.0
    error = float((ours.double() - oracle.double()).abs().max()) / scale if ours.numel() else 0.0
    if not error <= tolerance:
        raise ArithmeticError(
            f"a kernel is off by {error:.2e}, more than {tolerance:.0e}: not timed"
        )


def name_of(dtype: torch.dtype) -> str:
    """The dtype as a word."""
    return str(dtype).removeprefix("torch.")
