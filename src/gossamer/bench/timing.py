"""Timings that can be compared: interleaved rounds, medians, and ratios paired by round."""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Samples:
    """One measured value a round, in the order the rounds ran.

    Parameters
    ----------
    values : tuple of float
        Seconds from `interleaved`, or unitless ratios from `ratio`; at least one.

    Examples
    --------
    >>> samples = Samples((3.0, 1.0, 2.0))
    >>> samples.median, samples.minimum, samples.maximum, samples.spread
    (2.0, 1.0, 3.0, 1.0)
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values: expected at least one, got none")

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def spread(self) -> float:
        """The interquartile range: the width of the middle half of the values."""
        if len(self.values) == 1:
            return 0.0
        lower, _, upper = statistics.quantiles(self.values, n=4, method="inclusive")
        return upper - lower


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    settle: float = 0.0,
) -> dict[str, Samples]:
    """Time several functions in rounds A B C, A B C, ... so that drift hits all of them alike.

    Whether the functions compute the same thing is the caller's to check before.

    Parameters
    ----------
    functions : mapping of str to callable
        What to time, by name; called without arguments.
    repeats : int, default=7
        Timed rounds.
    warmup : int, default=1
        Rounds that run first and are not timed.
    device : str or torch.device, default="cpu"
        On a CUDA device the clock starts and stops after the device has finished its work.
    settle : float, default=0
        Seconds to wait before each call, and then to call once more, untimed. A runtime with
        threads of its own leaves them spinning for a while, at the cost of whoever comes next.

    Returns
    -------
    dict of str to Samples
        Seconds a round for each function, in the order given.

    Raises
    ------
    ValueError
        If there is nothing to time, or a count is too small.

    Examples
    --------
    >>> times = interleaved({"add": lambda: 1 + 1, "sum": lambda: sum(range(9))}, repeats=3)
    >>> [len(samples.values) for samples in times.values()]
    [3, 3]
    """
    if not functions:
        raise ValueError("functions: expected at least one, got none")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup: expected at least 0, got {warmup}")
    target = torch.device(device)

    def wait() -> None:
        if target.type == "cuda":
            torch.cuda.synchronize(target)

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_index in range(warmup + repeats):
        for name, function in functions.items():
            if settle:
                time.sleep(settle)
                function()
            wait()
            start = time.perf_counter()
            function()
            wait()
            elapsed = time.perf_counter() - start
            if round_index >= warmup:
                seconds[name].append(elapsed)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}


def ratio(numerator: Samples, denominator: Samples) -> Samples:
    """Divide two series round by round; ``ratio(baseline, ours)`` is the speed-up of ours.

    Parameters
    ----------
    numerator, denominator : Samples
        Series from one call of `interleaved`.

    Returns
    -------
    Samples
        One ratio a round. Their median is robust to a machine that slows down midway.

    Raises
    ------
    ValueError
        If the series differ in length or the denominator holds a value that is not positive.

    Examples
    --------
    >>> ratio(Samples((4.0, 6.0, 9.0)), Samples((2.0, 2.0, 3.0))).values
    (2.0, 3.0, 3.0)
    """
    if len(numerator.values) != len(denominator.values):
        raise ValueError(
            "denominator: expected as many rounds as the numerator "
            f"({len(numerator.values)}), got {len(denominator.values)}"
        )
    if min(denominator.values) <= 0:
        raise ValueError(f"denominator: expected positive values, got {min(denominator.values)}")
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Samples(tuple(top / bottom for top, bottom in pairs))


def peak_rss() -> int:
    """Return the most memory this process has held at once, in bytes.

    Returns
    -------
    int
        Peak resident set size since the process started; it never falls.

    Examples
    --------
    >>> peak_rss() > 0
    True
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
