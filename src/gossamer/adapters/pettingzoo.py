"""PettingZoo, both ways: our games as its environments, and batches of its environments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from gymnasium.spaces import Box, Discrete
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ImportError(
        "PettingZoo's environments need it: pip install 'gossamer[decisions]'"
    ) from error

from gossamer.decisions.games import Game, Observation, Transition


class GameEnv(ParallelEnv):
    """One of our games as a PettingZoo parallel environment, by the same rules.

    Every agent is given the team's reward. Episodes are truncated after ``game.horizon`` steps.

    Parameters
    ----------
    game : Game

    Examples
    --------
    >>> from gossamer.decisions import Aloha
    >>> env = GameEnv(Aloha())
    >>> observations, infos = env.reset(seed=0)
    >>> observations["agent_0"]
    array([1.], dtype=float32)
    """

    def __init__(self, game: Game) -> None:
        self.metadata = {"name": type(game).__name__, "render_modes": []}
        self.render_mode = None
        self.game = game
        self.possible_agents = [f"agent_{index}" for index in range(game.n_agents)]
        self.agents: list[str] = []
        shape = (game.obs_dim,)
        self.observation_spaces = {
            agent: Box(0.0, game.obs_high, shape, np.float32) for agent in self.possible_agents
        }
        self.action_spaces = {agent: Discrete(game.n_actions) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Any:
        """Return what `agent` may see."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        """Return what `agent` may do."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
        """Start an episode; a seed also decides all later episodes."""
        if seed is not None or not hasattr(self, "_generator"):
            self._generator = torch.Generator()
            if seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(seed)
        self.agents, self._steps = [*self.possible_agents], 0
        self._state = self.game.initial(1, self._generator)
        return self._observed(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """Play all agents' actions.

        Raises
        ------
        ValueError
            If an agent's action is missing or not one of its own.
        """
        for agent in self.agents:
            if agent not in actions or not self.action_space(agent).contains(actions[agent]):
                raise ValueError(
                    f"actions: expected one of {self.action_space(agent)} for {agent}, got "
                    f"{actions.get(agent)!r}"
                )
        played = torch.tensor([[int(actions[agent]) for agent in self.agents]])
        outcome = self.game.advance(self._state, played, self._generator)
        self._state, self._steps = outcome.state, self._steps + 1
        over = self._steps >= self.game.horizon
        live = self.agents
        observed = self._observed()
        if over:
            self.agents = []
        return (
            observed,
            dict.fromkeys(live, float(outcome.reward)),
            dict.fromkeys(live, False),
            dict.fromkeys(live, over),
            {agent: {} for agent in live},
        )

    def _observed(self) -> dict[str, np.ndarray]:
        rows = self.game.observe(self._state)[0].numpy()
        return dict(zip(self.agents, rows.copy(), strict=True))


class VectorEnv:
    """A batch of PettingZoo parallel environments, as `BayesianMAPPO` plays them.

    Observations are flattened and padded with zeros to the longest, actions to the most, where
    those that an agent lacks are not legal. Action masks are read from observations
    (``{"observation": ..., "action_mask": ...}``) or infos. The team's reward is the mean over
    all agents. An agent that has left sees zeros and has action 0 only; an episode ends when none
    is left.

    Parameters
    ----------
    environments : sequence of ParallelEnv
        Of one kind, with discrete actions and boxes or discrete values to observe.

    Examples
    --------
    >>> from gossamer.decisions import Aloha
    >>> envs = VectorEnv([GameEnv(Aloha()) for _ in range(4)])
    >>> envs.reset(seed=0).features.shape
    torch.Size([4, 10, 1])
    """

    def __init__(self, environments: Sequence[ParallelEnv]) -> None:
        if not environments:
            raise ValueError("environments: expected at least one, got none")
        self.environments = [*environments]
        first = environments[0]
        self._agents: list[str] = [*first.possible_agents]
        self.batch, self.n_agents = len(environments), len(self._agents)
        for environment in environments:
            if [*environment.possible_agents] != self._agents:
                raise ValueError(
                    f"environments: expected agents {self._agents} in all, got "
                    f"{environment.possible_agents}"
                )
        self._counts: list[int] = []
        sizes: list[int] = []
        for agent in self._agents:
            space = first.action_space(agent)
            if not isinstance(space, Discrete) or space.start != 0:
                raise ValueError(f"{agent}: expected Discrete actions from 0 on, got {space}")
            self._counts.append(int(space.n))
            sizes.append(int(np.prod(_seen_space(first.observation_space(agent)).shape)))
        self.obs_dim, self.n_actions = max(sizes), max(self._counts)

    def reset(self, seed: int) -> Observation:
        """Start all games anew, each with a seed of its own."""
        self._shown = [
            environment.reset(seed=seed * self.batch + index)
            for index, environment in enumerate(self.environments)
        ]
        return self._observation()

    def step(self, actions: Tensor) -> Transition:
        """Play actions [batch, n] int64."""
        rewards, ended = [], []
        for index, (environment, chosen) in enumerate(
            zip(self.environments, actions.tolist(), strict=True)
        ):
            named = dict(zip(self._agents, chosen, strict=True))
            played = {agent: named[agent] for agent in environment.agents}
            seen, reward, _, _, infos = environment.step(played)
            rewards.append(sum(reward.values()) / self.n_agents)
            ended.append(not environment.agents)
            self._shown[index] = environment.reset() if ended[-1] else (seen, infos)
        return Transition(
            self._observation(), torch.tensor(rewards, dtype=torch.float32), torch.tensor(ended)
        )

    def close(self) -> None:
        """Close all environments."""
        for environment in self.environments:
            environment.close()

    def _observation(self) -> Observation:
        features = np.zeros((self.batch, self.n_agents, self.obs_dim), np.float32)
        legal = np.zeros((self.batch, self.n_agents, self.n_actions), bool)
        for index, (environment, (seen, infos)) in enumerate(
            zip(self.environments, self._shown, strict=True)
        ):
            for place, (agent, count) in enumerate(zip(self._agents, self._counts, strict=True)):
                if agent not in environment.agents:
                    legal[index, place, 0] = True
                    continue
                shown, mask = seen[agent], infos.get(agent, {}).get("action_mask")
                if isinstance(shown, Mapping):
                    shown, mask = shown["observation"], shown.get("action_mask", mask)
                flat = np.ravel(shown)
                features[index, place, : len(flat)] = flat
                legal[index, place, :count] = True if mask is None else np.asarray(mask, bool)
        return Observation(torch.from_numpy(features), torch.from_numpy(legal))


def _seen_space(space: Any) -> Any:
    """Return the space of what is observed, without an action mask."""
    inner = space["observation"] if "observation" in getattr(space, "spaces", {}) else space
    if not isinstance(inner, Box | Discrete):
        raise ValueError(f"expected observations of a Box or a Discrete space, got {inner}")
    return inner
