"""The cross-entropy method: a Gaussian over plans, fitted to the best samples again and again."""

import time
from dataclasses import dataclass
from math import inf

import torch
from numpy.typing import ArrayLike

from gossamer.dynamics.problem import ControlProblem, Plan


@dataclass(frozen=True)
class CEM:
    """Fit mean and spread of a plan's actions to the samples of least cost.

    Parameters
    ----------
    problem : ControlProblem
    samples, elites, iterations : int
        Plans of each iteration, how many of them are fitted, and iterations.
    time_limit : float
        Seconds after which no further iteration starts.
    seed : int

    Examples
    --------
    >>> from torch import nn
    >>> from gossamer.dynamics import KeypointDynamics
    >>> problem = ControlProblem(KeypointDynamics(nn.Linear(4, 2)), 2, (-0.3, 0.3))
    >>> CEM(problem, samples=10, elites=2).plan([[0, 0], [0, 0]], [[0, 0]]).status
    'sampled'
    """

    problem: ControlProblem
    samples: int = 2000
    elites: int = 100
    iterations: int = 10
    time_limit: float = inf
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.elites <= self.samples or self.iterations < 1:
            raise ValueError(
                f"expected 2 <= elites <= samples and iterations >= 1, got {self.elites}, "
                f"{self.samples} and {self.iterations}"
            )
        if not self.time_limit > 0:
            raise ValueError(f"time_limit: expected more than 0, got {self.time_limit}")

    def plan(self, state: ArrayLike, goal: ArrayLike) -> Plan:
        """Plan from a state [1 + k, 2] towards a goal [k, 2]."""
        begin, problem = time.perf_counter(), self.problem
        start, target = problem.check(state, goal)
        low, high = torch.tensor(problem.low), torch.tensor(problem.high)
        generator = torch.Generator().manual_seed(self.seed)
        mean = ((low + high) / 2).expand(problem.horizon, 2)
        spread = ((high - low) / 2).expand(problem.horizon, 2)
        best, least = mean, inf
        shape = (self.samples, problem.horizon, 2)
        for _ in range(self.iterations):
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            plans = (mean + spread * noise).clamp(low, high)
            costs = problem.evaluate(start, target, plans)
            found = costs.topk(self.elites, largest=False)
            if found.values[0] < least:
                best, least = plans[found.indices[0]], float(found.values[0])
            mean, spread = plans[found.indices].mean(0), plans[found.indices].std(0)
            if time.perf_counter() - begin > self.time_limit:
                break
        return problem.sampled(start, target, best, time.perf_counter() - begin)
