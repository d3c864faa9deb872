"""Directed acyclic graphs over agents: who may see whose action.

``adjacency[..., i, j] = 1`` says that agent i is a parent of agent j: j knows i's action when it
chooses its own.
"""

import torch
from torch import Tensor


def empty_dag(n_agents: int) -> Tensor:
    """Return the DAG [n, n] without edges: all agents choose on their own."""
    return torch.zeros(_checked(n_agents), n_agents)


def line_dag(n_agents: int) -> Tensor:
    """Return the DAG [n, n] of the edges i -> i + 1."""
    return torch.ones(_checked(n_agents) - 1).diag(1)


def full_dag(n_agents: int) -> Tensor:
    """Return the DAG [n, n] of all edges i -> j with i < j: an auto-regressive policy.

    Examples
    --------
    >>> full_dag(3).tolist()
    [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return torch.ones(_checked(n_agents), n_agents).triu(1)


def edge_density(adjacency: Tensor) -> Tensor:
    """Return the share of the edges that a DAG can have, the mean over all DAGs.

    Parameters
    ----------
    adjacency : Tensor [..., n, n]

    Returns
    -------
    Tensor []
        ``2 |edges| / (n (n - 1))``; it carries the gradient of `adjacency`.

    Examples
    --------
    >>> edge_density(line_dag(4)).item()
    0.5
    """
    n = adjacency.shape[-1]
    return adjacency.sum((-2, -1)).mean() * 2 / (n * (n - 1))


def topological_depth(adjacency: Tensor) -> Tensor:
    """Return the length of the longest path that ends in each agent.

    Agents of one depth do not depend on each other, so they can choose together.

    Parameters
    ----------
    adjacency : Tensor [..., n, n]

    Returns
    -------
    Tensor [..., n] int64

    Raises
    ------
    ValueError
        If it is not square, holds anything but 0 and 1, or has a cycle.

    Examples
    --------
    >>> topological_depth(line_dag(3)).tolist()
    [0, 1, 2]
    """
    edges = adjacency.detach()
    if edges.ndim < 2 or edges.shape[-1] != edges.shape[-2]:
        raise ValueError(f"adjacency: expected [..., n, n], got {tuple(edges.shape)}")
    if not bool(((edges == 0) | (edges == 1)).all()):
        raise ValueError("adjacency: expected zeros and ones only; try hard=True")
    edges = edges.float()
    ends = torch.ones_like(edges[..., :1, :])  # agents in which a path of this length ends
    depth = torch.zeros_like(edges[..., 0, :], dtype=torch.int64)
    for _ in range(edges.shape[-1]):
        ends = (ends @ edges > 0).to(edges.dtype)
        if not bool(ends.any()):
            return depth
        depth += ends[..., 0, :] > 0
    raise ValueError("adjacency: expected no cycle, got one; try an upper triangular matrix")


def _checked(n_agents: int) -> int:
    if n_agents < 2:
        raise ValueError(f"n_agents: expected at least 2, got {n_agents}")
    return n_agents
