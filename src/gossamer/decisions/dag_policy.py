"""Joint policies along a DAG: every agent knows its parents' actions when it chooses its own."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.decisions.agent_dag import DagNoise, DagSource
from gossamer.decisions.dags import topological_depth
from gossamer.decisions.permutations import gumbel_noise


@dataclass(frozen=True)
class Decision:
    """What a policy chose, or thinks of a choice.

    Parameters
    ----------
    actions : Tensor [batch, n] int64
    log_prob : Tensor [batch, n]
        Of each agent's action given its parents'; the sum over agents is that of the joint action.
    entropy : Tensor [batch, n]
        Of each agent's distribution, in nats.
    adjacency : Tensor [batch, n, n]
        Who knew whose action.
    noise : DagNoise or None
        What made the DAGs random.
    """

    actions: Tensor
    log_prob: Tensor
    entropy: Tensor
    adjacency: Tensor
    noise: DagNoise | None = None


class ParentActor(nn.Module):
    """Networks of agents that see their own observation, and their parents' with their actions.

    Agent j reads ``G[i, j] * (o_i, onehot(a_i))`` of all i, joined. The two bodies are shared by
    all agents, the softmax layers are their own.

    Parameters
    ----------
    n_agents, obs_dim, n_actions : int
    hidden : int
        Width of both bodies (authors' code: 64).

    Examples
    --------
    >>> actor = ParentActor(3, obs_dim=5, n_actions=2)
    >>> obs, actions = torch.randn(4, 3, 5), torch.zeros(4, 3, dtype=torch.int64)
    >>> actor(actor.own(obs), actor.offers(obs), actions, torch.zeros(4, 3, 3)).shape
    torch.Size([4, 3, 2])
    """

    def __init__(self, n_agents: int, obs_dim: int, n_actions: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.n_agents, self.obs_dim, self.n_actions = n_agents, obs_dim, n_actions
        joined = nn.Linear(n_agents * (obs_dim + n_actions), hidden)  # for its initial weights
        weight = joined.weight.detach().T.reshape(n_agents, obs_dim + n_actions, hidden)
        self.offer_obs = nn.Parameter(weight[:, :obs_dim].clone())
        self.offer_action = nn.Parameter(weight[:, obs_dim:].clone())
        self.offer_bias = nn.Parameter(joined.bias.detach().clone())
        self.own = nn.Sequential(
            nn.Linear(obs_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.parents = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        heads = torch.empty(n_agents, 2 * hidden, n_actions)
        for head in heads:
            nn.init.orthogonal_(head, gain=0.01)  # authors' code
        self.heads = nn.Parameter(heads)
        self.head_bias = nn.Parameter(torch.zeros(n_agents, 1, n_actions))

    def offers(self, obs: Tensor) -> Tensor:
        """Return what agents tell their children [batch, n, hidden] of what they observe."""
        return (obs.transpose(0, 1) @ self.offer_obs).transpose(0, 1)

    def forward(self, own: Tensor, offers: Tensor, actions: Tensor, adjacency: Tensor) -> Tensor:
        """Return the logits [batch, n, actions] of all agents.

        Parameters
        ----------
        own, offers : Tensor [batch, n, hidden]
            ``self.own(obs)`` and ``self.offers(obs)``.
        actions : Tensor [batch, n] int64
            Only parents' are heard.
        adjacency : Tensor [batch, n, n]
        """
        offers = (
            offers + self.offer_action[torch.arange(self.n_agents, device=actions.device), actions]
        )
        heard = self.parents(adjacency.mT @ offers + self.offer_bias)
        features = torch.cat((own, heard), -1).transpose(0, 1)  # [n, batch, 2 hidden]
        return torch.baddbmm(self.head_bias, features, self.heads).transpose(0, 1)


class DagPolicy(nn.Module):
    """A joint policy ``pi(a | o) = prod_j pi_j(a_j | o_j, a_pa(j), o_pa(j))`` along sampled DAGs.

    Agents of one depth choose together, so a step takes as many passes as the deepest DAG of the
    batch has levels. An action that is not a parent's never enters an agent's distribution.

    Based on "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent
    Reinforcement Learning" (arXiv 2306.01920). Actions are discrete; agents with fewer of them
    hide the rest with `legal`.

    Parameters
    ----------
    dag : AgentDag or FixedDag
        It reads all observations, joined.
    actor : ParentActor

    Examples
    --------
    >>> from gossamer.decisions import FixedDag, full_dag
    >>> policy = DagPolicy(FixedDag(full_dag(3)), ParentActor(3, obs_dim=2, n_actions=4))
    >>> decision = policy.act(torch.randn(16, 3, 2))
    >>> decision.actions.shape, decision.log_prob.shape
    (torch.Size([16, 3]), torch.Size([16, 3]))
    """

    def __init__(self, dag: DagSource, actor: ParentActor) -> None:
        super().__init__()
        if dag.n_agents != actor.n_agents:
            raise ValueError(
                f"expected a DAG and actors of as many agents, got {dag.n_agents} and "
                f"{actor.n_agents}"
            )
        self.dag, self.actor = dag, actor

    def act(
        self,
        obs: Tensor,
        legal: Tensor | None = None,
        *,
        adjacency: Tensor | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> Decision:
        """Choose actions, parents before children.

        Parameters
        ----------
        obs : Tensor [batch, n, obs_dim]
        legal : Tensor [batch, n, actions] bool, optional
            All actions by default.
        adjacency : Tensor [n, n] or [batch, n, n], optional
            Sampled by default; `empty_dag` executes the policy decentralised.
        generator : torch.Generator, optional
        deterministic : bool, default False
            The likeliest DAG, and each agent's likeliest action.

        Raises
        ------
        ValueError
            If a shape is wrong, an agent has no legal action, or `adjacency` is not acyclic.
        """
        self._check(obs, legal)
        batch, n = obs.shape[:2]
        noise = None
        if adjacency is None:
            noise = None if deterministic else self.dag.draw_noise(batch, generator)
            adjacency = self.dag.sample(obs.flatten(1), noise=noise, deterministic=deterministic)
        adjacency = adjacency.to(obs).expand(batch, n, n)
        depth = topological_depth(adjacency)
        own, offers = self.actor.own(obs), self.actor.offers(obs)
        logits = own.new_zeros(batch, n, self.actor.n_actions)
        luck = logits if deterministic else gumbel_noise(tuple(logits.shape), own, generator)
        actions = torch.zeros_like(depth)
        for level in range(int(depth.max()) + 1):
            now = depth == level
            found = _only(self.actor(own, offers, actions, adjacency), legal)
            logits = torch.where(now[..., None], found, logits)
            actions = torch.where(now, (found + luck).argmax(-1), actions)
        return _decision(logits, actions, adjacency, noise)

    def evaluate(
        self,
        obs: Tensor,
        actions: Tensor,
        legal: Tensor | None = None,
        *,
        noise: DagNoise | None = None,
    ) -> Decision:
        """Judge actions under the DAGs that the generator makes of `noise` now, differentiably.

        Parameters
        ----------
        obs, legal
            As in `act`.
        actions : Tensor [batch, n] int64
            All agents'; parents' actions are read from here.
        noise : DagNoise, optional
            Of the decision under which the actions were taken.
        """
        self._check(obs, legal)
        context = obs.flatten(1)
        adjacency = self.dag.sample(context, noise=noise, deterministic=noise is None)
        return self._judge(obs, actions, adjacency, legal, noise)

    def log_prob(
        self, obs: Tensor, actions: Tensor, adjacency: Tensor, legal: Tensor | None = None
    ) -> Tensor:
        """Return each agent's log-probability [batch, n] of its action, given its parents'.

        Parameters
        ----------
        obs, legal
            As in `act`.
        actions : Tensor [batch, n] int64
        adjacency : Tensor [n, n] or [batch, n, n]
            Acyclic.
        """
        self._check(obs, legal)
        topological_depth(adjacency)  # refuses cycles
        adjacency = adjacency.to(obs).expand(len(obs), -1, -1)
        return self._judge(obs, actions, adjacency, legal, None).log_prob

    def _judge(
        self,
        obs: Tensor,
        actions: Tensor,
        adjacency: Tensor,
        legal: Tensor | None,
        noise: DagNoise | None,
    ) -> Decision:
        logits = self.actor(self.actor.own(obs), self.actor.offers(obs), actions, adjacency)
        return _decision(_only(logits, legal), actions, adjacency, noise)

    def _check(self, obs: Tensor, legal: Tensor | None) -> None:
        n, size, count = self.actor.n_agents, self.actor.obs_dim, self.actor.n_actions
        if obs.ndim != 3 or obs.shape[1:] != (n, size):
            raise ValueError(f"obs: expected [batch, {n}, {size}], got {tuple(obs.shape)}")
        if legal is None:
            return
        if legal.dtype != torch.bool or legal.shape != (len(obs), n, count):
            raise ValueError(
                f"legal: expected bool [{len(obs)}, {n}, {count}], got {legal.dtype} "
                f"{tuple(legal.shape)}"
            )
        if not bool(legal.any(-1).all()):
            raise ValueError("legal: expected at least one action for every agent, got none")


def _only(logits: Tensor, legal: Tensor | None) -> Tensor:
    return logits if legal is None else logits.masked_fill(~legal, -torch.inf)


def _decision(
    logits: Tensor, actions: Tensor, adjacency: Tensor, noise: DagNoise | None
) -> Decision:
    logs = logits.log_softmax(-1)
    likely = torch.where(logs > -torch.inf, logs, 0.0)  # keeps 0 * inf out of the entropy
    entropy = -(logs.exp() * likely).sum(-1)
    log_prob = logs.gather(-1, actions[..., None])[..., 0]
    return Decision(actions, log_prob, entropy, adjacency, noise)
