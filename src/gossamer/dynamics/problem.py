"""What every planner solves, and what it returns: keypoints to be pushed to a goal."""

import copy
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from gossamer.dynamics.piecewise_affine import PiecewiseAffine

Floats = NDArray[np.float64]


class KeypointDynamics(nn.Module):
    """Keypoints moved by a pusher: ``K' = K + f([K - p, u])``, ``p' = p + u``.

    The network f sees the keypoints relative to the pusher p, and the pusher's displacement u.
    Relative keypoints x follow ``x' = x - u + f([x, u])``, as in the paper.

    Parameters
    ----------
    network : nn.Module
        From [..., 2 k + 2] to [..., 2 k] for k keypoints, x and y of one after the other.

    Examples
    --------
    >>> still = nn.Linear(4, 2)
    >>> _ = nn.init.zeros_(still.weight), nn.init.zeros_(still.bias)
    >>> state = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # pusher, one keypoint
    >>> KeypointDynamics(still)(state, torch.tensor([0.25, 0.0])).tolist()
    [[0.25, 0.0], [1.0, 1.0]]
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the next state [..., 1 + k, 2]: pusher first, then the keypoints.

        Parameters
        ----------
        state : Tensor [..., 1 + k, 2]
        action : Tensor [..., 2]
        """
        pusher, keypoints = state[..., :1, :], state[..., 1:, :]
        seen = torch.cat([(keypoints - pusher).flatten(-2), action], -1)
        moved = keypoints + self.network(seen).unflatten(-1, keypoints.shape[-2:])
        return torch.cat([pusher + action.unsqueeze(-2), moved], -2)

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """Return the states [..., N, 1 + k, 2] that actions [..., N, 2] lead to."""
        states = []
        for action in actions.unbind(-2):
            state = self(state, action)
            states.append(state)
        return torch.stack(states, -3)

    def relative_step(self) -> PiecewiseAffine:
        """Fold x' = x - u + f([x, u]) into one function of [x, u]."""
        f = PiecewiseAffine.from_module(self.network)
        size = f.inputs - 2
        if len(f.output_bias) != size or size < 2 or size % 2:
            raise ValueError(
                "network: expected 2 k + 2 inputs and 2 k outputs for k keypoints, got "
                f"{f.inputs} and {len(f.output_bias)}"
            )
        stay = np.hstack([np.eye(size), -np.tile(np.eye(2), (size // 2, 1))])
        parts = (f.input_weight, f.hidden_weight, f.bias, f.output_input + stay)
        return PiecewiseAffine(*parts, f.output_hidden, f.output_bias)


@dataclass(frozen=True)
class KeypointCost:
    """``sum_t w_t ||K_t - goal||`` over the steps t = 1..N of a plan.

    Parameters
    ----------
    norm : {1, 2}
        The L1 norm, or the square of the L2 norm.
    steps : {"ramp", "final"}
        ``w_t = t / N``, or 1 for the last step and 0 for the others.

    Examples
    --------
    >>> KeypointCost()(torch.ones(2, 1, 2), torch.zeros(1, 2)).item()  # N = 2, one keypoint
    3.0
    """

    norm: int = 1
    steps: str = "ramp"

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise ValueError(f"norm: expected 1 or 2, got {self.norm}")
        if self.steps not in ("ramp", "final"):
            raise ValueError(f"steps: expected 'ramp' or 'final', got {self.steps!r}")

    def weights(self, horizon: int) -> Floats:
        """Return w_t [N]."""
        ramp = np.arange(1, horizon + 1) / horizon
        return ramp if self.steps == "ramp" else np.floor(ramp)

    def __call__(self, keypoints: Tensor, goal: Tensor) -> Tensor:
        """Return the cost [...] of keypoints [..., N, k, 2] for a goal [k, 2]."""
        weights = torch.from_numpy(self.weights(keypoints.shape[-3])).to(keypoints)
        distance = (keypoints - goal).abs() if self.norm == 1 else (keypoints - goal).square()
        return (weights * distance.sum((-2, -1))).sum(-1)


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
