"""The tabular coordination game: agents that move the state's bits to where most agree."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gossamer.decisions.games import Outcome

_BALANCE = {2: 1, 3: 1, 5: 2, 10: 3}  # authors' code: zeros and ones count as balanced up to here


@dataclass(frozen=True)
class TabularCoordinationGame:
    """n agents with a bit each; what they choose is, but for noise, the next state.

    State and joint action are n bits, agent 0's first. Each bit of the next state is its agent's
    action with probability ``1 - flip``, whatever the state was. Balanced states earn 1 if there
    are more ones than zeros and 0 if not; else more zeros earn 3 and more ones 2. All agents see
    the state. Everyone at the zeros is best; everyone at the ones is where agents get stuck.

    As in the authors' code of arXiv 2306.01920.

    Parameters
    ----------
    n_agents : {2, 3, 5, 10}
    flip : float
        Chance that a bit is not what its agent chose (authors' code: 0.1).
    discount : float
        In [0, 1) (authors' code: 0.95).
    horizon : int
        Steps of an episode, where it is played and not solved (authors' code: 25).

    Examples
    --------
    >>> game = TabularCoordinationGame(2)
    >>> game.rewards.tolist()  # of the states 00, 01, 10 and 11
    [3.0, 0.0, 0.0, 2.0]
    >>> [round(chance, 2) for chance in game.transitions[0].tolist()]  # after the actions 00
    [0.81, 0.09, 0.09, 0.01]
    """

    n_agents: int
    flip: float = 0.1
    discount: float = 0.95
    horizon: int = 25

    obs_high = 1.0
    n_actions = 2

    def __post_init__(self) -> None:
        if self.n_agents not in _BALANCE:
            raise ValueError(f"n_agents: expected one of {[*_BALANCE]}, got {self.n_agents}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability, got {self.flip}")
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount: expected one in [0, 1), got {self.discount}")
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1, got {self.horizon}")

    @property
    def obs_dim(self) -> int:
        """Numbers that each agent sees: all bits."""
        return self.n_agents

    @property
    def bits(self) -> Tensor:
        """The bits [2^n, n] int64 of every state and of every joint action."""
        shifts = torch.arange(self.n_agents - 1, -1, -1)
        return torch.arange(2**self.n_agents)[:, None] >> shifts & 1

    @cached_property
    def rewards(self) -> Tensor:
        """The reward [2^n] float64 of being in each state."""
        return self._earned(self.bits).double()

    @cached_property
    def transitions(self) -> Tensor:
        """The chance [2^n, 2^n] float64 of each next state after each joint action."""
        moved = (self.bits[:, None] != self.bits).double()
        return (moved * self.flip + (1 - moved) * (1 - self.flip)).prod(-1)

    def initial(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return states [batch, n], all equally likely."""
        return torch.randint(2, (batch, self.n_agents), generator=generator).float()

    def observe(self, state: Tensor) -> Tensor:
        """Return the whole state for each agent, [batch, n, n]."""
        return state[:, None].expand(-1, self.n_agents, -1)

    def advance(self, state: Tensor, actions: Tensor, generator: torch.Generator) -> Outcome:
        """Earn what the state is worth and move on; actions [batch, n] of 0 and 1."""
        flipped = torch.rand(state.shape, generator=generator) < self.flip
        return Outcome(self._earned(state.long()), (actions.bool() ^ flipped).to(state.dtype))

    def _earned(self, bits: Tensor) -> Tensor:
        ones = bits.sum(-1)
        zeros = self.n_agents - ones
        balanced = (zeros - ones).abs() <= _BALANCE[self.n_agents]
        more_ones = zeros < ones
        return torch.where(balanced, more_ones.float(), torch.where(more_ones, 2.0, 3.0))
