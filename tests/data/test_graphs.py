"""Generated meshes and streams."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components, dijkstra

from gossamer.data.graphs import delaunay, walk_stream
from gossamer.testing.graphs import connected_graph, edge_set


def test_a_triangulation_is_planar_connected_and_follows_its_seed():
    mesh = delaunay(400, seed=1)
    assert connected_components(mesh)[0] == 1
    assert 2 * 400 < mesh.nnz // 2 <= 3 * 400 - 6
    assert set(edge_set(mesh).values()) == {1.0}
    assert edge_set(mesh) == edge_set(delaunay(400, seed=1)) != edge_set(delaunay(400, seed=2))


@pytest.mark.parametrize("steps", [2, 6, 60, None])
def test_a_stream_is_new_distinct_and_within_reach(steps):
    mesh = delaunay(400, seed=1)
    stream = walk_stream(mesh, 150, steps=steps, seed=3)
    pairs = {(u, v) for u, v in stream.tolist()}
    assert stream.shape == (150, 2) and len(pairs) == 150
    assert (stream[:, 0] < stream[:, 1]).all()
    assert not pairs & edge_set(mesh).keys()
    hops = dijkstra(mesh, unweighted=True)[stream[:, 0], stream[:, 1]]
    assert hops.min() >= 2 and hops.max() <= (steps or np.inf)
    np.testing.assert_array_equal(stream, walk_stream(mesh, 150, steps=steps, seed=3))


def test_longer_walks_reach_further():
    mesh = delaunay(2000, seed=1)
    reach = [
        dijkstra(mesh, indices=stream[:, 0], unweighted=True)[np.arange(200), stream[:, 1]].mean()
        for stream in (walk_stream(mesh, 200, steps=steps) for steps in (6, 60, None))
    ]
    assert reach[0] < 4 < reach[1] < 12 < reach[2]


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="expected 50 new edges within reach, found"):
        walk_stream(connected_graph(6, 2), 50, steps=3)
