"""How well one graph stands for another: relative condition number, effective resistance."""
# pyright: reportOptionalSubscript=false
# scipy carries no types, and what is inferred lets a matrix have no shape.

import warnings
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import eigvalsh
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, cg, eigsh, splu

from gossamer.errors import ConvergenceWarning
from gossamer.graphs.formats import as_adjacency, laplacian
from gossamer.graphs.storage import Floats, SlottedGraph, edge_pairs
from gossamer.kernels import random_walks

Estimate = Literal["exact", "projected", "walks"]
DENSE = 32  # vertices below which ARPACK is no use


@dataclass(frozen=True)
class RelativeSpectrum:
    """The extreme eigenvalues of L_G x = b L_H x off the constant vector.

    Parameters
    ----------
    smallest : float
        Where H is part of G with G's own weights this is the bound 1, which the true value
        never falls below.
    largest : float

    Examples
    --------
    >>> RelativeSpectrum(0.5, 10.0).condition
    20.0
    """

    smallest: float
    largest: float

    @property
    def condition(self) -> float:
        """The condition number: largest over smallest."""
        return self.largest / self.smallest


class GroundedSolver:
    """Solve with a connected graph's Laplacian, vertex 0 held at zero.

    Sparse LU with a minimum-degree order: almost without fill for graphs near a tree and cheap
    for planar ones, heavy for large graphs of high dimension.

    Parameters
    ----------
    graph : adjacency as `as_adjacency` takes it

    Raises
    ------
    ValueError
        If the graph is not connected.

    Examples
    --------
    >>> solver = GroundedSolver(csr_array(np.array([[0, 2], [2, 0]])))
    >>> solver.solve(np.array([-1.0, 1.0])).tolist()
    [0.0, 0.5]
    """

    def __init__(self, graph: Any) -> None:
        self.laplacian = laplacian(graph)
        check_connected(self.laplacian)
        self.grounded = self.laplacian[1:, 1:].tocsc()
        self._factor = (
            splu(
                self.grounded,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
            if self.grounded.shape[0]
            else None
        )

    def solve(self, right: Floats) -> Floats:
        """Return x [n] or [n, columns] with L x = right, for columns that sum to zero."""
        found = np.zeros(right.shape)
        if self._factor is not None:
            found[1:] = self._factor.solve(np.ascontiguousarray(right[1:]))
        return found


class _Inverse(LinearOperator):
    """A solver for vectors without vertex 0, as scipy's iterations want it."""

    def __init__(self, solver: GroundedSolver) -> None:
        super().__init__(np.dtype(np.float64), solver.grounded.shape)
        self._solver = solver

    def _matvec(self, x: Floats) -> Floats:
        return self._solver.solve(np.concatenate([[0.0], np.ravel(x)]))[1:]


def check_connected(graph: csr_array) -> None:
    """Refuse a graph of no or several components.

    Raises
    ------
    ValueError
        If there is not exactly one.
    """
    count = connected_components(graph, directed=False)[0]
    if count != 1:
        raise ValueError(
            f"expected a connected graph, got {count} components; try largest_component(graph)"
        )


def relative_condition_number(
    graph: Any, sparsifier: Any, *, tol: float = 1e-3, seed: int = 0
) -> RelativeSpectrum:
    """Measure the condition number of a graph's Laplacian relative to its sparsifier's.

    Lanczos on L_H^-1 L_G for the largest eigenvalue, with one sparse factorisation of L_H. The
    smallest needs L_G factored too, unless the sparsifier is part of the graph, weights
    included: then x.L_G x >= x.L_H x bounds it by 1.

    Parameters
    ----------
    graph, sparsifier : adjacency as `as_adjacency` takes it
        Connected, on the same vertices.
    tol : float
        Relative, of each eigenvalue.
    seed : int
        Of the start vector.

    Returns
    -------
    RelativeSpectrum

    Raises
    ------
    ValueError
        If a graph is not connected or the vertices differ.

    Examples
    --------
    >>> ring = csr_array(np.roll(np.eye(4), 1, 1) + np.roll(np.eye(4), -1, 1))
    >>> path = ring.toarray(); path[0, 3] = path[3, 0] = 0
    >>> round(relative_condition_number(ring, csr_array(path)).condition, 6)  # 1 + stretch 3
    4.0
    """
    whole, part = as_adjacency(graph), as_adjacency(sparsifier)
    if whole.shape != part.shape:
        raise ValueError(f"expected {whole.shape[0]} vertices in both, got {part.shape[0]}")
    if not 0 < tol < 1:
        raise ValueError(f"expected tol between 0 and 1, got {tol}")
    if whole.shape[0] < 2:
        raise ValueError(f"expected at least two vertices, got {whole.shape[0]}")
    check_connected(whole)
    solver = GroundedSolver(part)
    largest = _largest(laplacian(whole)[1:, 1:], solver, tol, seed)
    if _is_part(part, whole):
        return RelativeSpectrum(1.0, largest)
    return RelativeSpectrum(
        1 / _largest(solver.grounded, GroundedSolver(whole), tol, seed), largest
    )


def _is_part(part: csr_array, whole: csr_array) -> bool:
    """Whether every edge of `part` is one of `whole` with the same weight."""
    difference = csr_array(whole - part)
    difference.eliminate_zeros()
    return bool((difference.data > 0).all()) and whole.nnz - part.nnz == difference.nnz


def _largest(matrix: Any, solver: GroundedSolver, tol: float, seed: int) -> float:
    """Largest eigenvalue of `matrix` relative to the solver's; both grounded at vertex 0."""
    n = matrix.shape[0]
    if n < DENSE:
        return float(eigvalsh(matrix.toarray(), solver.grounded.toarray())[-1])
    found = eigsh(
        matrix,
        k=1,
        M=solver.grounded,
        Minv=_Inverse(solver),
        v0=np.random.default_rng(seed).standard_normal(n),
        tol=tol / 10,  # pyright: ignore[reportArgumentType]
        return_eigenvectors=False,
    )
    return float(found[0])


def preconditioned_iterations(
    graph: Any, sparsifier: Any, *, rtol: float = 1e-8, seed: int = 0
) -> int:
    """Count the steps of conjugate gradients on a graph, preconditioned by its sparsifier.

    Parameters
    ----------
    graph, sparsifier : adjacency as `as_adjacency` takes it
        Connected, on the same vertices.
    rtol : float
        Of the residual; the right side is random.
    seed : int

    Returns
    -------
    int

    Examples
    --------
    >>> ring = csr_array(np.roll(np.eye(40), 1, 1) + np.roll(np.eye(40), -1, 1))
    >>> preconditioned_iterations(ring, ring)
    1
    """
    solver, matrix = GroundedSolver(sparsifier), laplacian(graph)
    if matrix.shape != solver.laplacian.shape:
        raise ValueError(
            f"expected {matrix.shape[0]} vertices in both, got {solver.laplacian.shape[0]}"
        )
    check_connected(matrix)
    right = np.random.default_rng(seed).standard_normal(matrix.shape[0] - 1)
    steps = 0

    def count(x: Floats) -> None:
        nonlocal steps
        steps += 1

    code = cg(matrix[1:, 1:], right, rtol=rtol, atol=0.0, M=_Inverse(solver), callback=count)[1]
    if code:
        warnings.warn(f"no solution after {steps} steps", ConvergenceWarning, stacklevel=2)
    return steps


def effective_resistance(
    graph: Any,
    edges: ArrayLike,
    *,
    estimate: Estimate = "exact",
    samples: int = 512,
    max_steps: int = 100,
    seed: int = 0,
) -> Floats:
    """Return the effective resistance between pairs of vertices.

    Parameters
    ----------
    graph : adjacency as `as_adjacency` takes it
    edges : array [count, 2] int
        Pairs, joined or not.
    estimate : {"exact", "projected", "walks"}
        A solve for every pair; `samples` random projections and as many solves for all of them
        (Spielman-Srivastava, relative error near sqrt(8 / samples)); or the cheapest path of
        `samples` random walks, an upper bound that is inf where none arrives.
    samples, max_steps : int
        Projections, or walkers a pair and their steps.
    seed : int

    Returns
    -------
    ndarray [count] float64

    Raises
    ------
    ValueError
        If an option or vertex does not fit, or a solver is asked for a disconnected graph.

    Examples
    --------
    >>> triangle = csr_array(1.0 - np.eye(3))
    >>> effective_resistance(triangle, [[0, 1]]).round(6).tolist()
    [0.666667]
    >>> effective_resistance(triangle, [[0, 1]], estimate="walks").tolist()
    [1.0]
    """
    if estimate not in get_args(Estimate):
        raise ValueError(
            f"expected estimate to be one of {', '.join(get_args(Estimate))}, got {estimate!r}"
        )
    if samples < 1:
        raise ValueError(f"expected samples >= 1, got {samples}")
    adjacency = as_adjacency(graph)
    pairs = edge_pairs(edges, adjacency.shape[0])
    if estimate == "walks":
        source, target = torch.from_numpy(pairs).unbind(1)
        found = random_walks(
            SlottedGraph(adjacency).walk_graph(),
            source,
            target,
            walkers=samples,
            max_steps=max_steps,
            seed=seed,
        )
        return found.resistance.double().numpy()
    solver = GroundedSolver(adjacency)
    if estimate == "projected":
        potential = solver.solve(_projections(adjacency, samples, seed))
        return ((potential[pairs[:, 0]] - potential[pairs[:, 1]]) ** 2).sum(1)
    resistance = np.full(len(pairs), inf)
    for start in range(0, len(pairs), 64):
        some = pairs[start : start + 64]
        columns = np.arange(len(some))
        current = np.zeros((adjacency.shape[0], len(some)))
        current[some[:, 0], columns], current[some[:, 1], columns] = 1, -1
        potential = solver.solve(current)
        resistance[start : start + 64] = (
            potential[some[:, 0], columns] - potential[some[:, 1], columns]
        )
    return resistance


def _projections(adjacency: csr_array, samples: int, seed: int) -> Floats:
    """Return B' W^1/2 Q [n, samples] for random signs Q / sqrt(samples), edge by edge."""
    upper = adjacency.tocoo()
    kept = upper.row < upper.col
    row, column, weight = upper.row[kept], upper.col[kept], upper.data[kept]
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(len(row), samples))
    current = signs * np.sqrt(weight / samples)[:, None]
    n = adjacency.shape[0]
    edge = np.arange(len(row))
    ones = np.ones(len(row))
    incidence = csr_array((ones, (row, edge)), shape=(n, len(row))) - csr_array(
        (ones, (column, edge)), shape=(n, len(row))
    )
    return incidence @ current
