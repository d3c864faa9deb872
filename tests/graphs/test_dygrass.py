"""dyGRASS: what it may drop, what it must mend, and that a batch is a set."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from gossamer.data.graphs import delaunay, walk_stream
from gossamer.graphs import (
    DynamicSparsifier,
    UpdateReport,
    dygrass,
    relative_condition_number,
    spectral_sparsify,
)
from gossamer.testing.graphs import (
    connected_graph,
    dense_relative_spectrum,
    dense_resistance,
    edge_set,
)

MESH = delaunay(600, seed=0)


def path_graph(vertices: int, weight: float = 1.0) -> csr_array:
    return csr_array(weight * (np.eye(vertices, k=1) + np.eye(vertices, k=-1)))


def check_whole(live: DynamicSparsifier) -> None:
    """The invariants that hold after every batch."""
    graph, part = edge_set(live.graph), edge_set(live.sparsifier)
    assert part.items() <= graph.items()
    for name in ("graph", "sparsifier"):
        matrix = getattr(live, name)
        np.testing.assert_array_equal(matrix.toarray(), matrix.toarray().T)
    whole = connected_components(live.graph)[1]
    pieces = connected_components(live.sparsifier)[1]
    np.testing.assert_array_equal(whole, pieces)
    assert live.density == len(part) / live.graph.shape[0]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(3, 30),
    st.integers(0, 40),
    st.integers(0, 999),
    st.sampled_from([(1, 1), (2, 4), (64, 100)]),
    st.sampled_from([0.5, 2.0, 8.0]),
)
def test_any_stream_keeps_the_invariants(vertices, extra, seed, walk, distortion):
    start = connected_graph(vertices, extra, seed=seed)
    live = DynamicSparsifier(
        start,
        spectral_sparsify(start, density=1.0),
        distortion=distortion,
        walkers=walk[0],
        max_steps=walk[1],
        seed=seed,
    )
    truth, draw = edge_set(start), np.random.default_rng(seed)
    for _ in range(4):
        edges = draw.integers(vertices, size=(8, 2))
        edges = edges[edges[:, 0] != edges[:, 1]]
        weights = draw.choice([0.3, 1.0, 4.0], len(edges))
        resistance, before = dense_resistance_of_pieces(live.sparsifier), edge_set(live.sparsifier)
        new = {(min(u, v), max(u, v)) for u, v in edges.tolist()}
        known = {pair for pair in new if pair in truth}
        for (u, v), weight in zip(edges.tolist(), weights.tolist(), strict=True):
            pair = (min(u, v), max(u, v))
            truth[pair] = truth.get(pair, 0.0) + weight
        report = live.insert(edges, weights)
        check_whole(live)
        assert edge_set(live.graph) == pytest.approx(truth)
        part = edge_set(live.sparsifier)
        assert part.keys() >= before.keys()
        assert report == UpdateReport(
            added=len(part) - len(before),
            dropped=len(new) - len(known) - len(part) + len(before),
            reweighted=len(known),
        )
        for u, v in new - known - part.keys():  # what was dropped is spectrally redundant
            assert truth[u, v] * resistance[u, v] < distortion * (1 + 1e-5)
        doomed = [pair for pair in truth if draw.random() < 0.25]
        torn = sum(pair in part for pair in doomed)
        report = live.delete(doomed)
        for pair in doomed:
            del truth[pair]
        check_whole(live)
        assert edge_set(live.graph) == pytest.approx(truth)
        assert report.removed == len(doomed) and report.skipped == report.added == 0
        now = len(edge_set(live.sparsifier))
        assert now == len(part) - torn + report.recovered + report.fallback
        if report.components is not None:
            assert report.components == connected_components(live.graph)[0]


def dense_resistance_of_pieces(graph: csr_array) -> np.ndarray:
    """Effective resistances, infinite between components."""
    found = dense_resistance(graph)
    labels = connected_components(graph)[1]
    return np.where(labels[:, None] == labels[None], found, np.inf)


@pytest.mark.parametrize(("distance", "kept"), [(1, 0), (5, 0), (9, 0), (10, 1), (15, 1)])
@pytest.mark.parametrize("weight", [0.5, 1.0, 4.0])
def test_the_threshold_is_on_weight_times_resistance(distance, kept, weight):
    """On a path the only walk from p to q has the resistance itself."""
    line = path_graph(60, weight=2.0)
    live = DynamicSparsifier(line, line, distortion=10 * weight / 2)
    report = live.insert([[20, 20 + distance]], [weight]) if distance > 1 else None
    if report is None:
        assert live.insert([[20, 21]], [weight]).reweighted == 1
    else:
        assert (report.added, report.dropped) == (kept, 1 - kept)


def test_a_batch_sees_the_sparsifier_as_it_found_it():
    line = path_graph(40)
    edges = [[5, 25], [6, 26]]  # each is a detour of 3 for the other
    together = DynamicSparsifier(line, line, distortion=10)
    assert together.insert(edges).added == 2
    apart = DynamicSparsifier(line, line, distortion=10)
    assert [apart.insert([edge]).added for edge in edges] == [1, 0]


def test_order_and_direction_inside_a_batch_change_nothing():
    start = spectral_sparsify(MESH, density=1.1)
    stream = walk_stream(MESH, 120, steps=12)
    draw, ends = np.random.default_rng(0), []
    for shuffled in (False, True, True):
        live = DynamicSparsifier(MESH, start, distortion=12, seed=4)
        for batch in np.array_split(stream, 3):
            if shuffled:
                batch = draw.permuted(draw.permutation(batch), axis=1)
            live.insert(batch)
        doomed = np.array(sorted(edge_set(live.sparsifier)))[::9]
        live.delete(draw.permutation(doomed) if shuffled else doomed)
        ends.append((edge_set(live.graph), edge_set(live.sparsifier)))
    assert ends[0] == ends[1] == ends[2]


def test_threads_change_nothing_and_seeds_do():
    start = spectral_sparsify(MESH, density=1.1)
    stream = walk_stream(MESH, 150, steps=30)
    before, found = torch.get_num_threads(), []
    for threads, seed in ((1, 0), (2, 0), (3, 0), (1, 1)):
        torch.set_num_threads(threads)
        live = DynamicSparsifier(MESH, start, distortion=12, walkers=32, seed=seed)
        live.insert(stream)
        found.append(edge_set(live.sparsifier))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2] != found[3]


def test_insert_then_delete_returns_the_graph():
    live = DynamicSparsifier(MESH, distortion=8)
    assert live.density == pytest.approx(1.1, abs=1e-3)
    stream = walk_stream(MESH, 100, steps=20)
    weights = np.random.default_rng(0).random(100) + 0.5
    live.insert(stream, weights)
    live.delete(stream)
    assert edge_set(live.graph) == edge_set(MESH)
    check_whole(live)


def test_beats_the_same_number_of_random_edges_and_keeps_the_lower_bound():
    start = spectral_sparsify(MESH, density=1.1)
    stream = walk_stream(MESH, 150, steps=40)
    live = DynamicSparsifier(MESH, start, distortion=20)
    reports = [live.insert(batch) for batch in np.array_split(stream, 5)]
    added = sum(report.added for report in reports)
    assert 20 < added < 130
    smallest, largest = dense_relative_spectrum(live.graph, live.sparsifier)
    assert smallest >= 1 - 1e-9
    untouched = relative_condition_number(live.graph, start).largest
    assert largest < 0.8 * untouched


def test_a_deleted_edge_is_replaced_by_the_cheapest_walk():
    """Around 0-1 there are a detour of resistance 2 and one of 3; the walkers find both."""
    edges = {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0, (0, 3): 1.0, (3, 4): 1.0, (1, 4): 1.0}
    graph = np.zeros((5, 5))
    for (u, v), weight in edges.items():
        graph[u, v] = graph[v, u] = weight
    tree = graph.copy()
    for u, v in ((0, 2), (3, 4)):
        tree[u, v] = tree[v, u] = 0
    live = DynamicSparsifier(csr_array(graph), csr_array(tree), distortion=1)
    assert live.delete([[1, 0]]) == UpdateReport(removed=1, recovered=1)
    assert (0, 2) in edge_set(live.sparsifier) and (3, 4) not in edge_set(live.sparsifier)


def test_deleting_what_the_sparsifier_lacks_walks_nowhere():
    live = DynamicSparsifier(MESH, distortion=8)
    spare = sorted(edge_set(MESH).keys() - edge_set(live.sparsifier).keys())[:30]
    before = edge_set(live.sparsifier)
    assert live.delete(spare) == UpdateReport(removed=30)
    assert edge_set(live.sparsifier) == before


def test_a_deleted_bridge_leaves_two_components_and_a_later_edge_joins_them():
    line = path_graph(30)
    live = DynamicSparsifier(line, line, distortion=5)
    assert live.delete([[9, 10]]) == UpdateReport(removed=1, components=2)
    check_whole(live)
    assert live.insert([[0, 29]], [1e-6]).added == 1  # nothing else joins them
    check_whole(live)


def test_without_arrivals_a_shortest_path_is_the_last_resort():
    """A long ring: walks of one step cannot get round it, nor can those of two steps."""
    ring = path_graph(30) + csr_array(([1.0, 1.0], ([0, 29], [29, 0])), shape=(30, 30))
    live = DynamicSparsifier(ring, path_graph(30), distortion=5, walkers=4, max_steps=1)
    report = live.delete([[14, 15]])
    assert report == UpdateReport(removed=1, fallback=1, components=1)
    assert edge_set(live.sparsifier) == edge_set(live.graph)


def test_ends_of_different_deleted_edges_are_joined_too():
    """Both ends of a long line hang on one edge outside it, and H lacks the line's middle."""
    line = np.zeros((14, 14))
    for u, v in [*((v, v + 1) for v in range(11)), (0, 12), (12, 13), (11, 13)]:
        line[u, v] = line[v, u] = 1
    part = line.copy()
    part[5, 6] = part[6, 5] = 0
    live = DynamicSparsifier(csr_array(line), csr_array(part), distortion=5)
    assert live.delete([[0, 12], [11, 13]]) == UpdateReport(removed=2, fallback=1, components=2)
    check_whole(live)


