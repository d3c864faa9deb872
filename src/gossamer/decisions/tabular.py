"""Exact policy gradient on a tabular game, for policies along any DAG and many seeds at once.

With n agents of two actions there are ``2^n`` states and joint actions. Values and occupancies are
solutions of one ``2^n x 2^n`` system a seed, whose factors serve both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gossamer.decisions.coordination import TabularCoordinationGame
from gossamer.decisions.dags import topological_depth

_MAX_GRADIENT = 1e3  # norm at which a step is clipped, authors' code
_SETTLED = 1e-12


@dataclass(frozen=True)
class TabularPolicy:
    """Softmax tables ``pi_j(a_j | s, a_pa(j))`` of agents with two actions, for a batch of seeds.

    Parameters
    ----------
    adjacency : Tensor [n, n]
        Acyclic; ``adjacency[i, j] = 1`` makes i a parent of j.
    logits : tuple of Tensor [seeds, 2^n, 2^parents, 2] float64
        One table an agent; the first parent is the highest bit of the column.

    Examples
    --------
    >>> from gossamer.decisions import full_dag
    >>> policy = TabularPolicy.random(full_dag(3), seeds=range(5))
    >>> policy.joint().sum(-1).allclose(torch.ones(5, 8).double())
    True
    """

    adjacency: Tensor
    logits: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        topological_depth(self.adjacency)  # refuses cycles
        n = len(self.adjacency)
        sizes = [(2**n, 2 ** int(count), 2) for count in self.adjacency.sum(0)]
        if [tuple(table.shape[1:]) for table in self.logits] != sizes:
            raise ValueError(
                f"logits: expected tables [seeds, ...] of {sizes}, got "
                f"{[tuple(table.shape) for table in self.logits]}"
            )

    @classmethod
    def random(cls, adjacency: Tensor, seeds: Sequence[int]) -> "TabularPolicy":
        """Draw tables from N(0, 1), each seed as it would be alone."""
        n = len(adjacency)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return cls(
            adjacency,
            tuple(
                torch.stack(
                    [
                        torch.randn(2**n, 2 ** int(count), 2, generator=g, dtype=torch.float64)
                        for g in generators
                    ]
                )
                for count in adjacency.sum(0)
            ),
        )

    @cached_property
    def entries(self) -> tuple[Tensor, ...]:
        """Where in an agent's table, flat, each joint action [2^n] is found."""
        n = len(self.adjacency)
        actions = torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1
        found = []
        for agent in range(n):
            seen = [*self.adjacency[:, agent].nonzero()[:, 0].tolist(), agent]
            weights = 2 ** torch.arange(len(seen) - 1, -1, -1)
            found.append((actions[:, seen] * weights).sum(1))
        return tuple(found)

    def factors(self) -> Tensor:
        """Return log-probabilities [agents, seeds, 2^n states, 2^n joint actions]."""
        return _factors(self.logits, self.entries)

    def joint(self) -> Tensor:
        """Return the joint policy ``pi(a | s)`` [seeds, 2^n states, 2^n joint actions]."""
        return self.factors().sum(0).exp()


@dataclass(frozen=True)
class Solution:
    """A game under a policy, solved.

    Parameters
    ----------
    objective : Tensor [seeds]
        Discounted reward from states that are all equally likely.
    value : Tensor [seeds, states]
    action_value : Tensor [seeds, states, joint actions]
    occupancy : Tensor [seeds, states]
        Discounted share of the time spent in each state; sums to 1.
    """

    objective: Tensor
    value: Tensor
    action_value: Tensor
    occupancy: Tensor


@dataclass(frozen=True)
class Ascent:
    """A run of policy gradient ascent.

    Parameters
    ----------
    policy : TabularPolicy
        The last one.
    steps : tuple of int
        When the objective was recorded.
    objective : Tensor [records, seeds]
    """

    policy: TabularPolicy
    steps: tuple[int, ...]
    objective: Tensor


def solve(game: TabularCoordinationGame, joint: Tensor) -> Solution:
    """Solve ``(I - discount P) V = r`` and its transpose for a joint policy.

    Parameters
    ----------
    game : TabularCoordinationGame
    joint : Tensor [seeds, states, joint actions] float64
        Of `TabularPolicy.joint`.

    Returns
    -------
    Solution

    Examples
    --------
    >>> game = TabularCoordinationGame(2)
    >>> anything = torch.full((1, 4, 4), 0.25, dtype=torch.float64)
    >>> round(solve(game, anything).objective.item(), 9)  # mean reward 1.25, 20 steps' worth
    25.0
    """
    states = joint.shape[-2]
    rewards, moves = game.rewards, game.transitions
    start = torch.full((states,), 1 / states, dtype=joint.dtype)
    system = torch.eye(states, dtype=joint.dtype) - game.discount * joint @ moves
    lu, pivots = torch.linalg.lu_factor(system)
    value = torch.linalg.lu_solve(lu, pivots, rewards.expand(len(joint), 1, -1).mT)[..., 0]
    visits = torch.linalg.lu_solve(lu, pivots, start.expand(len(joint), 1, -1).mT, adjoint=True)
    later = value @ moves.T  # [seeds, joint actions]
    return Solution(
        objective=value @ start,
        value=value,
        action_value=rewards[:, None] + game.discount * later[:, None],
        occupancy=(1 - game.discount) * visits[..., 0],
    )


