"""Graphs in and out: scipy.sparse, torch, networkx, edge_index, Matrix Market and METIS."""
# pyright: reportOptionalSubscript=false
# scipy carries no types, and what is inferred lets a matrix have no shape.

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import mmwrite
from scipy.sparse import coo_array, csgraph, csr_array, issparse
from torch import Tensor

from gossamer.errors import FormatError


def as_adjacency(graph: Any) -> csr_array:
    """Return the adjacency matrix of an undirected, weighted graph.

    Parameters
    ----------
    graph : scipy.sparse array, sparse Tensor or networkx.Graph
        Symmetric [n, n] with positive weights. Parallel edges are summed. Nodes of a networkx
        graph are numbered in its own order; its "weight" attribute counts, 1 where absent.

    Returns
    -------
    csr_array [n, n] float64
        Rows sorted, no diagonal, nothing stored twice; a copy.

    Raises
    ------
    TypeError
        If `graph` is something else or complex.
    ValueError
        If it is not square or not symmetric, or a weight is not positive and finite.

    Warns
    -----
    UserWarning
        If self-loops are dropped.

    Examples
    --------
    >>> as_adjacency(csr_array(np.array([[0, 3], [3, 0]]))).toarray().tolist()
    [[0.0, 3.0], [3.0, 0.0]]
    """
    networkx = sys.modules.get("networkx")  # not imported yet: then `graph` is none of its own
    if networkx is not None and isinstance(graph, networkx.Graph):
        empty = coo_array((0, 0))  # which networkx refuses to convert
        graph = networkx.to_scipy_sparse_array(graph, format="coo") if len(graph) else empty
    elif isinstance(graph, Tensor) and graph.layout != torch.strided:
        parts = graph.detach().cpu().to_sparse_coo().coalesce()
        indices = parts.indices().numpy()
        graph = coo_array((parts.values().numpy(), (indices[0], indices[1])), tuple(graph.shape))
    if not issparse(graph):
        raise TypeError(
            f"expected a scipy.sparse array, a sparse tensor or a networkx graph, got "
            f"{type(graph).__name__}; try scipy.sparse.csr_array or from_edge_index"
        )
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"expected a square matrix, got {list(graph.shape)}")
    if np.iscomplexobj(graph):
        raise TypeError(f"expected real weights, got {graph.dtype}")
    entries = coo_array(graph)
    entries.data = entries.data.astype(np.float64)
    off = entries.row != entries.col
    if bool(entries.data[~off].any()):
        warnings.warn(
            f"dropped {np.count_nonzero(entries.data[~off])} self-loops: they touch no Laplacian",
            UserWarning,
            stacklevel=2,
        )
    if not bool((np.isfinite(entries.data[off]) & (entries.data[off] > 0)).all()):
        raise ValueError(
            "expected positive, finite weights, got at least one other; try eliminate_zeros() or, "
            "for a Laplacian, from_laplacian()"
        )
    kept = (entries.data[off], (entries.row[off], entries.col[off]))
    adjacency = csr_array(coo_array(kept, shape=graph.shape))
    adjacency.sum_duplicates()
    transposed = csr_array(adjacency.T)
    transposed.sort_indices()
    if (
        not np.array_equal(adjacency.indptr, transposed.indptr)
        or not np.array_equal(adjacency.indices, transposed.indices)
        or not np.allclose(adjacency.data, transposed.data, rtol=1e-10, atol=0)
    ):
        raise ValueError(
            "expected a symmetric matrix, got an asymmetric one; try (A + A.T) / 2, or both "
            "directions of every edge"
        )
    adjacency.data = (adjacency.data + transposed.data) / 2
    return adjacency


def laplacian(graph: Any) -> csr_array:
    """Return D - A of a graph as `as_adjacency` reads it.

    Returns
    -------
    csr_array [n, n] float64

    Examples
    --------
    >>> laplacian(csr_array(np.array([[0, 3], [3, 0]]))).toarray().tolist()
    [[3.0, -3.0], [-3.0, 3.0]]
    """
    return csr_array(csgraph.laplacian(as_adjacency(graph)))


def from_laplacian(matrix: Any) -> csr_array:
    """Return the adjacency matrix behind a Laplacian or another matrix of its sign pattern.

    The diagonal is ignored, so that a grounded (symmetric, diagonally dominant) matrix, such as
    the circuits of the SuiteSparse collection, gives its graph too.

    Raises
    ------
    TypeError, ValueError
        As `as_adjacency` does, of the negated off-diagonal part.

    Examples
    --------
    >>> from_laplacian(csr_array(np.array([[4, -3], [-3, 3]]))).toarray().tolist()
    [[0.0, 3.0], [3.0, 0.0]]
    """
    if not issparse(matrix):
        raise TypeError(f"expected a scipy.sparse array, got {type(matrix).__name__}")
    entries = coo_array(matrix)
    off = entries.row != entries.col
    data = (np.negative(entries.data[off]), (entries.row[off], entries.col[off]))
    return as_adjacency(coo_array(data, shape=matrix.shape))


