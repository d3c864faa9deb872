"""What every planner solves, and what it returns: keypoints to be pushed to a goal."""

import copy
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gossamer.dynamics.keypoints import KeypointCost, KeypointDynamics

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """Actions, and how good they are known to be.

    Parameters
    ----------
    actions : ndarray [N, 2]
    objective, bound, gap : float
        Cost of the actions in the model, what no actions can cost less than, and their
        difference over the cost. Sampling knows no bound: -inf, and an infinite gap.
    status : {"optimal", "time_limit", "sampled"}
        "optimal" if a solver has closed the gap it was asked to close; otherwise the best found.
    seconds : float
        Wall time of the whole plan.
    states : ndarray [N, 1 + k, 2]
        What the model predicts.
    mismatch : float
        Difference of the solver's cost and that of the predicted states.
    binaries : int
        Binary variables of the program, after bounds were tightened.
    """

    actions: Floats
    objective: float
    bound: float
    gap: float
    status: str
    seconds: float
    states: Floats
    mismatch: float = 0.0
    binaries: int = 0


class Planner(Protocol):
    """Anything that plans."""

    def plan(self, state: ArrayLike, goal: ArrayLike) -> Plan:
        """Plan from a state [1 + k, 2] towards a goal [k, 2]."""
        ...


class ControlProblem:
    """A model, a horizon, bounds of the actions and a cost; all in float64.

    Parameters
    ----------
    dynamics : KeypointDynamics
        Copied.
    horizon : int
        Actions of a plan.
    action_bounds : (float or array [2], float or array [2])
        Least and greatest displacement.
    cost : KeypointCost

    Raises
    ------
    ValueError
        If the horizon is less than 1, or the actions are not bounded.
    TypeError
        If the network holds layers other than linear ones and ReLUs.

    Examples
    --------
    >>> from torch import nn
    >>> problem = ControlProblem(KeypointDynamics(nn.Linear(4, 2)), 3, (-0.3, 0.3))
    >>> problem.low.tolist(), problem.keypoints
    ([-0.3, -0.3], 1)
    """

    def __init__(
        self,
        dynamics: KeypointDynamics,
        horizon: int,
        action_bounds: tuple[ArrayLike, ArrayLike],
        cost: KeypointCost = KeypointCost(),  # noqa: B008 (frozen)
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon: expected at least 1, got {horizon}")
        low, high = (np.asarray(bound, np.float64) for bound in action_bounds)
        self.low, self.high = np.broadcast_to(low, (2,)), np.broadcast_to(high, (2,))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"action_bounds: expected finite low < high, got {low} and {high}")
        self.horizon, self.cost = horizon, cost
        self.step = dynamics.relative_step()
        self.keypoints = len(self.step.output_bias) // 2
        self.dynamics = copy.deepcopy(dynamics).double().eval().requires_grad_(False)

    def check(self, state: ArrayLike, goal: ArrayLike) -> tuple[Tensor, Tensor]:
        """Return a state [1 + k, 2] and a goal [k, 2] as float64 tensors, or refuse them."""
        checked = []
        for name, value, rows in (("state", state, 1), ("goal", goal, 0)):
            array, shape = np.array(value, np.float64), (self.keypoints + rows, 2)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(
                    f"{name}: expected finite {list(shape)}, got {list(array.shape)}"
                    f"{'' if np.isfinite(array).all() else ' with NaN or infinity'}"
                )
            checked.append(torch.from_numpy(array))
        return checked[0], checked[1]

    def evaluate(self, state: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        """Return the costs [...] of actions [..., N, 2]."""
        start = state.expand(*actions.shape[:-2], *state.shape)
        return self.cost(self.dynamics.rollout(start, actions)[..., 1:, :], goal)

    def sampled(self, state: Tensor, goal: Tensor, actions: Tensor, seconds: float) -> Plan:
        """Return actions [N, 2] that nothing is proven about."""
        states = self.dynamics.rollout(state, actions)
        cost = float(self.cost(states[:, 1:], goal))
        return Plan(actions.numpy(), cost, -inf, inf, "sampled", seconds, states.numpy())
