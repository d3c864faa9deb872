"""Graphs and streams of edges for experiments on sparsifiers; needs SciPy."""

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.spatial import Delaunay

from gossamer.graphs import as_adjacency
from gossamer.graphs.storage import Ints


def delaunay(vertices: int, *, seed: int = 0) -> csr_array:
    """Return the Delaunay triangulation of uniform points in a square, with unit weights.

    The DIMACS family delaunay_nXX is made like this.

    Parameters
    ----------
    vertices : int
    seed : int

    Returns
    -------
    csr_array [vertices, vertices]

    Examples
    --------
    >>> delaunay(100).shape
    (100, 100)
    """
    points = np.random.default_rng(seed).random((vertices, 2))
    corners = Delaunay(points).simplices
    ends = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]))
    ends = np.unique(ends, axis=0)
    upper = coo_array((np.ones(len(ends)), ends.T), shape=(vertices, vertices))
    return as_adjacency(upper + upper.T)


def walk_stream(graph: csr_array, count: int, *, steps: int | None, seed: int = 0) -> Ints:
    """Return new edges that join the ends of random walks, or any two vertices.

    Parameters
    ----------
    graph : csr_array [n, n]
        Connected; `count` must be far below the number of pairs within reach.
    count : int
        Edges, all different, none of them in the graph.
    steps : int, optional
        Of each walk; None joins uniformly random vertices.
    seed : int

    Returns
    -------
    ndarray [count, 2] int64
        Smaller vertex first, in random order.

    Raises
    ------
    ValueError
        If there seem to be fewer such pairs than `count`.

    Examples
    --------
    >>> walk_stream(delaunay(100), 30, steps=6).shape
    (30, 2)
    """
    draw, degree = np.random.default_rng(seed), np.diff(graph.indptr)
    n = len(degree)
    old = graph.tocoo()
    known = old.row.astype(np.int64) * n + old.col
    found = np.zeros(0, dtype=np.int64)
    for _ in range(100):
        source = draw.integers(n, size=2 * count)
        target = draw.integers(n, size=2 * count) if steps is None else source
        for _ in range(steps or 0):
            place = (draw.random(len(target)) * degree[target]).astype(np.int64)
            target = graph.indices[graph.indptr[target] + place]
        low, high = np.minimum(source, target).astype(np.int64), np.maximum(source, target)
        keys = (low * n + high)[low != high]
        found = np.unique(np.concatenate([found, keys[~np.isin(keys, known)]]))
        if len(found) >= count:
            return np.stack(np.divmod(draw.permutation(found)[:count], n), axis=1)
    raise ValueError(f"expected {count} new edges within reach, found {len(found)}; try fewer")
