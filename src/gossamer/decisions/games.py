"""Cooperative games: rules on batches of states, and many games played side by side."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What all agents see.

    Parameters
    ----------
    features : Tensor [batch, n, obs_dim]
    legal : Tensor [batch, n, actions] bool, or None
        Actions that may be taken; None allows all.
    """

    features: Tensor
    legal: Tensor | None = None


@dataclass(frozen=True)
class Transition:
    """What follows the agents' actions.

    Parameters
    ----------
    observation : Observation
        The next one, of a new episode where one has ended.
    reward : Tensor [batch]
        The team's.
    ended : Tensor [batch] bool
        Whether the episode is over.
    """

    observation: Observation
    reward: Tensor
    ended: Tensor


class Environment(Protocol):
    """A batch of games of one kind that start again by themselves."""

    batch: int
    n_agents: int
    obs_dim: int
    n_actions: int

    def reset(self, seed: int) -> Observation:
        """Start all games anew."""
        ...

    def step(self, actions: Tensor) -> Transition:
        """Play actions [batch, n] int64."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What the rules make of actions: the team's reward [batch] and the next state."""

    reward: Tensor
    state: Tensor


class Game(Protocol):
    """The rules of a game with a common reward; `state` is a Tensor [batch, ...]."""

    @property
    def n_agents(self) -> int:
        """Agents."""
        ...

    @property
    def obs_dim(self) -> int:
        """Numbers that each agent sees."""
        ...

    @property
    def obs_high(self) -> float:
        """The largest number seen; the smallest is 0."""
        ...

    @property
    def n_actions(self) -> int:
        """Actions of each agent."""
        ...

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        ...

    def initial(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return first states."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return what the agents see of states, [batch, n, obs_dim]."""
        ...

    def advance(self, state: Tensor, actions: Tensor, generator: torch.Generator) -> Outcome:
        """Play actions [batch, n] int64."""
        ...


class GameBatch:
    """Many games of one kind at once, as tensors.

    Parameters
    ----------
    game : Game
    batch : int
        Games.

    Examples
    --------
    >>> from gossamer.decisions import Aloha
    >>> games = GameBatch(Aloha(), batch=32)
    >>> first = games.reset(seed=0)
    >>> games.step(torch.zeros(32, 10, dtype=torch.int64)).reward.shape
    torch.Size([32])
    """

    def __init__(self, game: Game, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.game, self.batch = game, batch
        self.n_agents, self.obs_dim, self.n_actions = game.n_agents, game.obs_dim, game.n_actions

    def reset(self, seed: int) -> Observation:
        """Start all games anew."""
        self._generator = torch.Generator().manual_seed(seed)
        return self._start()

    def step(self, actions: Tensor) -> Transition:
        """Play actions [batch, n] int64; all games last equally long and start again together."""
        outcome = self.game.advance(self._state, actions, self._generator)
        self._state, self._steps = outcome.state, self._steps + 1
        over = self._steps == self.game.horizon
        observation = self._start() if over else Observation(self.game.observe(self._state))
        return Transition(observation, outcome.reward, torch.full((self.batch,), over))

    def _start(self) -> Observation:
        self._state, self._steps = self.game.initial(self.batch, self._generator), 0
        return Observation(self.game.observe(self._state))
