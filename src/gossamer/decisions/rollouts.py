"""Playing policies: rollouts to learn from, advantages, and tests without learning."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from gossamer.decisions.agent_dag import DagNoise
from gossamer.decisions.dag_policy import DagPolicy
from gossamer.decisions.dags import edge_density
from gossamer.decisions.games import Environment, Observation


@dataclass(frozen=True)
class Rollout:
    """What was played since the last update; T steps of a batch of games.

    Parameters
    ----------
    obs : Tensor [T, batch, n, obs_dim]
    legal : Tensor [T, batch, n, actions] bool, or None
    actions : Tensor [T, batch, n] int64
    log_prob : Tensor [T, batch, n]
    adjacency : Tensor [T, batch, n, n]
    noise : DagNoise or None
        Of the DAGs, so that the update sees the graphs that were played.
    reward : Tensor [T, batch]
    ended : Tensor [T, batch] bool
    returns : tuple of float
        Undiscounted, of the episodes that ended.
    """

    obs: Tensor
    legal: Tensor | None
    actions: Tensor
    log_prob: Tensor
    adjacency: Tensor
    noise: DagNoise | None
    reward: Tensor
    ended: Tensor
    returns: tuple[float, ...]

    def flatten(self) -> Self:
        """Join steps and games."""
        noise = self.noise
        return replace(
            self,
            obs=self.obs.flatten(0, 1),
            legal=None if self.legal is None else self.legal.flatten(0, 1),
            actions=self.actions.flatten(0, 1),
            log_prob=self.log_prob.flatten(0, 1),
            adjacency=self.adjacency.flatten(0, 1),
            noise=None
            if noise is None
            else DagNoise(noise.edges.flatten(0, 1), noise.order.flatten(0, 1)),
            reward=self.reward.flatten(0, 1),
            ended=self.ended.flatten(0, 1),
        )


@dataclass(frozen=True)
class Evaluation:
    """Episodes played without learning: mean undiscounted return, and density of the edges."""

    episode_return: float
    edge_density: float


class Player:
    """Plays a policy in an environment that goes on from one rollout to the next.

    Parameters
    ----------
    policy : DagPolicy
    environment : Environment
        Reset at once.
    seed : int
    """

    def __init__(self, policy: DagPolicy, environment: Environment, seed: int) -> None:
        self.policy, self.environment = policy, environment
        self._generator = torch.Generator().manual_seed(seed)
        self.observation = environment.reset(seed)
        self._running = torch.zeros(environment.batch)

    @torch.no_grad()
    def play(self, steps: int) -> Rollout:
        """Sample actions for `steps` steps."""
        seen: list[Observation] = []
        decisions, rewards, ends, finished = [], [], [], []
        for _ in range(steps):
            now = self.observation
            decision = self.policy.act(now.features, now.legal, generator=self._generator)
            transition = self.environment.step(decision.actions)
            self._running = self._running + transition.reward
            finished.extend(self._running[transition.ended].tolist())
            self._running = self._running.masked_fill(transition.ended, 0.0)
            seen.append(now)
            decisions.append(decision)
            rewards.append(transition.reward)
            ends.append(transition.ended)
            self.observation = transition.observation
        legal = [o.legal for o in seen if o.legal is not None]
        noise = [d.noise for d in decisions if d.noise is not None]
        return Rollout(
            obs=torch.stack([o.features for o in seen]),
            legal=torch.stack(legal) if legal else None,
            actions=torch.stack([d.actions for d in decisions]),
            log_prob=torch.stack([d.log_prob for d in decisions]),
            adjacency=torch.stack([d.adjacency for d in decisions]),
            noise=DagNoise(
                torch.stack([one.edges for one in noise]), torch.stack([one.order for one in noise])
            )
            if noise
            else None,
            reward=torch.stack(rewards),
            ended=torch.stack(ends),
            returns=tuple(finished),
        )


def gae(
    reward: Tensor, values: Tensor, ended: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Return generalised advantage estimates (arXiv 1506.02438).

    Parameters
    ----------
    reward : Tensor [T, batch]
    values : Tensor [T + 1, batch]
    ended : Tensor [T, batch] bool
        Nothing is carried over an end.
    discount, gae_lambda : float

    Returns
    -------
    Tensor [T, batch]

    Examples
    --------
    >>> one = torch.ones(3, 1)
    >>> gae(one, torch.zeros(4, 1), torch.zeros(3, 1, dtype=bool), 1.0, 1.0)[:, 0].tolist()
    [3.0, 2.0, 1.0]
    """
    advantage, found = torch.zeros_like(values[0]), []
    for step in reversed(range(len(reward))):
        goes_on = discount * (~ended[step]).to(reward.dtype)
        surprise = reward[step] + goes_on * values[step + 1] - values[step]
        advantage = surprise + goes_on * gae_lambda * advantage
        found.append(advantage)
    return torch.stack(found[::-1])


def evaluate(
    policy: DagPolicy,
    environment: Environment,
    *,
    episodes: int,
    adjacency: Tensor | None = None,
    seed: int = 0,
) -> Evaluation:
    """Play the likeliest actions along the likeliest DAGs.

    Parameters
    ----------
    policy : DagPolicy
    environment : Environment
        Reset first.
    episodes : int
        At least this many; those of one step all count.
    adjacency : Tensor [n, n], optional
        Played instead; `empty_dag` measures what decentralised execution costs.
    seed : int

    Returns
    -------
    Evaluation
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}")
    now = environment.reset(seed)
    running = torch.zeros(environment.batch)
    finished: list[float] = []
    densities: list[Tensor] = []
    while len(finished) < episodes:
        with torch.no_grad():
            decision = policy.act(now.features, now.legal, adjacency=adjacency, deterministic=True)
        transition = environment.step(decision.actions)
        running = running + transition.reward
        finished.extend(running[transition.ended].tolist())
        running = running.masked_fill(transition.ended, 0.0)
        densities.append(edge_density(decision.adjacency))
        now = transition.observation
    return Evaluation(sum(finished) / len(finished), float(torch.stack(densities).mean()))