def test_recovery_adds_the_edges_of_short_walks():
    live = DynamicSparsifier(
        MESH, spectral_sparsify(MESH, density=1.0), distortion=5, walkers=1, max_steps=1
    )
    edge = sorted(edge_set(live.sparsifier))[40]
    report = live.delete([edge])
    assert report.recovered == 0 and report.components == 1
    assert 4 < report.fallback <= 2 * dygrass.RECOVERY_WALKERS * dygrass.RECOVERY_STEPS + 20
    check_whole(live)


def test_absent_edges_are_skipped_with_a_warning():
    line = path_graph(9)
    live = DynamicSparsifier(line, line, distortion=5)
    with pytest.warns(UserWarning, match="skipped 2 edges that the graph does not have"):
        report = live.delete([[0, 5], [2, 3], [5, 0], [3, 2], [0, 8]])
    assert report == UpdateReport(removed=1, skipped=2, components=2)


def test_resuming_from_a_state_does_what_would_have_been_done():
    stream = walk_stream(MESH, 90, steps=20)
    start = spectral_sparsify(MESH, density=1.1)
    live = DynamicSparsifier(MESH, start, distortion=9, walkers=16)
    live.insert(stream[:30])
    state = {name: part.clone() for name, part in live.state_dict().items()}
    again = DynamicSparsifier(path_graph(4), path_graph(4), distortion=9, walkers=16)
    again.load_state_dict(state)
    copies = [live, again, copy.deepcopy(live), pickle.loads(pickle.dumps(live))]
    doomed = sorted(edge_set(live.sparsifier))[::20]
    for one in copies:
        one.insert(stream[30:])
        one.delete(doomed)
    assert all(edge_set(one.sparsifier) == edge_set(live.sparsifier) for one in copies)
    assert all(edge_set(one.graph) == edge_set(live.graph) for one in copies)
    other = DynamicSparsifier(MESH, start, distortion=9, walkers=16)
    other.insert(np.concatenate([stream[:30], stream[30:]]))
    assert edge_set(other.graph) == edge_set(MESH) | dict.fromkeys(map(tuple, stream.tolist()), 1)


