"""Generated meshes and streams."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components, dijkstra

from gossamer.data import graphs
from gossamer.data.graphs import cached_graph, delaunay, power_grid, read_matpower, walk_stream
from gossamer.errors import FormatError
from gossamer.models import packages
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


CASE = """function mpc = small
mpc.bus = [ 10 1; 20 1; 30 1; 40 1; 50 1 ];
mpc.branch = [
\t10\t20\t0.1\t0.5\t0;  % a comment
\t20\t10\t0.1\t-0.25\t0;
\t20 30 0 2 0; 30 30 0 1 0; 10 30 0 0 0
\t40 50 0 1 0;
];
mpc.gencost = [ 1 2 ];
"""


def test_a_power_grid_is_read_from_its_branches(tmp_path):
    path = tmp_path / "small.m"
    path.write_text(CASE)
    assert edge_set(read_matpower(path)) == {(0, 1): 2 + 4, (1, 2): 0.5}
    for broken in ("", CASE.replace("];", ""), CASE.replace("0.5", "half"), "mpc.branch = [];",
                   CASE.replace("0.5", "nan")):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(FormatError, match=r"small\.m: expected"):
            read_matpower(path)


def test_the_power_grid_is_fetched_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(
        packages, "read_part", lambda part, directory: calls.append(part) or CASE.encode()
    )
    assert edge_set(power_grid()) == edge_set(power_grid()) != {}
    assert calls == [graphs.PEGASE]
    assert cached_graph("case9241pegase.m") is not None and cached_graph("other") is None
