"""Model predictive path integral control: many noisy plans, averaged by what they cost."""

import time
from dataclasses import dataclass
from math import inf

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gossamer.dynamics.problem import ControlProblem, Plan


@dataclass(frozen=True)
class MPPI:
    """Move the mean plan towards samples of low cost, weighted ``softmax(-sharpness * cost)``.

    Samples are ``clip(mean + sigma * noise)``. What is returned is the best plan ever seen, mean
    plans included.

    Parameters
    ----------
    problem : ControlProblem
    samples, iterations : int
        Plans of each iteration, and iterations.
    sharpness : float
        Inverse temperature lambda of the weights.
    sigma : float
        Standard deviation of the noise, in units of the actions.
    time_limit : float
        Seconds after which no further iteration starts.
    seed : int

    Examples
    --------
    >>> from torch import nn
    >>> from gossamer.dynamics import KeypointDynamics
    >>> problem = ControlProblem(KeypointDynamics(nn.Linear(4, 2)), 2, (-0.3, 0.3))
    >>> MPPI(problem, samples=10).plan([[0, 0], [0, 0]], [[0, 0]]).status
    'sampled'
    """

    problem: ControlProblem
    samples: int = 2000
    iterations: int = 10
    sharpness: float = 20.0
    sigma: float = 0.15
    time_limit: float = inf
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.iterations < 1:
            raise ValueError(
                f"expected samples and iterations >= 1, got {self.samples} and {self.iterations}"
            )
        for name in ("sharpness", "sigma", "time_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def plan(self, state: ArrayLike, goal: ArrayLike) -> Plan:
        """Plan from a state [1 + k, 2] towards a goal [k, 2]."""
        begin, problem = time.perf_counter(), self.problem
        start, target = problem.check(state, goal)
        low, high = torch.tensor(problem.low), torch.tensor(problem.high)
        generator = torch.Generator().manual_seed(self.seed)
        mean = ((low + high) / 2).expand(problem.horizon, 2)
        best, least = mean, inf
        shape = (self.samples, problem.horizon, 2)
        for _ in range(self.iterations):
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            plans = torch.cat([(mean + self.sigma * noise).clamp(low, high), mean[None]])
            costs = problem.evaluate(start, target, plans)
            if costs.min() < least:
                best, least = plans[costs.argmin()], float(costs.min())
            mean = _weighted(plans, (-self.sharpness * costs).softmax(0))
            if time.perf_counter() - begin > self.time_limit:
                break
        return problem.sampled(start, target, best, time.perf_counter() - begin)


def _weighted(plans: Tensor, weights: Tensor) -> Tensor:
    return (weights[:, None, None] * plans).sum(0)
