"""inGRASS: its clusters, and its update rule written out edge by edge."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.data.graphs import delaunay, walk_stream
from gossamer.graphs import InGRASS, UpdateReport, ingrass, spectral_sparsify
from gossamer.testing.graphs import connected_graph, edge_set

MESH = delaunay(900, seed=1)
SPARSE = spectral_sparsify(MESH, density=1.1)


def by_hand(live: InGRASS, sparse: dict, edges: list, weights: list) -> dict:
    """The update rule, one edge after the other, on dictionaries."""
    cluster, levels = live._cluster, live._levels
    batch: dict[tuple[int, int], float] = {}
    for (u, v), weight in zip(edges, weights, strict=True):
        pair = (min(u, v), max(u, v))
        batch[pair] = batch.get(pair, 0.0) + weight

    def key(pair: tuple[int, int]) -> tuple[int, int]:
        a, b = int(cluster[pair[0]]), int(cluster[pair[1]])
        return min(a, b), max(a, b)

    def level(pair: tuple[int, int]) -> int:
        together = [labels[pair[0]] == labels[pair[1]] for labels in levels]
        return together.index(True) if any(together) else len(levels)

    buckets: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for pair in sparse:
        buckets.setdefault(key(pair), []).append(pair)
    result = dict(sparse)
    for pair in sorted(batch, key=lambda pair: (-level(pair), pair)):
        there = buckets.get(key(pair))
        if there is None:
            buckets[key(pair)], result[pair] = [pair], batch[pair]
            continue
        for old in there:
            result[old] += batch[pair] / len(there)
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 60), st.integers(0, 99), st.sampled_from([2, 6, 10, 30]), st.integers(1, 3))
def test_updates_follow_the_rule(vertices, seed, target, batches):
    graph = connected_graph(vertices, vertices, seed=seed)
    start = spectral_sparsify(graph, density=max(1.0, 1.2), seed=seed)
    live = InGRASS(graph, start, target_condition=target, seed=seed)
    draw = np.random.default_rng(seed)
    truth, everything = edge_set(start), edge_set(graph)
    for _ in range(batches):
        edges = draw.integers(vertices, size=(20, 2))
        edges = edges[edges[:, 0] != edges[:, 1]]
        weights = draw.random(len(edges)) + 0.1
        before = len(truth)
        new = {(min(u, v), max(u, v)) for u, v in edges.tolist()} - everything.keys()
        truth = by_hand(live, truth, edges.tolist(), weights.tolist())
        report = live.insert(edges, weights)
        for (u, v), weight in zip(edges.tolist(), weights.tolist(), strict=True):
            pair = (min(u, v), max(u, v))
            everything[pair] = everything.get(pair, 0.0) + weight
        assert edge_set(live.sparsifier) == pytest.approx(truth)
        assert edge_set(live.graph) == pytest.approx(everything)
        assert report.added == len(truth) - before
        assert report.dropped == len(new - truth.keys())
        assert report.reweighted == len({(min(u, v), max(u, v)) for u, v in edges.tolist()} - new)


def test_no_weight_is_lost():
    live = InGRASS(MESH, SPARSE, target_condition=10)
    stream = walk_stream(MESH, 200, steps=6)
    reports = [live.insert(batch, np.full(len(batch), 0.5)) for batch in np.array_split(stream, 4)]
    assert live.sparsifier.sum() / 2 == pytest.approx(SPARSE.sum() / 2 + 100)
    assert 0 < sum(report.added for report in reports) < 200


def test_more_tolerance_means_larger_clusters_and_fewer_edges():
    stream = walk_stream(MESH, 300, steps=6)
    added = []
    for target in (2, 10, 40, 200):
        live = InGRASS(MESH, SPARSE, target_condition=target)
        largest = np.bincount(live._cluster).max()
        assert largest < max(2, ceil(target / 2))
        coarser = [np.bincount(labels).max() for labels in live._levels]
        assert sum(size < max(2, ceil(target / 2)) for size in coarser) >= 1
        added.append(live.insert(stream).added)
    assert added == sorted(added, reverse=True) and added[0] == 300 > added[-1] + 50


def test_levels_unite_neighbours_two_by_two():
    levels = ingrass._clusters(SPARSE, seed=0)
    assert len(np.unique(levels[-1])) <= 9 < len(np.unique(levels[-2]))
    assert levels[0].tolist() == list(range(900))
    for finer, coarser in pairwise(levels):
        pairs = np.unique(np.stack([finer, coarser], 1), axis=0)
        assert len(pairs) == len(np.unique(finer))  # each cluster goes whole into one
        assert np.bincount(pairs[:, 1]).max() == 2
    ends = SPARSE.tocoo()
    edges = {(a, b) for a, b in zip(ends.row.tolist(), ends.col.tolist(), strict=True)}
    members: dict[int, list[int]] = {}
    for vertex, label in enumerate(levels[1].tolist()):
        members.setdefault(label, []).append(vertex)
    assert all(len(m) == 1 or (m[0], m[1]) in edges for m in members.values())


def test_matching_takes_the_least_first():
    row, col = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4])
    parent, size = ingrass._match(row, col, np.array([3.0, 1.0, 2.0, 4.0]), np.zeros(5))
    # 1-2 first; 2-3 and 0-1 are blocked by it; 3-4 last; 0 stays alone.
    assert parent.tolist() == [0, 1, 1, 2, 2] and size.tolist() == [0.0, 1.0, 4.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(0, 60), st.integers(0, 999))
def test_matching_is_what_a_greedy_pass_gives(vertices, count, seed):
    draw = np.random.default_rng(seed)
    ends = draw.integers(vertices, size=(count, 2))
    row, col = ends[ends[:, 0] != ends[:, 1]].T
    united, diameter = draw.integers(1, 9, size=len(row)).astype(float), draw.random(vertices)
    mate, grown = list(range(vertices)), diameter.tolist()
    for edge in np.argsort(united, kind="stable").tolist():
        p, q = int(row[edge]), int(col[edge])
        if mate[p] == p and mate[q] == q:
            mate[p], mate[q], grown[min(p, q)] = q, p, united[edge]
    leaders = sorted({min(v, mate[v]) for v in range(vertices)})
    parent, size = ingrass._match(row, col, united, diameter)
    assert parent.tolist() == [leaders.index(min(v, mate[v])) for v in range(vertices)]
    assert size.tolist() == [grown[v] for v in leaders]


def test_resistances_follow_the_formula():
    graph = connected_graph(40, 30, seed=3)
    entries = graph.tocoo()
    upper = entries.row < entries.col
    row, col, weight = entries.row[upper], entries.col[upper], entries.data[upper]
    found = ingrass._resistances(graph, row, col, weight, np.random.default_rng(5))
    lazy = graph.toarray() + 0.1 * np.eye(40)
    root = np.diag(lazy.sum(1) ** -0.5)
    x = np.random.default_rng(5).uniform(-1, 1, 40)
    x, kept = x - x.mean(), []
    for step in range(300):
        x = root @ lazy @ root @ x
        if step % 20 == 19:
            kept.append((x - x.mean()) / np.linalg.norm(x - x.mean()))
    basis = np.linalg.qr(np.array(kept).T)[0]
    expected = np.zeros(len(row))
    for q in basis.T[:5]:  # later ones are rounding noise in so small a graph
        expected += (q[row] - q[col]) ** 2 / (weight * (q[row] - q[col]) ** 2).sum()
    assert len(kept) == 15 and (found >= expected * (1 - 1e-6)).all()


def test_default_start_and_seeds():
    runs = [InGRASS(MESH, target_condition=10, seed=seed).sparsifier for seed in (0, 0)]
    assert edge_set(runs[0]) == edge_set(runs[1])
    assert runs[0].nnz // 2 == round(1.1 * 900)


def test_bad_input_is_named_and_changes_nothing():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        InGRASS(MESH, SPARSE, target_condition=0)
    with pytest.raises(ValueError, match="sparsifier of 900 vertices, got 5"):
        InGRASS(MESH, connected_graph(5, 0), target_condition=5)
    live = InGRASS(MESH, SPARSE, target_condition=5)
    for edges, weights in (([[0, 900]], None), ([[0, 0]], None), ([[0, 500]], [-1.0])):
        with pytest.raises(ValueError):
            live.insert(edges, weights)
    assert edge_set(live.graph) == edge_set(MESH)
    assert edge_set(live.sparsifier) == edge_set(SPARSE)
    assert live.insert([]) == UpdateReport()
