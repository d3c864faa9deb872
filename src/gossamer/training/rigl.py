"""RigL: weights exchanged by magnitude and by the gradient of the dropped ones."""

from dataclasses import dataclass

from torch import Tensor

from gossamer import scores
from gossamer.schedules import Cosine, EverySteps
from gossamer.training.base import MaskedTraining, Update, WeightState


@dataclass(frozen=True)
class RigL(MaskedTraining):
    """Every `every` steps, drop the smallest weights and grow where the gradient is largest.

    At step ``t = 0, every, 2 * every, ... < until`` each layer drops the share
    ``alpha / 2 * (1 + cos(pi * t / until))`` of its active weights, those of the least ``|w|``,
    and grows as many at zero, where ``|dL/dw|`` is largest among the weights not kept. The
    gradient of all weights is computed at these steps only.

    Based on "Rigging the Lottery: Making All Tickets Winners" (arXiv 1911.11134).

    Limits: a dropped weight that grows again starts at zero (the authors' code keeps its value).

    Parameters
    ----------
    density : float
        Share of the weights of all sparse layers kept, in (0, 1].
    allocation : {"erk", "erdos_renyi", "uniform"}, default "erk"
        How it is spread over the layers.
    every : int, default 100
        Steps from one update to the next.
    alpha : float, default 0.3
        Share dropped at first, in [0, 1].
    until : int, default 25_000
        Step from which the masks stay: three quarters of the training, in the paper. The default
        is that of its 32,000 steps on ImageNet.
    replaces_step : bool, default True
        Whether an update takes the place of the optimizer's step, as in the paper, or follows it.

    Examples
    --------
    >>> method = RigL(density=0.1, every=100, until=1000)
    >>> [round(method.schedule(step).drop, 3) for step in (0, 500, 900)]
    [0.3, 0.15, 0.007]
    >>> method.schedule(50) is None and method.schedule(1000) is None
    True
    """

    every: int = 100
    alpha: float = 0.3
    until: int = 25_000
    replaces_step: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.until < 1:
            raise ValueError(
                f"expected every and until of at least 1, got {self.every} and {self.until}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected alpha in [0, 1], got {self.alpha}")

    def schedule(self, step: int) -> Update | None:
        if not EverySteps(self.every, until=self.until).due(step):
            return None
        fraction = Cosine(self.alpha, 0.0, steps=self.until)(step)
        return Update(drop=fraction, gradient=True, replaces_step=self.replaces_step)

    def grow(self, state: WeightState) -> Tensor:
        # Before the first batch there is no gradient: the paper starts from random masks.
        return state.random() if state.gradient is None else scores.gradient(state.gradient)
