"""SET: weights exchanged by magnitude and at random."""

from dataclasses import dataclass

from gossamer.schedules import EverySteps
from gossamer.training.base import Allocation, MaskedTraining, Update


@dataclass(frozen=True)
class SET(MaskedTraining):
    """After every `every` steps, drop the smallest weights and grow as many at random.

    Each layer drops the share `fraction` of its active weights, those of the least ``|w|``; as
    many weights not kept, drawn uniformly, grow at zero. No dense gradient is ever needed.

    Based on "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity
    inspired by Network Science" (arXiv 1707.04780).

    Limits: the paper drops the smallest positive and the largest negative weights apart, and
    grows at small random values; this is the later common form, with zeros.

    Parameters
    ----------
    density : float
        Share of the weights of all sparse layers kept, in (0, 1].
    allocation : {"erk", "erdos_renyi", "uniform"}, default "erdos_renyi"
        How it is spread over the layers.
    every : int, default 100
        Steps from one update to the next; an epoch, in the paper.
    fraction : float, default 0.3
        Share dropped, in [0, 1].
    until : int or None
        Step from which the masks stay; in the paper the last epoch.

    Examples
    --------
    >>> method = SET(density=0.1, every=10, until=30)
    >>> [step for step in range(50) if method.schedule(step)]
    [9, 19, 29]
    """

    allocation: Allocation = "erdos_renyi"
    every: int = 100
    fraction: float = 0.3
    until: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"expected every of at least 1, got {self.every}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"expected fraction in [0, 1], got {self.fraction}")
        if self.until is not None and self.until < self.every:
            raise ValueError(
                f"expected until of at least every={self.every}, got {self.until}; "
                "try StaticSparse to keep the masks"
            )

    def schedule(self, step: int) -> Update | None:
        # The update follows the step with number `every`, which is counted from 0.
        moment = EverySteps(self.every, until=self.until, begin=self.every - 1)
        return Update(drop=self.fraction) if moment.due(step) else None
