"""GRASS: what it keeps, and that its rules matter."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from gossamer.data.graphs import delaunay
from gossamer.graphs import grass, relative_condition_number, spectral_sparsify
from gossamer.testing.graphs import connected_graph, dense_laplacian, edge_set

MESH = delaunay(1500, seed=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 80), st.floats(0, 1), st.integers(0, 99))
def test_keeps_edges_of_the_graph_by_number_and_connects(vertices, extra, share, seed):
    graph = connected_graph(vertices, extra, seed=seed)
    edges, tree = graph.nnz // 2, vertices - 1
    budget = round(tree + share * (edges - tree))
    density = max(budget / vertices, tree / vertices)
    found = spectral_sparsify(graph, density=density, seed=seed)
    assert edge_set(found).items() <= edge_set(graph).items()
    assert found.nnz // 2 == budget
    assert connected_components(found)[0] == 1


def test_the_tree_has_the_greatest_effective_weight():
    graph = connected_graph(40, 80, seed=1)
    centre = grass._centre(graph)
    theirs = nx.from_scipy_sparse_array(graph)
    hops = nx.single_source_shortest_path_length(theirs, centre)
    for u, v, data in theirs.edges(data=True):
        larger = max(theirs.degree[u], theirs.degree[v])
        data["worth"] = data["weight"] * np.log(larger) / (hops[u] + hops[v])
    best = nx.maximum_spanning_tree(theirs, weight="worth").size(weight="worth")
    found = [theirs.edges[u, v]["worth"] for u, v in grass.spanning_tree(graph).tolist()]
    assert len(found) == 39 and sum(found) == pytest.approx(best)
    assert max(hops.values()) <= nx.diameter(theirs) // 2 + 2


def test_heat_follows_the_dense_power_iteration():
    graph = connected_graph(30, 60, seed=2)
    kept, spare = grass._split(graph, grass.spanning_tree(graph))
    tree = grass._symmetric(kept)
    found = grass._heat(graph, tree, spare, 3, np.random.default_rng(7))
    h = np.random.default_rng(7).standard_normal((30, 5))
    step = np.linalg.pinv(dense_laplacian(tree)) @ dense_laplacian(graph)
    for _ in range(3):
        h = step @ h
        h = (h - h.mean(0)) / np.linalg.norm(h - h.mean(0), axis=0)
    expected = spare.data * ((h[spare.row] - h[spare.col]) ** 2).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_edges_near_a_taken_one_wait():
    path = connected_graph(30, 0, weighted=False)
    line = csr_array(np.eye(30, k=1) + np.eye(30, k=-1))
    spare = grass._split(csr_array(line + line @ line - 2 * np.eye(30)), np.zeros((0, 2), int))[1]
    order = np.arange(len(spare.row))
    for radius in (0, 1, 2, 3):
        taken = grass._apart(line, spare, order, radius, 99)
        ends = np.stack([spare.row, spare.col], 1)[taken]
        assert len(taken) > 2
        for i, later in enumerate(ends):
            for earlier in ends[:i]:
                assert np.abs(later[:, None] - earlier[None]).min() > radius
        # greedy: whoever was passed over is near one taken before it
        for edge in np.setdiff1d(order, taken):
            before = np.stack([spare.row, spare.col], 1)[taken[taken < edge]]
            ends_of = np.array([spare.row[edge], spare.col[edge]])
            assert np.abs(ends_of[:, None, None] - before[None]).min() <= radius
    assert path.shape == line.shape


def test_the_similarity_rule_decides_the_quality():
    condition = {
        radius: relative_condition_number(
            MESH, spectral_sparsify(MESH, density=1.1, similarity_radius=radius)
        ).largest
        for radius in (0, 2)
    }
    tree = relative_condition_number(MESH, spectral_sparsify(MESH, density=1.0)).largest
    assert condition[2] < 0.7 * condition[0] < 0.1 * tree
    assert condition[2] < 80


def test_a_target_condition_is_reached_and_not_overshot():
    found = spectral_sparsify(MESH, target_condition=60)
    assert relative_condition_number(MESH, found).condition <= 60
    fewer = spectral_sparsify(MESH, target_condition=120)
    assert fewer.nnz < found.nnz < MESH.nnz / 2
    whole = spectral_sparsify(connected_graph(20, 30), target_condition=1)
    assert edge_set(whole) == edge_set(connected_graph(20, 30))


def test_seeds_and_inputs():
    before = MESH.toarray()
    runs = [spectral_sparsify(MESH, density=1.05, seed=seed) for seed in (0, 0, 1)]
    assert edge_set(runs[0]) == edge_set(runs[1]) != edge_set(runs[2])
    np.testing.assert_array_equal(MESH.toarray(), before)
    assert spectral_sparsify(connected_graph(1, 0), density=1).nnz == 0


SPLIT = csr_array(np.kron(np.eye(2), 1 - np.eye(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of density and target_condition"),
        ({"density": 1.1, "target_condition": 3}, "one of density and target_condition"),
        ({"density": 0.5}, "density of at least a tree's, .* got 0.5"),
        ({"density": float("nan")}, "got nan"),
        ({"density": float("inf")}, "got inf"),
        ({"target_condition": 0.5}, "at least 1, got 0.5"),
        ({"density": 1.1, "similarity_radius": -1}, "got -1, 10 and 2"),
        ({"density": 1.1, "rounds": 0}, "got 2, 0 and 2"),
        ({"density": 1.1, "power_steps": 0}, "got 2, 10 and 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        spectral_sparsify(connected_graph(12, 9), **options)


def test_a_split_graph_is_refused():
    with pytest.raises(ValueError, match=r"got 2 components; try largest_component"):
        spectral_sparsify(SPLIT, density=1.1)
