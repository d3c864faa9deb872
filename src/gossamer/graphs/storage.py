"""A weighted graph that takes edges and gives them up again, at the cost of the rows touched."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from gossamer.kernels import WalkGraph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UpdateReport:
    """What one batch of insertions or deletions did to a sparsifier.

    Parameters
    ----------
    added : int
        Inserted edges that the sparsifier took.
    dropped : int
        Inserted edges that it did not need.
    reweighted : int
        Inserted edges that the graph had already; their weight was added to the old one.
    removed : int
        Edges deleted from the graph.
    skipped : int
        Deletions of edges that the graph does not have.
    recovered : int
        Edges of the graph added to the sparsifier because a walk around a deleted edge took them.
    fallback : int
        Edges added where no walk arrived, by short walks from both ends or a shortest path.
    components : int or None
        Connected components of the graph, counted only when no walk around an edge arrived.
    """

    added: int = 0
    dropped: int = 0
    reweighted: int = 0
    removed: int = 0
    skipped: int = 0
    recovered: int = 0
    fallback: int = 0
    components: int | None = None


def edge_pairs(edges: ArrayLike, vertices: int) -> Ints:
    """Return edges [count, 2] int64 with the smaller vertex first.

    Raises
    ------
    TypeError
        If the ids are not integers.
    ValueError
        If the shape is another, an id is out of range or an edge joins a vertex with itself.
    """
    pairs = np.asarray(edges)
    if pairs.size == 0:
        pairs = pairs.reshape(0, 2).astype(np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"expected edges to be [count, 2], got {list(pairs.shape)}; try edge_index.T"
        )
    if not np.issubdtype(pairs.dtype, np.integer):
        raise TypeError(f"expected integer vertex ids, got {pairs.dtype}")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < vertices:
        raise ValueError(
            f"expected vertex ids in 0..{vertices - 1}, got {pairs.min()}..{pairs.max()}"
        )
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        loop = int(pairs[pairs[:, 0] == pairs[:, 1]][0, 0])
        raise ValueError(f"expected edges between two vertices, got a self-loop at {loop}")
    return np.sort(pairs.astype(np.int64), axis=1)


def weighted_batch(
    edges: ArrayLike, weights: ArrayLike | None, vertices: int
) -> tuple[Ints, Floats]:
    """Return a batch's distinct edges, sorted, and the sum of the weights given for each.

    Raises
    ------
    ValueError
        As `edge_pairs` does, or if a weight is not positive and finite.
    """
    pairs = edge_pairs(edges, vertices)
    given = np.ones(len(pairs)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (len(pairs),):
        raise ValueError(f"expected weights to be [{len(pairs)}], got {list(given.shape)}")
    if not bool((np.isfinite(given) & (given > 0)).all()):
        raise ValueError("expected positive, finite weights, got at least one other")
    distinct, place = distinct_pairs(pairs, vertices)
    summed = np.bincount(place, given, minlength=len(distinct))  # of ints when empty
    return distinct, summed.astype(np.float64)


def distinct_pairs(pairs: Ints, vertices: int) -> tuple[Ints, Ints]:
    """Return the distinct pairs, sorted, and the place of each given pair among them."""
    keys, place = np.unique(pairs[:, 0] * vertices + pairs[:, 1], return_inverse=True)
    return np.stack(np.divmod(keys, max(1, vertices)), axis=1), place


def ragged(starts: Ints, counts: Ints) -> Ints:
    """Concatenate the ranges [start, start + count).

    Examples
    --------
    >>> ragged(np.array([5, 1]), np.array([2, 3])).tolist()
    [5, 6, 1, 2, 3]
    """
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


class SlottedGraph:
    """Adjacency rows with room to grow, each sorted by neighbour.

    A batch rewrites the rows it touches and no other; a full row moves to the end with twice its
    size. The rows, and so the walks over them, depend on the graph alone and not on its history.

    Parameters
    ----------
    adjacency : csr_array [n, n]
        Symmetric, positive, without diagonal.

    Examples
    --------
    >>> graph = SlottedGraph(csr_array(np.array([[0.0, 2, 0], [2, 0, 1], [0, 1, 0]])))
    >>> graph.add(np.array([[0, 2]]), np.array([5.0]))
    >>> graph.remove(np.array([[0, 1]]))
    >>> graph.to_csr().toarray().tolist()
    [[0.0, 0.0, 5.0], [0.0, 0.0, 1.0], [5.0, 1.0, 0.0]]
    """

    def __init__(self, adjacency: csr_array) -> None:
        degree = np.diff(adjacency.indptr).astype(np.int64)
        self.rows = np.stack([adjacency.indptr[:-1].astype(np.int64), degree], axis=1)
        self._room = degree.copy()
        self._used = len(adjacency.data)
        self.neighbour = adjacency.indices.astype(np.int32)
        self.weight = adjacency.data.astype(np.float64)
        self.resistance = (1 / self.weight).astype(np.float32)

    @property
    def vertices(self) -> int:
        """Number of vertices."""
        return len(self.rows)

    @property
    def edges(self) -> int:
        """Number of undirected edges."""
        return int(self.rows[:, 1].sum()) // 2

    def find(self, source: Ints, target: Ints) -> Ints:
        """Return the slot of each (source, target), -1 where there is no such edge."""
        low, high = self.rows[source, 0], self.rows[source].sum(1)
        end = high
        while bool((low < high).any()):  # bisection, all rows at once
            middle = (low + high) // 2
            open_ = low < high
            below = open_ & (self.neighbour[np.where(open_, middle, 0)] < target)
            low, high = np.where(below, middle + 1, low), np.where(open_ & ~below, middle, high)
        inside = low < end
        found = inside & (self.neighbour[np.where(inside, low, 0)] == target if inside.any() else 0)
        return np.where(found, low, -1)

    def has(self, pairs: Ints) -> NDArray[np.bool_]:
        """Return which pairs [count, 2] are edges."""
        return self.find(pairs[:, 0], pairs[:, 1]) >= 0

    def weights(self, pairs: Ints) -> Floats:
        """Return the weights of edges that exist."""
        return self.weight[self.find(pairs[:, 0], pairs[:, 1])]

    def increase(self, pairs: Ints, weights: Floats) -> None:
        """Add to the weights of distinct edges that exist."""
        for source, target in (pairs.T, pairs.T[::-1]):
            slots = self.find(source, target)
            self.weight[slots] += weights
            self.resistance[slots] = 1 / self.weight[slots]

    def add(self, pairs: Ints, weights: Floats) -> None:
        """Add distinct edges that do not exist."""
        self._rewrite(np.concatenate([pairs, pairs[:, ::-1]]), np.concatenate([weights, weights]))

    def remove(self, pairs: Ints) -> None:
        """Remove distinct edges that exist."""
        both = np.concatenate([pairs, pairs[:, ::-1]])
        self.neighbour[self.find(both[:, 0], both[:, 1])] = -1
        self._rewrite(both, None)

    def _rewrite(self, arcs: Ints, weights: Floats | None) -> None:
        """Write the rows of `arcs` [count, 2] anew, with them or without what is marked."""
        touched = np.unique(arcs[:, 0])
        slots = ragged(self.rows[touched, 0], self.rows[touched, 1])
        row = np.repeat(touched, self.rows[touched, 1])
        kept = self.neighbour[slots] >= 0
        slots, row = slots[kept], row[kept]
        neighbour, weight = self.neighbour[slots], self.weight[slots]
        if weights is not None:
            row = np.concatenate([row, arcs[:, 0]])
            neighbour = np.concatenate([neighbour, arcs[:, 1].astype(np.int32)])
            weight = np.concatenate([weight, weights])
        order = np.lexsort((neighbour, row))
        degree = np.bincount(np.searchsorted(touched, row), minlength=len(touched))
        self._make_room(touched, degree)
        self.rows[touched, 1] = degree
        slots = ragged(self.rows[touched, 0], degree)
        self.neighbour[slots] = neighbour[order]
        self.weight[slots] = weight[order]
        self.resistance[slots] = 1 / weight[order]

    def _make_room(self, touched: Ints, degree: Ints) -> None:
        """Move the rows that are too small for their new degree to the end."""
        full = touched[degree > self._room[touched]]
        self._room[full] = 2 * degree[degree > self._room[touched]]
        ends = self._used + np.cumsum(self._room[full])
        self.rows[full, 0] = ends - self._room[full]
        self._used = int(ends[-1]) if len(ends) else self._used
        if self._used > len(self.neighbour):
            size = 3 * self._used // 2
            for name in ("neighbour", "weight", "resistance"):
                old = getattr(self, name)
                new = np.zeros(size, dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)

    def to_csr(self) -> csr_array:
        """Return the adjacency matrix [n, n], float64, rows sorted."""
        slots = ragged(self.rows[:, 0], self.rows[:, 1])
        starts = np.concatenate([[0], np.cumsum(self.rows[:, 1])])
        shape = (self.vertices, self.vertices)
        return csr_array((self.weight[slots], self.neighbour[slots], starts), shape=shape)

    def walk_graph(self, device: torch.device | str = "cpu") -> WalkGraph:
        """Return the rows for `random_walks`; on the CPU they share this graph's memory."""
        rows, neighbour, resistance = (
            torch.from_numpy(part).to(device)
            for part in (self.rows, self.neighbour, self.resistance)
        )
        return WalkGraph(rows, neighbour, resistance)
