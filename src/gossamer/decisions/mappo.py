"""BN-MAPPO: proximal policy optimisation of a DAG policy and of the DAGs, with a shared critic."""

from dataclasses import dataclass
from math import nan
from statistics import fmean as mean

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.decisions.dag_policy import DagPolicy
from gossamer.decisions.dags import edge_density
from gossamer.decisions.density_penalty import DensityPenalty
from gossamer.decisions.games import Environment
from gossamer.decisions.popart import PopArt
from gossamer.decisions.rollouts import Player, Rollout, gae


@dataclass(frozen=True)
class Progress:
    """One iteration of training.

    Parameters
    ----------
    steps : int
        Steps played in all games together so far.
    episode_return : float
        Mean undiscounted return of the episodes that ended in this rollout; NaN if none did.
    edge_density : float
        Of the DAGs played.
    policy_loss, value_loss, entropy, penalty : float
        Means over the epochs.
    first_ratio_error : float
        Largest distance from 1 of a probability ratio in the first epoch; rounding only.
    """

    steps: int
    episode_return: float
    edge_density: float
    policy_loss: float
    value_loss: float
    entropy: float
    penalty: float
    first_ratio_error: float


class BayesianMAPPO:
    """Train a policy, and the generator of its DAGs, on a batch of cooperative games.

    Ratios are of each agent's action given the actions that its parents took. The DAGs are made
    again in every epoch, by the generator as it is then, from the noise they were played with: so
    all ratios are 1 at first, and the gradient reaches the generator through its straight-through
    edges. Time limits count as ends, as in the authors' code.

    Based on "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent
    Reinforcement Learning" (arXiv 2306.01920) and the authors' code; defaults are theirs. Without
    edges (`FixedDag` of `empty_dag`) this is MAPPO, with all of them (`full_dag`) its
    auto-regressive form.

    Parameters
    ----------
    policy : DagPolicy
    environment : Environment
        `GameBatch`, or ``gossamer.adapters.pettingzoo.VectorEnv``.
    horizon : int
        Steps of each game between updates.
    epochs : int
        Passes over a rollout, which is one batch (Aloha: 5).
    lr : float
        Of Adam, eps 1e-5, for both the policy and the critic (Aloha: 7e-4).
    clip, entropy, discount, gae_lambda, huber_delta, max_gradient : float
        The usual constants of PPO.
    hidden : int
        Width of the critic.
    penalty : DensityPenalty, optional
        Its step is the iteration.
    seed : int

    Examples
    --------
    >>> from gossamer.decisions import Aloha, FixedDag, GameBatch, ParentActor, empty_dag
    >>> policy = DagPolicy(FixedDag(empty_dag(10)), ParentActor(10, obs_dim=1, n_actions=2))
    >>> trainer = BayesianMAPPO(policy, GameBatch(Aloha(), batch=4), horizon=20)
    >>> trainer.iterate().steps
    80
    """

    def __init__(
        self,
        policy: DagPolicy,
        environment: Environment,
        *,
        horizon: int,
        epochs: int = 15,
        lr: float = 5e-4,
        clip: float = 0.2,
        entropy: float = 0.01,
        discount: float = 0.99,
        gae_lambda: float = 0.95,
        huber_delta: float = 10.0,
        max_gradient: float = 10.0,
        hidden: int = 64,
        penalty: DensityPenalty | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("horizon", horizon), ("epochs", epochs), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name, value in (
            ("lr", lr),
            ("clip", clip),
            ("huber_delta", huber_delta),
            ("max_gradient", max_gradient),
        ):
            if not value > 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        for name, value in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected one in [0, 1], got {value}")
        theirs = (environment.n_agents, environment.obs_dim, environment.n_actions)
        ours = (policy.actor.n_agents, policy.actor.obs_dim, policy.actor.n_actions)
        if theirs != ours:
            raise ValueError(
                f"policy: expected agents, obs_dim and actions {theirs} like the environment, "
                f"got {ours}"
            )
        self.policy, self.environment, self.penalty = policy, environment, penalty
        self.horizon, self.epochs, self.clip, self.entropy = horizon, epochs, clip, entropy
        self.discount, self.gae_lambda = discount, gae_lambda
        self.huber_delta, self.max_gradient = huber_delta, max_gradient
        context = environment.n_agents * environment.obs_dim
        self.critic_body = nn.Sequential(
            nn.Linear(context, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.critic_head = PopArt(hidden)
        self._critic = [*self.critic_body.parameters(), *self.critic_head.parameters()]
        self._optimizers = [
            torch.optim.Adam(parameters, lr=lr, eps=1e-5)
            for parameters in (policy.parameters(), self._critic)
        ]
        self._player, self._iteration = Player(policy, environment, seed), 0

    def train(self, iterations: int) -> list[Progress]:
        """Play and update `iterations` times."""
        return [self.iterate() for _ in range(iterations)]

    def iterate(self) -> Progress:
        """Play `horizon` steps of each game and update on them."""
        rollout = self._player.play(self.horizon)
        obs = rollout.obs.flatten(2)
        with torch.no_grad():
            final = self._player.observation.features.flatten(1)
            values = self.critic_head.value(self.critic_body(torch.cat((obs, final[None]))))
        gain = gae(rollout.reward, values, rollout.ended, self.discount, self.gae_lambda)
        returns = (gain + values[:-1]).flatten()
        gain = ((gain - gain.mean()) / (gain.std(correction=0) + 1e-5)).flatten()
        self.critic_head.track(returns)
        old_values = self.critic_head.normalize(values[:-1]).flatten()
        batch = rollout.flatten()
        losses = []
        for _ in range(self.epochs):
            losses.append(self._update_policy(batch, gain))
            losses[-1]["value"] = self._update_critic(
                batch.obs.flatten(1), old_values, self.critic_head.normalize(returns)
            )
        self._iteration += 1
        average = {name: mean(loss[name] for loss in losses) for name in losses[0]}
        return Progress(
            steps=self._iteration * self.horizon * self.environment.batch,
            episode_return=mean(rollout.returns) if rollout.returns else nan,
            edge_density=float(edge_density(rollout.adjacency)),
            policy_loss=average["policy"],
            value_loss=average["value"],
            entropy=average["entropy"],
            penalty=average["penalty"],
            first_ratio_error=losses[0]["ratio error"],
        )

    def _update_policy(self, batch: Rollout, gain: Tensor) -> dict[str, float]:
        now = self.policy.evaluate(batch.obs, batch.actions, batch.legal, noise=batch.noise)
        ratio = (now.log_prob - batch.log_prob).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = gain[:, None]
        policy_loss = -torch.minimum(ratio * gain, clipped * gain).mean()
        entropy = now.entropy.mean()
        penalty = (
            policy_loss.new_zeros(())
            if self.penalty is None
            else self.penalty(now.adjacency, self._iteration)
        )
        self._step(0, policy_loss - self.entropy * entropy + penalty)
        return {
            "policy": float(policy_loss.detach()),
            "entropy": float(entropy.detach()),
            "penalty": float(penalty.detach()),
            "ratio error": float((ratio.detach() - 1).abs().max()),
        }

    def _update_critic(self, context: Tensor, old: Tensor, target: Tensor) -> float:
        value = self.critic_head(self.critic_body(context))
        near = old + (value - old).clamp(-self.clip, self.clip)
        losses = [
            functional.huber_loss(guess, target, reduction="none", delta=self.huber_delta)
            for guess in (value, near)
        ]
        loss = torch.maximum(*losses).mean()
        self._step(1, loss)
        return float(loss.detach())

    def _step(self, which: int, loss: Tensor) -> None:
        optimizer = self._optimizers[which]
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.max_gradient)
        optimizer.step()
