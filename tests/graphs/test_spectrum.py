"""Spectra and resistances against dense eigenvalues and the pseudo-inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from gossamer.errors import ConvergenceWarning
from gossamer.graphs import (
    effective_resistance,
    preconditioned_iterations,
    relative_condition_number,
    spectral_sparsify,
    spectrum,
)
from gossamer.graphs.spectrum import GroundedSolver
from gossamer.testing.graphs import (
    connected_graph,
    dense_laplacian,
    dense_relative_spectrum,
    dense_resistance,
)

SPLIT = csr_array(np.kron(np.eye(2), 1 - np.eye(3)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 70), st.integers(0, 90), st.integers(0, 999))
def test_relative_spectrum_of_any_two_graphs(vertices, extra, seed):
    graph = connected_graph(vertices, extra, seed=seed)
    other = connected_graph(vertices, extra // 2, seed=seed + 1)
    smallest, largest = dense_relative_spectrum(graph, other)
    found = relative_condition_number(graph, other, seed=seed)
    assert found.smallest == pytest.approx(smallest, rel=1e-3)
    assert found.largest == pytest.approx(largest, rel=1e-3)
    assert found.condition == pytest.approx(largest / smallest, rel=2e-3)


@pytest.mark.parametrize("vertices", [10, 60])
def test_part_of_a_graph_is_bounded_by_one(vertices):
    graph = connected_graph(vertices, 2 * vertices, seed=4)
    part = spectral_sparsify(graph, density=1.1)
    smallest, largest = dense_relative_spectrum(graph, part)
    found = relative_condition_number(graph, part)
    assert found.smallest == 1.0 <= smallest + 1e-9
    assert found.largest == pytest.approx(largest, rel=1e-3)
    lighter = csr_array(part * 0.5)  # same edges, other weights: measured, not bounded
    found = relative_condition_number(graph, lighter)
    assert found.smallest == pytest.approx(2 * smallest, rel=1e-3)
    heavier = csr_array(part * 2)
    assert relative_condition_number(graph, heavier).smallest < 1


def test_relabelling_changes_nothing():
    graph = connected_graph(60, 100, seed=1)
    part = spectral_sparsify(graph, density=1.2)
    order = np.random.default_rng(0).permutation(60)
    before = relative_condition_number(graph, part).largest
    after = relative_condition_number(graph[order][:, order], part[order][:, order]).largest
    assert after == pytest.approx(before, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 40), st.integers(0, 999))
def test_resistances(vertices, extra, seed):
    graph = connected_graph(vertices, extra, seed=seed)
    truth = dense_resistance(graph)
    draw = np.random.default_rng(seed)
    pairs = np.stack([draw.integers(vertices, size=70), draw.integers(vertices, size=70)], 1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    expected = truth[pairs[:, 0], pairs[:, 1]]
    exact = effective_resistance(graph, pairs)
    np.testing.assert_allclose(exact, expected, rtol=1e-8)
    walked = effective_resistance(graph, pairs, estimate="walks", samples=64)
    assert (walked >= expected * (1 - 1e-5)).all()
    if extra == 0:  # one path only: who arrives pays exactly that
        np.testing.assert_allclose(
            walked[np.isfinite(walked)], expected[np.isfinite(walked)], rtol=1e-5
        )


def test_projections_estimate_resistances():
    graph = connected_graph(50, 100, seed=2)
    pairs = np.array([[u, v] for u in range(50) for v in range(u)])
    truth = dense_resistance(graph)[pairs[:, 0], pairs[:, 1]]
    found = effective_resistance(graph, pairs, estimate="projected", samples=4000)
    error = found / truth - 1
    assert abs(error.mean()) < 0.02 and np.abs(error).max() < 6 * np.sqrt(2 / 4000)


def test_solver_and_iterations():
    graph = connected_graph(200, 300, seed=5)
    right = np.random.default_rng(0).standard_normal((200, 3))
    right -= right.mean(0)
    np.testing.assert_allclose(
        dense_laplacian(graph) @ GroundedSolver(graph).solve(right), right, atol=1e-9
    )
    tree = spectral_sparsify(graph, density=1.0)
    denser = spectral_sparsify(graph, density=1.6)
    assert preconditioned_iterations(graph, graph) <= 2
    assert preconditioned_iterations(graph, denser) < preconditioned_iterations(graph, tree) < 100


def test_a_solve_that_does_not_converge_says_so(monkeypatch):
    graph = connected_graph(40, 60)
    monkeypatch.setattr(
        spectrum, "cg", lambda matrix, right, callback, **rest: (callback(right), (right, 7))[1]
    )
    with pytest.warns(ConvergenceWarning, match="no solution after 1 steps"):
        preconditioned_iterations(graph, graph)


GRAPH = connected_graph(6, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relative_condition_number(GRAPH, SPLIT), "connected graph, got 2 components"),
        (lambda: relative_condition_number(SPLIT, GRAPH), "connected graph, got 2 components"),
        (lambda: relative_condition_number(GRAPH, connected_graph(5, 0)), "6 vertices .* got 5"),
        (lambda: relative_condition_number(GRAPH, GRAPH, tol=0), "tol between 0 and 1, got 0"),
        (lambda: relative_condition_number(csr_array((1, 1)), csr_array((1, 1))), "two vertices"),
        (lambda: GroundedSolver(SPLIT), r"got 2 components; try largest_component\(graph\)"),
        (lambda: preconditioned_iterations(SPLIT, GRAPH), "got 2 components"),
        (lambda: preconditioned_iterations(GRAPH, connected_graph(5, 0)), "6 vertices .* got 5"),
        (lambda: effective_resistance(SPLIT, [[0, 1]]), "got 2 components"),
        (lambda: effective_resistance(GRAPH, [[0, 6]]), r"ids in 0..5, got 0..6"),
        (lambda: effective_resistance(GRAPH, [[0, 1]], samples=0), "samples >= 1, got 0"),
        (
            lambda: effective_resistance(GRAPH, [[0, 1]], estimate="guess"),  # type: ignore
            "one of exact, projected, walks, got 'guess'",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_walks_bound_resistances_of_split_graphs_by_infinity():
    found = effective_resistance(SPLIT, [[0, 1], [0, 4]], estimate="walks")
    assert found[0] == 1.0 and found[1] == np.inf
