"""Graphs to test sparsifiers on, and dense oracles of their spectra."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

WEIGHTS = (0.25, 0.5, 1.0, 1.7, 3.0)


def connected_graph(
    vertices: int, extra: int, *, seed: int = 0, weighted: bool = True
) -> csr_array:
    """Return a random tree with up to `extra` more edges, weights out of a few values.

    Parameters
    ----------
    vertices : int
    extra : int
        Edges drawn besides the tree; those drawn twice count once.
    seed : int
    weighted : bool
        Ones otherwise.

    Returns
    -------
    csr_array [vertices, vertices]

    Examples
    --------
    >>> connected_graph(5, 0).nnz
    8
    """
    draw = np.random.default_rng(seed)
    edges = {(int(draw.integers(v)), v) for v in range(1, vertices)}
    for u, v in draw.integers(vertices, size=(extra, 2)).tolist():
        if u != v:
            edges.add((min(u, v), max(u, v)))
    ends = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    weight = draw.choice(WEIGHTS, len(ends)) if weighted else np.ones(len(ends))
    upper = coo_array((weight, (ends[:, 0], ends[:, 1])), shape=(vertices, vertices))
    return csr_array(upper + upper.T)


def edge_set(adjacency: csr_array) -> dict[tuple[int, int], float]:
    """Return {(smaller, larger vertex): weight}.

    Examples
    --------
    >>> edge_set(connected_graph(2, 0, weighted=False))
    {(0, 1): 1.0}
    """
    entries = coo_array(adjacency)
    listed = zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist(), strict=True)
    return {(u, v): w for u, v, w in listed if u < v}


def dense_laplacian(adjacency: csr_array) -> NDArray[np.float64]:
    """Return D - A, dense."""
    dense = adjacency.toarray()
    return np.diag(dense.sum(0)) - dense


def dense_resistance(adjacency: csr_array) -> NDArray[np.float64]:
    """Return all effective resistances [n, n] by the pseudo-inverse of the Laplacian."""
    inverse = np.linalg.pinv(dense_laplacian(adjacency), hermitian=True)
    diagonal = np.diag(inverse)
    return diagonal[:, None] + diagonal[None, :] - 2 * inverse


def dense_relative_spectrum(graph: csr_array, sparsifier: csr_array) -> tuple[float, float]:
    """Return the extreme eigenvalues of L_H^+/2 L_G L_H^+/2 off the constant vector."""
    values, vectors = np.linalg.eigh(dense_laplacian(sparsifier))
    root = vectors[:, 1:] / np.sqrt(values[1:])  # connected: one zero eigenvalue
    found = np.linalg.eigvalsh(root.T @ dense_laplacian(graph) @ root)
    return float(found[0]), float(found[-1])