def from_edge_index(
    edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
) -> csr_array:
    """Return the adjacency matrix of a PyTorch Geometric edge list with both directions.

    Parameters
    ----------
    edge_index : Tensor [2, E] int64
    edge_weight : Tensor [E], optional
        Ones by default.
    num_nodes : int, optional
        One more than the largest id by default.

    Raises
    ------
    ValueError
        If shapes or ids do not fit, or as `as_adjacency` does.

    Examples
    --------
    >>> from_edge_index(torch.tensor([[0, 1], [1, 0]])).toarray().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"expected edge_index to be int64 [2, E], got {edge_index.dtype} "
            f"{list(edge_index.shape)}"
        )
    count = edge_index.shape[1]
    weight = torch.ones(count) if edge_weight is None else edge_weight
    if weight.shape != (count,):
        raise ValueError(f"expected edge_weight to be [{count}], got {list(weight.shape)}")
    n = int(edge_index.max()) + 1 if num_nodes is None and count else num_nodes or 0
    if count and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n:
        raise ValueError(
            f"expected vertex ids in 0..{n - 1}, got {int(edge_index.min())}.."
            f"{int(edge_index.max())}"
        )
    ends = edge_index.cpu().numpy()
    values = weight.detach().cpu().double().numpy()
    return as_adjacency(coo_array((values, (ends[0], ends[1])), shape=(n, n)))


def to_edge_index(graph: Any) -> tuple[Tensor, Tensor]:
    """Return (edge_index [2, E] int64, edge_weight [E] float32) with both directions.

    Examples
    --------
    >>> to_edge_index(csr_array(np.array([[0, 3], [3, 0]])))
    (tensor([[0, 1],
            [1, 0]]), tensor([3., 3.]))
    """
    entries = coo_array(as_adjacency(graph))
    ends = np.stack([entries.row, entries.col]).astype(np.int64)
    return torch.from_numpy(ends), torch.from_numpy(entries.data).float()


def to_networkx(graph: Any) -> Any:
    """Return a networkx.Graph with "weight" attributes; needs networkx.

    Examples
    --------
    >>> to_networkx(csr_array(np.array([[0, 3], [3, 0]]))).edges[0, 1]
    {'weight': 3.0}
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs networkx: pip install gossamer[graphs]") from error
    return networkx.from_scipy_sparse_array(as_adjacency(graph))


def largest_component(graph: Any) -> csr_array:
    """Return the connected component with the most vertices, renumbered in order.

    Examples
    --------
    >>> two = csr_array(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    >>> largest_component(two).shape
    (2, 2)
    """
    adjacency = as_adjacency(graph)
    labels = csgraph.connected_components(adjacency, directed=False)[1]
    kept = np.flatnonzero(labels == np.bincount(labels).argmax()) if len(labels) else labels
    return adjacency[kept][:, kept]


def read_graph(path: Path | str) -> csr_array:
    """Read a graph from a Matrix Market (``.mtx``) or METIS (``.graph``, ``.metis``) file.

    A matrix without positive off-diagonal entries is taken for a Laplacian.

    Raises
    ------
    FormatError
        If the file does not hold an undirected graph in the format of its suffix.
    ValueError
        If the suffix is another.
    OSError
        If the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".mtx", ".graph", ".metis"):
        raise ValueError(f"expected a .mtx, .graph or .metis file, got {path.name!r}")
    size = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "dropped .* self-loops", UserWarning)
            return _read_mtx(path, size) if path.suffix == ".mtx" else _read_metis(path, size)
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError, UnicodeDecodeError, IndexError) as error:
        raise FormatError(path, str(error)) from error


def _read_mtx(path: Path, size: int) -> csr_array:
    """Read a coordinate matrix; scipy's own reader crashes on some damaged files."""
    with path.open(encoding="utf-8") as file:
        banner = file.readline().lower().split()
        line = file.readline()
        while line.startswith("%") or (line and not line.strip()):
            line = file.readline()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(banner) != 5:
            raise FormatError(path, "expected '%%MatrixMarket matrix coordinate ...' on top")
        field, symmetry = banner[3:]
        if field not in ("real", "integer", "pattern") or symmetry not in ("general", "symmetric"):
            raise FormatError(path, f"expected a real symmetric matrix, found {field} {symmetry}")
        rows, columns, entries = (int(word) for word in line.split())
        if rows != columns or not (0 <= rows <= size and 0 <= entries <= size):
            raise FormatError(
                path, f"found {rows} x {columns} with {entries} entries in {size} bytes"
            )
        width = 2 if field == "pattern" else 3
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data", UserWarning)
            table = np.loadtxt(file, comments="%", ndmin=2).reshape(-1, width)
    if len(table) != entries:
        raise FormatError(path, f"expected {entries} entries, found {len(table)}")
    ends, weight = table[:, :2], table[:, 2] if width == 3 else np.ones(entries)
    if not bool(((ends >= 1) & (ends <= rows) & (ends == np.floor(ends))).all()):
        raise FormatError(path, f"expected indices in 1..{rows}, found others")
    row, column = ends.T.astype(np.int64) - 1
    matrix = coo_array((weight, (row, column)), shape=(rows, rows))
    if symmetry == "symmetric":
        off = row != column
        mirrored = coo_array((weight[off], (column[off], row[off])), shape=(rows, rows))
        matrix = coo_array(matrix + mirrored)
    return (
        from_laplacian(matrix) if bool((weight[row != column] < 0).all()) else as_adjacency(matrix)
    )


