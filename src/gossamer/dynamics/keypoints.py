"""Keypoints moved by a pusher: their dynamics around a network, and the cost of where they are."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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
