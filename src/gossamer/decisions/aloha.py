"""Aloha: neighbouring radio stations that must not send at one time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.decisions.games import Outcome

_COLUMNS = 5
_SENT, _COLLIDED = 0.1, -10.0


@dataclass(frozen=True)
class Aloha:
    """Ten stations on a 2 x 5 grid, each with a queue of packets, and no two neighbours may send.

    Action 1 sends. A station with packets that sends while no neighbour does loses one packet and
    earns the team 0.1; while a neighbour does, it costs the team 10. Then each queue grows by a
    packet with probability `arrival`. A station sees its own queue only.

    As in the authors' code of arXiv 2306.01920, where stations 4 and 5, the ends of both rows,
    are neighbours too.

    Parameters
    ----------
    arrival : float
        Chance of a packet a step, in [0, 1] (authors' code: 0.6).
    capacity : int
        Most packets in a queue (authors' code: 5).
    horizon : int
        Steps of an episode (authors' code: 20).

    Examples
    --------
    >>> game = Aloha()
    >>> generator = torch.Generator().manual_seed(0)
    >>> state = game.initial(1, generator)
    >>> apart = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0, 0, 1]])
    >>> round(game.advance(state, apart, generator).reward.item(), 3)
    0.3
    """

    arrival: float = 0.6
    capacity: int = 5
    horizon: int = 20

    n_agents = 2 * _COLUMNS
    obs_dim = 1
    n_actions = 2

    def __post_init__(self) -> None:
        if not 0 <= self.arrival <= 1:
            raise ValueError(f"arrival: expected a probability, got {self.arrival}")
        for name in ("capacity", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def obs_high(self) -> float:
        """The largest number seen."""
        return float(self.capacity)

    def initial(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return queues [batch, 10] of one packet each."""
        return torch.ones(batch, self.n_agents)

    def observe(self, state: Tensor) -> Tensor:
        """Return each station's own queue, [batch, 10, 1]."""
        return state[..., None]

    def advance(self, state: Tensor, actions: Tensor, generator: torch.Generator) -> Outcome:
        """Send, and let packets arrive; actions [batch, 10] of 0 and 1."""
        sends = actions.to(state.dtype)
        tries = sends * (state > 0)
        clear = sends @ neighbours() == 0
        sent = tries * clear
        reward = _SENT * sent.sum(1) + _COLLIDED * (tries - sent).sum(1)
        arrived = torch.rand(state.shape, generator=generator) < self.arrival
        return Outcome(reward, (state - sent + arrived).clamp_max(self.capacity))


def neighbours() -> Tensor:
    """Return who disturbs whom, [10, 10] of 0 and 1.

    Examples
    --------
    >>> neighbours()[4].nonzero()[:, 0].tolist()
    [3, 5, 9]
    """
    n = 2 * _COLUMNS
    along = torch.ones(n - 1).diag(1)
    across = torch.ones(n - _COLUMNS).diag(_COLUMNS)
    return along + along.T + across + across.T