def _read_metis(path: Path, size: int) -> csr_array:
    text = path.read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("%")]
    header = lines[0].split() if lines else []
    if not 2 <= len(header) <= 4 or not all(part.isascii() and part.isdigit() for part in header):
        raise FormatError(
            path, "expected 'vertices edges [format [constraints]]' in the first line"
        )
    n, edges = int(header[0]), int(header[1])
    kind = header[2].zfill(3) if len(header) > 2 else "000"
    if set(kind) - {"0", "1"} or len(kind) != 3:
        raise FormatError(path, f"expected a format of up to three binary digits, found {kind}")
    if max(n, edges) > size:
        raise FormatError(path, f"found {n} vertices and {edges} edges in {size} bytes")
    rows = lines[1 : n + 1]
    rows += [""] * (n - len(rows))  # trailing vertices without edges
    if any(line.strip() for line in lines[n + 1 :]):
        raise FormatError(path, f"expected {n} vertex lines, found more")
    constraints = int(header[3]) if len(header) > 3 else 1
    skipped = (kind[0] == "1") + (kind[1] == "1") * constraints
    words = [line.split()[skipped:] for line in rows]
    counts = np.array([len(line) for line in words], dtype=np.int64)
    values = np.array([int(word) for line in words for word in line], dtype=np.int64)
    stride = 1 + (kind[2] == "1")
    if bool((counts % stride).any()) or len(values) != 2 * edges * stride:
        raise FormatError(path, f"expected {edges} edges, each twice, found {len(values)} numbers")
    column, weight = values[::stride] - 1, values[1::2] if stride == 2 else np.ones(2 * edges)
    if len(column) and not 0 <= column.min() <= column.max() < n:
        raise FormatError(path, f"expected vertices 1..{n}, found {column.min() + 1} or more")
    row = np.repeat(np.arange(n), counts // stride)
    return as_adjacency(coo_array((weight, (row, column)), shape=(n, n)))


def write_graph(path: Path | str, graph: Any) -> None:
    """Write a graph as Matrix Market (``.mtx``) or METIS (``.graph``, ``.metis``).

    Raises
    ------
    ValueError
        If the suffix is another, or METIS, whose weights are whole numbers, cannot hold these.
    """
    path, adjacency = Path(path), as_adjacency(graph)
    if path.suffix not in (".mtx", ".graph", ".metis"):
        raise ValueError(f"expected a .mtx, .graph or .metis file, got {path.name!r}")
    written = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if path.suffix == ".mtx":
            mmwrite(written, adjacency, symmetry="symmetric", precision=17)
        else:
            written.write_text(_metis(adjacency), "utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def _metis(adjacency: csr_array) -> str:
    whole = adjacency.data.astype(np.int64)
    if not np.array_equal(whole, adjacency.data):
        raise ValueError("expected whole-number weights for METIS, got others; try .mtx")
    weighted = bool((whole != 1).any())
    lines = [f"{adjacency.shape[0]} {adjacency.nnz // 2}{' 001' if weighted else ''}"]
    for start, stop in zip(adjacency.indptr[:-1], adjacency.indptr[1:], strict=True):
        row = adjacency.indices[start:stop] + 1
        pairs = np.stack([row, whole[start:stop]], 1).ravel() if weighted else row
        lines.append(" ".join(map(str, pairs.tolist())))
    return "\n".join(lines) + "\n"