def policy_gradient(game: TabularCoordinationGame, policy: TabularPolicy) -> tuple[Tensor, ...]:
    """Return the exact gradient of the objective by every table of the policy.

    ``sum_s,a d(s) Q(s, a) grad pi(a | s) / (1 - discount)``, with occupancy d and values Q fixed.
    """
    return _gradient(game, policy.logits, policy.entries)[1]


def ascend(
    game: TabularCoordinationGame,
    policy: TabularPolicy,
    *,
    steps: int = 2000,
    lr: float | None = None,
    record_every: int = 20,
) -> Ascent:
    """Follow the exact policy gradient, all seeds at once.

    Parameters
    ----------
    game : TabularCoordinationGame
    policy : TabularPolicy
        Where to start.
    steps : int
        (authors' code: 2000)
    lr : float, optional
        Step length; ``0.01 * 2^n / n`` by default: the authors' 0.01, who weigh every state 1/n
        where the uniform distribution used here weighs it ``1/2^n``.
    record_every : int

    Returns
    -------
    Ascent

    Examples
    --------
    >>> from gossamer.decisions import empty_dag
    >>> game = TabularCoordinationGame(2)
    >>> found = ascend(game, TabularPolicy.random(empty_dag(2), [0, 1]), steps=40)
    >>> found.steps, bool((found.objective.diff(dim=0) > 0).all())
    ((0, 20, 40), True)
    """
    if len(policy.adjacency) != game.n_agents:
        raise ValueError(
            f"policy: expected {game.n_agents} agents like the game, got {len(policy.adjacency)}"
        )
    if steps < 1 or record_every < 1:
        raise ValueError(f"expected steps and record_every >= 1, got {steps} and {record_every}")
    rate = 0.01 * 2**game.n_agents / game.n_agents if lr is None else lr
    logits, recorded, objectives = policy.logits, [], []
    for step in range(steps + 1):
        objective, gradient = _gradient(game, logits, policy.entries)
        if step % record_every == 0 or step == steps:
            recorded.append(step)
            objectives.append(objective)
        if step == steps:
            break
        norm = torch.stack([table.square().sum((1, 2, 3)) for table in gradient]).sum(0).sqrt()
        scale = rate * (_MAX_GRADIENT / norm.clamp_min(_MAX_GRADIENT))[:, None, None, None]
        logits = tuple(t + scale * g for t, g in zip(logits, gradient, strict=True))
    return Ascent(TabularPolicy(policy.adjacency, logits), tuple(recorded), torch.stack(objectives))


def optimal_objective(game: TabularCoordinationGame) -> float:
    """Return the best objective of any joint policy, by value iteration.

    Examples
    --------
    >>> round(optimal_objective(TabularCoordinationGame(2)), 2)
    47.8
    """
    value = torch.zeros_like(game.rewards)
    while True:
        best = (game.rewards[:, None] + game.discount * game.transitions @ value).amax(1)
        if float((best - value).abs().max()) <= _SETTLED * float(best.abs().max()):
            return float(best.mean())
        value = best


def nash_gap(game: TabularCoordinationGame, policy: TabularPolicy) -> Tensor:
    """Return how much one agent alone could gain, [seeds]; 0 at a Nash equilibrium.

    An agent's best response to the others' fixed tables, which may read what its own table may
    read, is found by value iteration.
    """
    with torch.no_grad():
        objective = solve(game, policy.joint()).objective
        factors = policy.factors()
        gains = []
        for agent, table in enumerate(policy.logits):
            others = (factors.sum(0) - factors[agent]).exp()
            value = torch.zeros(others.shape[:2], dtype=others.dtype)
            while True:
                best = _respond(game, value, others, policy.entries[agent], table.shape[2])
                if float((best - value).abs().max()) <= _SETTLED * float(best.abs().max()):
                    break
                value = best
            gains.append(best.mean(1) - objective)
        return torch.stack(gains).amax(0)


def _respond(
    game: TabularCoordinationGame, value: Tensor, others: Tensor, where: Tensor, columns: int
) -> Tensor:
    """Return the value [seeds, states] of an agent's best next action."""
    worth = game.rewards[:, None] + game.discount * (value @ game.transitions.T)[:, None]
    seen = others.new_zeros(*others.shape[:2], 2 * columns)
    seen.index_add_(-1, where, others * worth)
    return seen.unflatten(-1, (columns, 2)).amax(-1).sum(-1)


def _factors(logits: tuple[Tensor, ...], entries: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(
        [
            table.log_softmax(-1).flatten(-2)[..., where]
            for table, where in zip(logits, entries, strict=True)
        ]
    )


def _gradient(
    game: TabularCoordinationGame, logits: tuple[Tensor, ...], entries: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the objective [seeds] and its gradient by every table."""
    leaves = tuple(table.detach().requires_grad_() for table in logits)
    joint = _factors(leaves, entries).sum(0).exp()
    found = solve(game, joint.detach())
    weight = found.occupancy[..., None] * found.action_value / (1 - game.discount)
    return found.objective, torch.autograd.grad((weight * joint).sum(), leaves)
