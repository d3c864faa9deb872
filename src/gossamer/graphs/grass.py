"""GRASS: a spanning tree, and the off-tree edges that distort the spectrum most."""
# pyright: reportOptionalSubscript=false
# scipy carries no types, and what is inferred lets a matrix have no shape.

from math import ceil, log2
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree

from gossamer.graphs.formats import as_adjacency
from gossamer.graphs.spectrum import GroundedSolver, check_connected, relative_condition_number
from gossamer.graphs.storage import Floats, Ints, distinct_pairs


def spectral_sparsify(
    graph: Any,
    *,
    density: float | None = None,
    target_condition: float | None = None,
    similarity_radius: int = 2,
    rounds: int = 10,
    power_steps: int = 2,
    seed: int = 0,
) -> csr_array:
    """Keep a spanning tree and the edges most critical to the spectrum, with their weights.

    Random vectors h, after a few generalised power steps h <- L_H^+ L_G h, are large where G and
    its sparsifier H disagree; an edge's heat is w (h_p - h_q)^2, summed over them. In each round
    the hottest edges are taken, none near one already taken.

    Based on "GRASS: Graph Spectral Sparsification Leveraging Scalable Spectral Perturbation
    Analysis" (arXiv 1911.04382), reconstructed from its description: the released program is
    closed. The tree is feGRASS's, of greatest effective weight.

    Parameters
    ----------
    graph : adjacency as `as_adjacency` takes it
        Connected, n vertices.
    density : float
        Edges to keep, over n; a tree has (n - 1) / n.
    target_condition : float
        Or: add n / 100 edges a round until the condition number is at most this.
    similarity_radius : int
        Hops in H around a taken edge within which no edge is taken in the same round
        (2: larger changes nothing, without it the result is several times worse).
    rounds : int
        Rounds to reach `density`, each with an equal share.
    power_steps : int
    seed : int

    Returns
    -------
    csr_array [n, n]
        Adjacency of the sparsifier.

    Raises
    ------
    ValueError
        If the graph is not connected, not exactly one of `density` and `target_condition` is
        given, or an option is out of range.

    Examples
    --------
    >>> grid = csr_array(np.kron(np.eye(8), np.eye(8, k=1)) + np.kron(np.eye(8, k=1), np.eye(8)))
    >>> spectral_sparsify(grid + grid.T, density=1.25).nnz // 2
    80
    """
    adjacency = as_adjacency(graph)
    n = adjacency.shape[0]
    check_connected(adjacency)
    if (density is None) == (target_condition is None):
        raise ValueError("expected one of density and target_condition, got both or neither")
    if density is not None and not (n - 1) / n <= density < float("inf"):
        raise ValueError(f"expected density of at least a tree's, {(n - 1) / n}, got {density}")
    if target_condition is not None and not target_condition >= 1:
        raise ValueError(f"expected target_condition of at least 1, got {target_condition}")
    if similarity_radius < 0 or rounds < 1 or power_steps < 1:
        raise ValueError(
            f"expected similarity_radius >= 0, rounds >= 1 and power_steps >= 1, got "
            f"{similarity_radius}, {rounds} and {power_steps}"
        )
    kept, spare = _split(adjacency, spanning_tree(adjacency))
    budget = len(kept.row) + len(spare.row)
    share = max(1, n // 100)
    if density is not None:
        budget = min(budget, round(density * n))
        share = max(1, ceil((budget - len(kept.row)) / rounds))
    draw = np.random.default_rng(seed)
    while (missing := budget - len(kept.row)) > 0:
        sparsifier = _symmetric(kept)
        if target_condition is not None:
            spectrum = relative_condition_number(adjacency, sparsifier)
            if spectrum.condition <= target_condition:
                break
        order = np.argsort(-_heat(adjacency, sparsifier, spare, power_steps, draw), kind="stable")
        taken = _apart(sparsifier, spare, order, similarity_radius, min(share, missing))
        kept, spare = _move(kept, spare, taken)
    return _symmetric(kept)


def spanning_tree(adjacency: csr_array) -> Ints:
    """Return the edges [n - 1, 2] of feGRASS's spanning tree of a connected graph.

    It has the greatest sum of w ln(larger degree) / (hops of both ends to a central vertex).
    """
    centre = _centre(adjacency)
    hops = dijkstra(adjacency, indices=centre, unweighted=True)
    degree = np.diff(adjacency.indptr)
    edges = adjacency.tocoo()
    worth = edges.data * np.log(np.maximum(degree[edges.row], degree[edges.col]).clip(min=2))
    worth = worth / (hops[edges.row] + hops[edges.col])
    tree = minimum_spanning_tree(
        csr_array((worth.max(initial=1.0) / worth, (edges.row, edges.col)), adjacency.shape)
    ).tocoo()
    ends = np.stack([tree.row, tree.col], axis=1).astype(np.int64)
    return distinct_pairs(np.sort(ends, axis=1), adjacency.shape[0])[0]


def _centre(adjacency: csr_array) -> int:
    """A vertex in the middle of a longest shortest path, found by two sweeps."""
    far = int(dijkstra(adjacency, indices=0, unweighted=True).argmax())
    hops = dijkstra(adjacency, indices=far, unweighted=True)
    back = dijkstra(adjacency, indices=int(hops.argmax()), unweighted=True)
    return int(np.maximum(hops, back).argmin())


def _split(adjacency: csr_array, pairs: Ints) -> tuple[coo_array, coo_array]:
    """The upper triangle in two parts: the sorted `pairs`, and the rest."""
    n, every = adjacency.shape[0], adjacency.tocoo()
    upper = np.flatnonzero(every.row < every.col)
    keys = every.row[upper].astype(np.int64) * n + every.col[upper]
    inside = np.isin(keys, pairs[:, 0] * n + pairs[:, 1])
    return _take(every, upper[inside]), _take(every, upper[~inside])


def _take(edges: coo_array, chosen: Ints) -> coo_array:
    return coo_array((edges.data[chosen], (edges.row[chosen], edges.col[chosen])), edges.shape)


def _move(kept: coo_array, spare: coo_array, taken: Ints) -> tuple[coo_array, coo_array]:
    more = _take(spare, taken)
    row, col, data = (
        np.concatenate([getattr(kept, name), getattr(more, name)])
        for name in ("row", "col", "data")
    )
    rest = np.delete(np.arange(len(spare.row)), taken)
    return coo_array((data, (row, col)), kept.shape), _take(spare, rest)


def _symmetric(upper: coo_array) -> csr_array:
    return csr_array(upper + upper.T)


def _heat(
    adjacency: csr_array,
    sparsifier: csr_array,
    spare: coo_array,
    power_steps: int,
    draw: np.random.Generator,
) -> Floats:
    """How much each spare edge distorts the spectrum."""
    solver, n = GroundedSolver(sparsifier), adjacency.shape[0]
    degree = adjacency.sum(axis=1)[:, None]
    h = draw.standard_normal((n, ceil(log2(n))))
    for _ in range(power_steps):
        h = solver.solve(degree * h - adjacency @ h)
        h -= h.mean(0)
        h /= np.linalg.norm(h, axis=0)
    return spare.data * ((h[spare.row] - h[spare.col]) ** 2).sum(1)


def _apart(sparsifier: csr_array, spare: coo_array, order: Ints, radius: int, count: int) -> Ints:
    """The first `count` edges in `order` with no end near an edge taken before."""
    starts, neighbours = list(sparsifier.indptr), sparsifier.indices.tolist()
    near = bytearray(sparsifier.shape[0])
    taken: list[int] = []
    ends = zip(order.tolist(), spare.row[order].tolist(), spare.col[order].tolist(), strict=True)
    for edge, p, q in ends:
        if near[p] or near[q]:
            continue
        taken.append(edge)
        if len(taken) == count:
            break
        ball = front = {p, q}
        for _ in range(radius):
            front = {v for u in front for v in neighbours[starts[u] : starts[u + 1]]} - ball
            ball = ball | front
        for v in ball:
            near[v] = 1
    return np.array(taken, dtype=np.int64)