def test_inputs_stay_as_they_were():
    graph, part = MESH.copy(), spectral_sparsify(MESH, density=1.1)
    live = DynamicSparsifier(graph, part, distortion=9)
    before = part.toarray()
    live.insert(walk_stream(MESH, 50, steps=20))
    live.delete(sorted(edge_set(part))[:50])
    np.testing.assert_array_equal(graph.toarray(), MESH.toarray())
    np.testing.assert_array_equal(part.toarray(), before)
    live.sparsifier.data[:] = 5  # what is handed out is a copy
    check_whole(live)


LINE = path_graph(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distortion": 0}, "positive, finite distortion, got 0"),
        ({"distortion": float("nan")}, "got nan"),
        ({"distortion": float("inf")}, "got inf"),
        ({"walkers": 0}, "walkers and max_steps >= 1, got 0 and 100"),
        ({"max_steps": 0}, "got 512 and 0"),
        ({"seed": -1}, r"seed in 0..2\*\*32 - 1, got -1"),
        ({"sparsifier": path_graph(8)}, "sparsifier of 9 vertices, got 8"),
        ({"sparsifier": path_graph(9, 2.0)}, "edges and weights are the graph's own"),
        ({"sparsifier": csr_array((9, 9))}, r"of 1 components .* got 9; try sparsifier=None"),
        (
            {"sparsifier": connected_graph(9, 30, weighted=False)},
            "edges and weights are the graph's own",
        ),
        ({"graph": csr_array(np.triu(LINE.toarray()))}, "symmetric"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSparsifier(**({"graph": LINE, "sparsifier": LINE, "distortion": 5} | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda live: live.insert([[0, 9]]), "ids in 0..8, got 0..9"),
        (lambda live: live.insert([[0, 2]], [0.0]), "positive, finite weights"),
        (lambda live: live.insert([[0, 2], [4, 4]]), "self-loop at 4"),
        (lambda live: live.insert([[0, 2]], [1.0, 2.0]), r"weights to be \[1\], got \[2\]"),
        (lambda live: live.delete([[0, 9]]), "ids in 0..8, got 0..9"),
        (lambda live: live.delete([0, 1]), r"\[count, 2\], got \[2\]"),
    ],
)
def test_bad_batches_change_nothing(call, message):
    live = DynamicSparsifier(LINE, LINE, distortion=5)
    before = live.state_dict()
    with pytest.raises(ValueError, match=message):
        call(live)
    after = live.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_broken_state_is_refused_and_changes_nothing():
    live = DynamicSparsifier(MESH, distortion=5)
    state = live.state_dict()
    with pytest.raises(ValueError, match="graph's own"):
        live.load_state_dict(state | {"sparsifier.data": state["sparsifier.data"] * 2})
    with pytest.raises(KeyError, match=r"graph\.indptr"):
        live.load_state_dict({})
    assert edge_set(live.graph) == edge_set(MESH)


def test_empty_batches_do_nothing():
    live = DynamicSparsifier(LINE, LINE, distortion=5)
    assert live.insert([]) == live.delete([]) == UpdateReport()
    assert edge_set(live.graph) == edge_set(LINE)
