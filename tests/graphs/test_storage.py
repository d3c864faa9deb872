"""Slotted rows against a dictionary of edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.graphs.storage import (
    SlottedGraph,
    distinct_pairs,
    edge_pairs,
    ragged,
    weighted_batch,
)
from gossamer.testing.graphs import connected_graph, edge_set


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 15), st.integers(0, 20), st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_any_updates_leave_the_edges_they_should(vertices, extra, seed, batches):
    draw = np.random.default_rng(seed)
    start = connected_graph(vertices, extra, seed=seed)
    graph, truth = SlottedGraph(start), edge_set(start)
    for _ in range(batches):
        every = [(u, v) for u in range(vertices) for v in range(u + 1, vertices)]
        absent = [pair for pair in every if pair not in truth]
        new = [pair for pair in absent if draw.random() < 0.3]
        old = [pair for pair in truth if draw.random() < 0.3]
        weights = draw.random(len(new)) + 0.1
        graph.add(np.array(new, dtype=np.int64).reshape(-1, 2), weights)
        graph.remove(np.array(old, dtype=np.int64).reshape(-1, 2))
        truth |= dict(zip(new, weights.tolist(), strict=True))
        for pair in old:
            del truth[pair]
        heavier = list(truth)[::2]
        graph.increase(np.array(heavier, dtype=np.int64).reshape(-1, 2), np.ones(len(heavier)))
        truth |= {pair: truth[pair] + 1 for pair in heavier}
        matrix = graph.to_csr()
        assert edge_set(matrix) == truth and graph.edges == len(truth)
        np.testing.assert_array_equal(matrix.toarray(), matrix.toarray().T)
        asked = np.array(every, dtype=np.int64)
        assert graph.has(asked).tolist() == [pair in truth for pair in every]
        assert graph.has(asked[:, ::-1]).tolist() == [pair in truth for pair in every]
        for first, degree in graph.rows.tolist():
            row = graph.neighbour[first : first + degree]
            assert (np.diff(row) > 0).all()
            np.testing.assert_array_equal(
                graph.resistance[first : first + degree],
                (1 / graph.weight[first : first + degree]).astype(np.float32),
            )


def test_rows_never_overlap_and_garbage_is_bounded():
    graph = SlottedGraph(connected_graph(50, 0, seed=1))
    hub = [[0, v] for v in range(1, 50) if not graph.has(np.array([[0, v]]))[0]]
    for pair in hub:
        graph.add(np.array([pair]), np.ones(1))
    used = np.zeros(len(graph.neighbour), dtype=int)
    used[ragged(graph.rows[:, 0], graph.rows[:, 1])] += 1
    assert used.max() == 1 and graph.rows[0, 1] == 49
    assert len(graph.neighbour) < 6 * 2 * graph.edges


def test_an_update_touches_no_other_row():
    graph = SlottedGraph(connected_graph(40, 60, seed=2))
    before = {name: getattr(graph, name).copy() for name in ("neighbour", "weight")}
    absent = next([0, v] for v in range(1, 40) if not graph.has(np.array([[0, v]]))[0])
    others = np.setdiff1d(np.arange(40), absent)
    slots = ragged(graph.rows[others, 0], graph.rows[others, 1])
    rows = graph.rows[others].copy()
    graph.add(np.array([absent]), np.ones(1))
    np.testing.assert_array_equal(graph.rows[others], rows)
    for name, old in before.items():
        np.testing.assert_array_equal(getattr(graph, name)[slots], old[slots])


def test_the_walk_graph_shares_memory():
    graph = SlottedGraph(connected_graph(9, 5))
    assert graph.walk_graph().neighbour.data_ptr() == graph.neighbour.ctypes.data


def test_a_batch_is_sorted_and_duplicates_add_up():
    pairs, weights = weighted_batch([[3, 1], [0, 2], [1, 3]], [1.0, 2.0, 4.0], 5)
    assert pairs.tolist() == [[0, 2], [1, 3]] and weights.tolist() == [2.0, 5.0]
    assert weighted_batch([], None, 5)[0].shape == (0, 2)
    distinct, place = distinct_pairs(np.array([[1, 3], [0, 2], [1, 3]]), 5)
    assert distinct.tolist() == [[0, 2], [1, 3]] and place.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        ([[0, 1, 2]], ValueError, r"\[count, 2\], got \[1, 3\]; try edge_index.T"),
        ([0, 1], ValueError, r"\[count, 2\], got \[2\]"),
        ([[0.0, 1.0]], TypeError, "integer vertex ids, got float64"),
        ([[0, 5]], ValueError, r"ids in 0..4, got 0..5"),
        ([[-1, 2]], ValueError, r"ids in 0..4, got -1..2"),
        ([[0, 1], [3, 3]], ValueError, "got a self-loop at 3"),
    ],
)
def test_bad_edges_are_named(edges, error, message):
    with pytest.raises(error, match=message):
        edge_pairs(edges, 5)


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [np.nan], [np.inf], [1.0, 2.0]])
def test_bad_weights_are_named(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_batch([[0, 1]], weights, 5)
