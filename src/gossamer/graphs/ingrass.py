"""inGRASS: clusters of small resistance, found once, decide which inserted edges to keep."""
# pyright: reportOptionalSubscript=false
# scipy carries no types, and what is inferred lets a matrix have no shape.

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array, diags_array, eye_array

from gossamer.graphs.formats import as_adjacency
from gossamer.graphs.grass import spectral_sparsify
from gossamer.graphs.storage import (
    Floats,
    Ints,
    SlottedGraph,
    UpdateReport,
    distinct_pairs,
    ragged,
    weighted_batch,
)

SMOOTHING_STEPS, KEPT_EVERY = 300, 20


class InGRASS:
    """Sparsifier under insertions that keeps one edge between two clusters.

    Set-up: the sparsifier's vertices are matched into clusters of growing resistance diameter,
    level by level, by low-resistance edges; resistances come from 15 smoothed random vectors.
    Update: an edge between two clusters that the sparsifier joins already gives its weight to
    the edges there; any other edge is added, even one that the graph had and H did not.

    Based on "inGRASS: Incremental Graph Spectral Sparsification via Low-Resistance-Diameter
    Decomposition" (arXiv 2402.16990) and its code. Insertions only. Weights change, so judge it
    by the whole condition number, never by the largest eigenvalue alone.

    Parameters
    ----------
    graph : adjacency as `as_adjacency` takes it
    sparsifier : adjacency, optional
        On the same vertices; GRASS at density 1.1 by default.
    target_condition : float
        C; clusters of the filtering level have fewer than C / 2 vertices (the paper tunes it
        to each graph).
    seed : int

    Examples
    --------
    >>> ring = csr_array(np.roll(np.eye(40), 1, 1) + np.roll(np.eye(40), -1, 1))
    >>> live = InGRASS(ring, ring, target_condition=8)
    >>> live.insert([[0, 20]], [1.0]).added
    1
    """

    def __init__(
        self,
        graph: Any,
        sparsifier: Any = None,
        *,
        target_condition: float,
        seed: int = 0,
    ) -> None:
        if not target_condition >= 1:
            raise ValueError(f"expected target_condition of at least 1, got {target_condition}")
        adjacency = as_adjacency(graph)
        start = (
            spectral_sparsify(adjacency, density=1.1, seed=seed)
            if sparsifier is None
            else as_adjacency(sparsifier)
        )
        if start.shape != adjacency.shape:
            raise ValueError(
                f"expected a sparsifier of {adjacency.shape[0]} vertices, got {start.shape[0]}"
            )
        self._graph = SlottedGraph(adjacency)
        self._levels = _clusters(start, seed)
        sizes = np.array([np.bincount(labels).max(initial=0) for labels in self._levels])
        self._cluster = self._levels[np.flatnonzero(sizes < max(2, ceil(target_condition / 2)))[-1]]
        upper = start.tocoo()
        kept = np.flatnonzero(upper.row < upper.col)
        ends = np.stack([upper.row[kept], upper.col[kept]], axis=1).astype(np.int64)
        distinct, bucket = distinct_pairs(np.sort(self._cluster[ends], 1), len(self._cluster))
        order = np.argsort(bucket, kind="stable")
        self._ends, self._weight = ends[order], upper.data[kept][order]
        self._count = np.bincount(bucket, minlength=len(distinct))
        self._first = np.cumsum(self._count) - self._count
        keys = distinct[:, 0] * len(self._cluster) + distinct[:, 1]
        self._bucket = dict(zip(keys.tolist(), range(len(keys)), strict=True))

    @property
    def graph(self) -> csr_array:
        """Adjacency [n, n] of the graph as it is now."""
        return self._graph.to_csr()

    @property
    def sparsifier(self) -> csr_array:
        """Adjacency [n, n] of the sparsifier as it is now."""
        shape = (self._graph.vertices, self._graph.vertices)
        upper = coo_array((self._weight, (self._ends[:, 0], self._ends[:, 1])), shape=shape)
        return csr_array(upper + upper.T)

    def insert(self, edges: ArrayLike, weights: ArrayLike | None = None) -> UpdateReport:
        """Insert one batch of edges.

        Parameters
        ----------
        edges : array [count, 2] int
        weights : array [count], optional
            Ones by default. Weights of an edge given twice, or known already, add up.

        Returns
        -------
        UpdateReport

        Raises
        ------
        TypeError, ValueError
            If an id or weight does not fit; nothing is changed then.
        """
        pairs, weight = weighted_batch(edges, weights, self._graph.vertices)
        known = self._graph.has(pairs)
        self._graph.increase(pairs[known], weight[known])
        self._graph.add(pairs[~known], weight[~known])
        # From the most global to the most local: by the level that first unites the ends.
        apart = sum(labels[pairs[:, 0]] != labels[pairs[:, 1]] for labels in self._levels)
        order = np.argsort(-np.asarray(apart), kind="stable")
        pairs, weight = pairs[order], weight[order]
        joined = np.sort(self._cluster[pairs], axis=1)
        keys = (joined[:, 0] * len(self._cluster) + joined[:, 1]).tolist()
        fresh = [i for i, key in enumerate(keys) if self._seen(key)]
        share = np.bincount(
            [self._bucket[key] for key in keys], weight, minlength=len(self._bucket)
        )
        self._ends = np.concatenate([self._ends, pairs[fresh]])
        self._weight = np.concatenate([self._weight, np.zeros(len(fresh))])
        self._first = np.concatenate(
            [self._first, len(self._ends) - len(fresh) + np.arange(len(fresh))]
        )
        self._count = np.concatenate([self._count, np.ones(len(fresh), dtype=np.int64)])
        touched = np.flatnonzero(share)
        members = ragged(self._first[touched], self._count[touched])
        self._weight[members] += np.repeat(
            share[touched] / self._count[touched], self._count[touched]
        )
        return UpdateReport(
            added=len(fresh),
            dropped=len(pairs) - len(set(fresh) | set(np.flatnonzero(known[order]).tolist())),
            reweighted=int(known.sum()),
        )

    def _seen(self, key: int) -> bool:
        """Give `key` a bucket if it has none, and tell whether that was so."""
        if key in self._bucket:
            return False
        self._bucket[key] = len(self._bucket)
        return True


