"""Walk at random, never straight back, from one end of an edge until the other end is met."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.random_walks import reference

Report = Literal["first", "best"]
REPORTS: tuple[Report, ...] = ("first", "best")
MOST_STEPS = 2**20  # float32 sums of more resistances would not be bounds any more


@dataclass(frozen=True, eq=False)
class WalkGraph:
    """A simple undirected graph as rows of slots, both directions of every edge stored.

    Parameters
    ----------
    rows : Tensor [vertices, 2] int64
        First slot and degree of each vertex; slots between rows may be unused.
    neighbour : Tensor [slots] int32
    resistance : Tensor [slots] float32
        One over the weight of the edge.

    Examples
    --------
    >>> path = WalkGraph(  # 0 - 1 - 2
    ...     torch.tensor([[0, 1], [1, 2], [3, 1]]),
    ...     torch.tensor([1, 0, 2, 1], dtype=torch.int32), torch.ones(4),
    ... )
    >>> path.rows.shape[0]
    3
    """

    rows: Tensor
    neighbour: Tensor
    resistance: Tensor

    def __post_init__(self) -> None:
        expected = {
            "rows": (torch.int64, (self.rows.shape[0] if self.rows.ndim else 0, 2)),
            "neighbour": (torch.int32, (self.neighbour.numel(),)),
            "resistance": (torch.float32, (self.neighbour.numel(),)),
        }
        for name, (dtype, shape) in expected.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.shape != shape:
                raise ValueError(
                    f"expected {name} to be {dtype} {list(shape)}, got {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )


@dataclass(frozen=True, eq=False)
class Walks:
    """The walker that stands for each edge.

    Parameters
    ----------
    resistance : Tensor [edges] float32
        Of its path, an upper bound on the effective resistance; inf where no walker arrived.
    walker : Tensor [edges] int32
        Its number, -1 where none arrived.
    steps : Tensor [edges] int32
        Edges of its path, 0 where none arrived.
    """

    resistance: Tensor
    walker: Tensor
    steps: Tensor


def random_walks(
    graph: WalkGraph,
    source: Tensor,
    target: Tensor,
    *,
    limit: Tensor | None = None,
    walkers: int = 512,
    max_steps: int = 100,
    report: Report = "best",
    seed: int = 0,
    impl: backend.Impl = "auto",
) -> Walks:
    """Send walkers from each source and report one that met the target.

    A walker takes each neighbour but the one it comes from with equal probability, adds up the
    resistance of its edges, and dies in a dead end, after `max_steps`, or when its sum reaches
    `limit`. What it draws depends on (seed, source, target, walker, step) alone, so threads,
    devices, implementations and the other edges of a call change nothing.

    Parameters
    ----------
    graph : WalkGraph
    source, target : Tensor [edges] int64
        Two different vertices each.
    limit : Tensor [edges] float32, optional
        Resistance that no path may reach; none by default.
    walkers, max_steps : int
        For each edge (the authors' code: 512 and 100).
    report : {"best", "first"}
        The walker of least resistance, or the first to arrive, by number in both cases where
        there is a choice. "first" answers whether any arrives, and stops there.
    seed : int
    impl : {"auto", "reference", "cpu", "triton"}

    Returns
    -------
    Walks

    Raises
    ------
    ValueError, TypeError
        If shapes, vertices or options do not fit.

    Examples
    --------
    >>> triangle = WalkGraph(
    ...     torch.tensor([[0, 2], [2, 2], [4, 2]]),
    ...     torch.tensor([1, 2, 0, 2, 0, 1], dtype=torch.int32), torch.ones(6),
    ... )
    >>> random_walks(triangle, torch.tensor([0]), torch.tensor([1])).resistance
    tensor([1.])
    """
    _check(graph, source, target, seed)
    if not 1 <= walkers < 2**31 or not 1 <= max_steps <= MOST_STEPS:
        raise ValueError(
            f"expected walkers >= 1 and max_steps in 1..{MOST_STEPS}, got {walkers} and {max_steps}"
        )
    if report not in REPORTS:
        raise ValueError(f"expected report to be one of {', '.join(REPORTS)}, got {report!r}")
    if limit is None:
        limit = torch.full_like(source, torch.inf, dtype=torch.float32)
    elif limit.shape != source.shape or limit.dtype != torch.float32:
        raise ValueError(
            f"expected limit to be float32 {list(source.shape)}, got {limit.dtype} "
            f"{list(limit.shape)}"
        )
    return Walks(
        *torch.ops.gossamer.random_walks(
            graph.rows.contiguous(),
            graph.neighbour.contiguous(),
            graph.resistance.contiguous(),
            source.contiguous(),
            target.contiguous(),
            limit.contiguous(),
            walkers,
            max_steps,
            report == "best",
            seed,
            backend.choose(impl, graph.rows.device),
        )
    )


def trace_walks(
    graph: WalkGraph,
    source: Tensor,
    target: Tensor,
    walker: Tensor,
    *,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """Return the vertices that single walkers of `random_walks` pass, the target or not.

    Parameters
    ----------
    graph : WalkGraph
    source, target : Tensor [walks] int64
        The target only names the draws; nothing stops there.
    walker : Tensor [walks] int
        Numbers of the walkers.
    steps : int
        Edges to follow.
    seed : int

    Returns
    -------
    Tensor [walks, steps + 1] int64
        The source first, -1 after a dead end.

    Examples
    --------
    >>> path = WalkGraph(
    ...     torch.tensor([[0, 1], [1, 2], [3, 1]]),
    ...     torch.tensor([1, 0, 2, 1], dtype=torch.int32), torch.ones(4),
    ... )
    >>> trace_walks(path, torch.tensor([0]), torch.tensor([2]), torch.tensor([5]), steps=3)
    tensor([[ 0,  1,  2, -1]])
    """
    _check(graph, source, target, seed)
    if walker.shape != source.shape or steps < 0:
        raise ValueError(
            f"expected walker of shape {list(source.shape)} and steps >= 0, got "
            f"{list(walker.shape)} and {steps}"
        )
    return reference.trace(graph.rows, graph.neighbour, source, target, walker.long(), steps, seed)


def _check(graph: WalkGraph, source: Tensor, target: Tensor, seed: int) -> None:
    for name, end in (("source", source), ("target", target)):
        if end.ndim != 1 or end.dtype != torch.int64 or end.shape != source.shape:
            raise ValueError(
                f"expected {name} to be int64 [{source.numel()}], got {end.dtype} {list(end.shape)}"
            )
        if end.device != graph.rows.device:
            raise ValueError(
                f"expected one device, got the graph on {graph.rows.device}, {name} on {end.device}"
            )
    vertices = graph.rows.shape[0]
    ends = torch.stack([source, target])
    if bool(((ends < 0) | (ends >= vertices)).any()) or bool((source == target).any()):
        raise ValueError(f"expected two different vertices below {vertices} for every edge")
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected seed in 0..2**63 - 1, got {seed}")


def _empty(
    rows: Tensor, neighbour: Tensor, resistance: Tensor, source: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(source, dtype=torch.float32),
        torch.empty_like(source, dtype=torch.int32),
        torch.empty_like(source, dtype=torch.int32),
    )


def _run(
    rows: Tensor,
    neighbour: Tensor,
    resistance: Tensor,
    source: Tensor,
    target: Tensor,
    limit: Tensor,
    walkers: int,
    max_steps: int,
    best: bool,
    seed: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    found = _empty(rows, neighbour, resistance, source)
    problem = (rows, neighbour, resistance, source, target, limit)
    if impl == "cpu":
        threads = torch.get_num_threads()
        backend.launch("random_walks", *problem, walkers, max_steps, best, seed, *found, threads)
    elif impl == "triton":
        from gossamer.kernels.random_walks import triton

        triton.search(*problem, walkers, max_steps, best, seed, *found)
    else:
        reference.search(*problem, walkers, max_steps, best, seed, *found)
    return found


register(
    "random_walks(Tensor rows, Tensor neighbour, Tensor resistance, Tensor source, "
    "Tensor target, Tensor limit, int walkers, int max_steps, bool best, int seed, str impl) "
    "-> (Tensor, Tensor, Tensor)",
    _run,
    _empty,
)
