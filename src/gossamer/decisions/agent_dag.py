"""Who conditions on whom, decided for every state: a differentiable sampler of DAGs."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.decisions.dags import topological_depth
from gossamer.decisions.permutations import (
    gumbel_noise,
    gumbel_sinkhorn,
    straight_through,
    straight_through_permutation,
)


@dataclass(frozen=True)
class DagNoise:
    """The Gumbel noise of one batch of DAGs; with it the same DAGs are sampled again.

    Parameters
    ----------
    edges : Tensor [..., n, n, 2]
    order : Tensor [..., n, n]
    """

    edges: Tensor
    order: Tensor


class DagSource(Protocol):
    """What a policy needs to know of where its DAGs come from."""

    n_agents: int

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> DagNoise | None:
        """Return what makes the next `batch` DAGs random."""
        ...

    def sample(
        self, context: Tensor, *, noise: DagNoise | None = None, deterministic: bool = False
    ) -> Tensor:
        """Return a DAG [batch, n, n] for every context."""
        ...


class AgentDag(nn.Module):
    """A generator of DAGs over agents that reads what all of them observe.

    ``G = U * (P^T M P)``: a permutation P of the agents (Gumbel-Sinkhorn, rounded by assignment),
    M the strictly upper triangular ones, and U the edges that are kept (hard Gumbel-softmax over
    the pair "edge", "no edge"). Both are exactly 0 or 1 with straight-through gradients, so every
    sample is acyclic and what is done with it trains the generator.

    Based on "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent
    Reinforcement Learning" (arXiv 2306.01920) and the authors' code. The context is global: where
    agents cannot exchange it, only a policy without edges can be executed.

    Parameters
    ----------
    n_agents : int
        At least 2.
    context_dim : int
        Numbers in a context, such as the agents' joined observations.
    hidden : int
        Width of both networks (authors' code: 64).
    temperature : float
        Of both relaxations (authors' code: 1).
    sinkhorn_iters : int
        (authors' code: 20)
    learn_order : bool
        False keeps the agents' own order, as the authors do for StarCraft; only edges are learnt.

    Examples
    --------
    >>> dag = AgentDag(4, context_dim=8)
    >>> graphs = dag.sample(torch.randn(32, 8), generator=torch.Generator().manual_seed(0))
    >>> graphs.shape, sorted(set(graphs.flatten().tolist()))
    (torch.Size([32, 4, 4]), [0.0, 1.0])
    """

    def __init__(
        self,
        n_agents: int,
        context_dim: int,
        *,
        hidden: int = 64,
        temperature: float = 1.0,
        sinkhorn_iters: int = 20,
        learn_order: bool = True,
    ) -> None:
        super().__init__()
        if n_agents < 2:
            raise ValueError(f"n_agents: expected at least 2, got {n_agents}")
        for name, value in (
            ("context_dim", context_dim),
            ("hidden", hidden),
            ("sinkhorn_iters", sinkhorn_iters),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {temperature}")
        self.n_agents, self.context_dim = n_agents, context_dim
        self.temperature, self.sinkhorn_iters = temperature, sinkhorn_iters
        self.edges = _two_layers(context_dim, hidden, n_agents * n_agents * 2)
        self.order = _two_layers(context_dim, hidden, n_agents * n_agents) if learn_order else None
        self.register_buffer("upper", torch.ones(n_agents, n_agents).triu(1), persistent=False)

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> DagNoise:
        """Return Gumbel noise for `batch` DAGs, to hand to `sample`."""
        n, upper = self.n_agents, self.get_buffer("upper")
        order = (batch, n, n) if self.order is not None else (batch, 0, 0)
        return DagNoise(
            gumbel_noise((batch, n, n, 2), upper, generator), gumbel_noise(order, upper, generator)
        )

    def sample(
        self,
        context: Tensor,
        *,
        hard: bool = True,
        noise: DagNoise | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> Tensor:
        """Sample a DAG for every context.

        Parameters
        ----------
        context : Tensor [batch, context_dim]
        hard : bool, default True
            False returns the relaxation, which is neither 0 or 1 nor acyclic.
        noise : DagNoise, optional
            Of `draw_noise`; drawn from `generator` by default.
        generator : torch.Generator, optional
        deterministic : bool, default False
            Without noise: the likeliest edges, in the likeliest order.

        Returns
        -------
        Tensor [batch, n, n]
            1 where agent i is a parent of agent j.

        Raises
        ------
        ValueError
            If `context` has another shape.
        """
        n = self.n_agents
        if context.ndim != 2 or context.shape[1] != self.context_dim:
            raise ValueError(
                f"context: expected [batch, {self.context_dim}], got {tuple(context.shape)}"
            )
        if deterministic:
            noise = None
        elif noise is None:
            noise = self.draw_noise(len(context), generator)
        logits = self.edges(context).view(-1, n, n, 2)
        if noise is not None:
            logits = logits + noise.edges
        kept = (logits / self.temperature).softmax(-1)[..., 0]
        if hard:
            kept = straight_through((logits[..., 0] > logits[..., 1]).to(kept.dtype), kept)
        return kept * self._before(context, noise, hard)

    def _before(self, context: Tensor, noise: DagNoise | None, hard: bool) -> Tensor:
        """Return [batch or 1, n, n], 1 where agent i comes before agent j."""
        upper = self.get_buffer("upper")
        if self.order is None:
            return upper[None]
        n = self.n_agents
        place = gumbel_sinkhorn(
            functional.logsigmoid(self.order(context).view(-1, n, n)),
            noise=None if noise is None else noise.order,
            temperature=self.temperature,
            iterations=self.sinkhorn_iters,
        )
        if hard:
            place = straight_through_permutation(place)
        return place.mT @ upper @ place


class FixedDag(nn.Module):
    """One DAG in every state: `empty_dag` gives independent agents, `full_dag` auto-regression.

    Parameters
    ----------
    adjacency : Tensor [n, n]
        Acyclic.

    Examples
    --------
    >>> from gossamer.decisions import full_dag
    >>> FixedDag(full_dag(3)).sample(torch.zeros(5, 7)).shape
    torch.Size([5, 3, 3])
    """

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        topological_depth(adjacency)  # refuses cycles
        if adjacency.ndim != 2 or len(adjacency) < 2:
            raise ValueError(f"adjacency: expected [n, n], n >= 2, got {tuple(adjacency.shape)}")
        self.n_agents = len(adjacency)
        self.register_buffer("adjacency", adjacency.float())

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> None:
        """Return nothing: nothing is random."""

    def sample(
        self, context: Tensor, *, noise: DagNoise | None = None, deterministic: bool = False
    ) -> Tensor:
        """Return the DAG once for every context; see `AgentDag.sample`."""
        return self.get_buffer("adjacency").expand(len(context), -1, -1)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