def _clusters(sparsifier: csr_array, seed: int) -> list[Ints]:
    """Cluster of every vertex at each level, the finest first."""
    n = sparsifier.shape[0]
    draw = np.random.default_rng(seed)
    label, diameter, adjacency = np.arange(n), np.zeros(n), sparsifier
    levels = [label]
    while adjacency.shape[0] > ceil(0.01 * n) and adjacency.nnz:
        edges = adjacency.tocoo()
        upper = np.flatnonzero(edges.row < edges.col)
        row, col, weight = edges.row[upper], edges.col[upper], edges.data[upper]
        united = _resistances(adjacency, row, col, weight, draw) + diameter[row] + diameter[col]
        parent, diameter = _match(row, col, united, diameter)
        inside = csr_array(
            (np.ones(len(parent)), (np.arange(len(parent)), parent)),
            shape=(len(parent), len(diameter)),
        )
        adjacency = csr_array(inside.T @ adjacency @ inside)
        adjacency.setdiag(0)
        adjacency.eliminate_zeros()
        label = parent[label]
        levels.append(label)
    return levels


def _resistances(
    adjacency: csr_array, row: Ints, col: Ints, weight: Any, draw: np.random.Generator
) -> Floats:
    """Resistance of each edge in the space of smoothed random vectors."""
    n = adjacency.shape[0]
    lazy = adjacency + 0.1 * eye_array(n)
    scale = diags_array(1 / np.sqrt(lazy.sum(axis=1)))
    smooth = csr_array(scale @ lazy @ scale)
    x = draw.uniform(-1, 1, n)
    x -= x.mean()
    kept = []
    for step in range(1, SMOOTHING_STEPS + 1):
        x = smooth @ x
        if step % KEPT_EVERY == 0:
            centred = x - x.mean()
            kept.append(centred / max(np.linalg.norm(centred), np.finfo(float).tiny))
    basis = np.linalg.qr(np.stack(kept, axis=1))[0]
    squared = (basis[row] - basis[col]) ** 2
    energy = weight @ squared
    return (squared[:, energy > 0] / energy[energy > 0]).sum(1)


def _match(row: Ints, col: Ints, united: Floats, diameter: Floats) -> tuple[Ints, Floats]:
    """Unite pairs greedily by least diameter; return the new cluster of each, and its diameter.

    An edge that is the first of both its ends is one that the greedy pass takes, so each round
    takes all of those and drops their neighbours; a handful of rounds does it.
    """
    order = np.argsort(united, kind="stable")
    row, col, united = row[order], col[order], united[order]
    vertex = np.arange(len(diameter))
    mate, grown, first = vertex.copy(), diameter.copy(), vertex.copy()
    while len(row):
        place = np.arange(len(row))
        ends = np.stack([row, col], axis=1).ravel()
        first[ends[::-1]] = place.repeat(2)[::-1]  # of several, the last written stays
        taken = (first[row] == place) & (first[col] == place)
        p, q = row[taken], col[taken]
        mate[p], mate[q], grown[np.minimum(p, q)] = q, p, united[taken]
        free = (mate[row] == row) & (mate[col] == col)
        row, col, united = row[free], col[free], united[free]
    leaders, parent = np.unique(np.minimum(vertex, mate), return_inverse=True)
    return parent, grown[leaders]
