"""Gradient descent on the actions, through the model, from many starts at once."""

import time
from dataclasses import dataclass
from math import inf

import torch
from numpy.typing import ArrayLike

from gossamer.dynamics.problem import ControlProblem, Plan


@dataclass(frozen=True)
class GradientShooting:
    """Descend from random plans with Adam, back into the bounds after each step.

    Parameters
    ----------
    problem : ControlProblem
    restarts, iterations : int
        Plans that descend side by side, and steps.
    lr : float
        Learning rate, in units of the actions.
    time_limit : float
        Seconds after which no further step is made.
    seed : int

    Examples
    --------
    >>> from torch import nn
    >>> from gossamer.dynamics import KeypointDynamics
    >>> problem = ControlProblem(KeypointDynamics(nn.Linear(4, 2)), 2, (-0.3, 0.3))
    >>> GradientShooting(problem, restarts=2).plan([[0, 0], [0, 0]], [[0, 0]]).status
    'sampled'
    """

    problem: ControlProblem
    restarts: int = 64
    iterations: int = 100
    lr: float = 0.02
    time_limit: float = inf
    seed: int = 0

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.iterations < 1:
            raise ValueError(
                f"expected restarts and iterations >= 1, got {self.restarts} and {self.iterations}"
            )
        for name in ("lr", "time_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")

    def plan(self, state: ArrayLike, goal: ArrayLike) -> Plan:
        """Plan from a state [1 + k, 2] towards a goal [k, 2]."""
        begin, problem = time.perf_counter(), self.problem
        start, target = problem.check(state, goal)
        low, high = torch.tensor(problem.low), torch.tensor(problem.high)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(
            (self.restarts, problem.horizon, 2), generator=generator, dtype=torch.float64
        )
        plans = (low + (high - low) * drawn).requires_grad_()
        optimizer = torch.optim.Adam([plans], self.lr)
        best, least = plans[0].detach().clone(), inf
        for _ in range(self.iterations):
            costs = problem.evaluate(start, target, plans)
            lowest = costs.detach().min()
            if lowest < least:
                best, least = plans[costs.argmin()].detach().clone(), float(lowest)
            optimizer.zero_grad()
            costs.sum().backward()
            optimizer.step()
            with torch.no_grad():
                plans.clamp_(low, high)
            if time.perf_counter() - begin > self.time_limit:
                break
        return problem.sampled(start, target, best, time.perf_counter() - begin)
