"""Graphs in and out: every way in gives one matrix, and what is no graph is refused by name."""

import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import mmwrite
from scipy.sparse import coo_array, csr_array

from gossamer.errors import FormatError
from gossamer.graphs import (
    as_adjacency,
    from_edge_index,
    from_laplacian,
    laplacian,
    largest_component,
    read_graph,
    to_edge_index,
    to_networkx,
    write_graph,
)
from gossamer.testing.graphs import connected_graph, dense_laplacian

GRAPH = connected_graph(12, 14, seed=3)
DENSE = GRAPH.toarray()


def same(found: csr_array, dense: np.ndarray = DENSE) -> None:
    assert isinstance(found, csr_array) and found.dtype == np.float64
    assert found.has_canonical_format or found.has_sorted_indices
    np.testing.assert_array_equal(found.toarray(), dense)
    assert found.nnz == np.count_nonzero(dense)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_every_way_in_and_back_gives_the_same_graph():
    tensor = torch.from_numpy(DENSE)
    for graph in (GRAPH, GRAPH.tocoo(), GRAPH.tocsc(), tensor.to_sparse(), tensor.to_sparse_csr()):
        same(as_adjacency(graph))
    same(as_adjacency(nx.from_numpy_array(DENSE)))
    same(as_adjacency(to_networkx(GRAPH)))
    index, weight = to_edge_index(GRAPH)
    assert index.dtype == torch.int64 and weight.dtype == torch.float32
    np.testing.assert_allclose(from_edge_index(index, weight).toarray(), DENSE, rtol=1e-7)
    same(from_laplacian(laplacian(GRAPH)))
    np.testing.assert_array_equal(laplacian(GRAPH).toarray(), dense_laplacian(GRAPH))


def test_graphs_without_edges_have_empty_rows():
    assert as_adjacency(nx.Graph()).shape == (0, 0)
    assert as_adjacency(nx.empty_graph(3)).shape == (3, 3)


def test_the_result_is_a_copy():
    found = as_adjacency(GRAPH)
    found.data[:] = 9
    np.testing.assert_array_equal(GRAPH.toarray(), DENSE)


def test_parallel_edges_add_up_and_nodes_keep_their_order():
    doubled = coo_array(([1.0, 2.0, 3.0], ([0, 0, 1], [1, 1, 0])), shape=(3, 3))
    same(as_adjacency(doubled), np.array([[0, 3.0, 0], [3, 0, 0], [0, 0, 0]]))
    multi = nx.MultiGraph([("b", "a"), ("b", "a"), ("c", "a")])
    same(as_adjacency(multi), np.array([[0, 2.0, 0], [2, 0, 1], [0, 1, 0]]))
    index = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])
    same(from_edge_index(index, num_nodes=2), np.array([[0.0, 2], [2, 0]]))


def test_self_loops_are_dropped_with_a_warning():
    with pytest.warns(UserWarning, match="dropped 12 self-loops"):
        found = as_adjacency(csr_array(DENSE + np.eye(12)))
    same(found)


def test_the_largest_component_is_renumbered_in_order():
    blocks = np.zeros((15, 15))
    blocks[3:, 3:] = DENSE
    blocks[0, 1] = blocks[1, 0] = 1.0
    same(largest_component(csr_array(blocks)))


def small(**entries: float) -> csr_array:
    """A 3 x 3 matrix by "row_column"."""
    dense = np.zeros((3, 3))
    for place, value in entries.items():
        dense[int(place[1]), int(place[2])] = value
    return csr_array(dense)


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (DENSE, TypeError, "expected a scipy.sparse array.* got ndarray; try .*csr_array"),
        (torch.ones(2, 2), TypeError, "got Tensor"),
        (None, TypeError, "got NoneType"),
        (csr_array(np.ones((2, 3))), ValueError, r"square matrix, got \[2, 3\]"),
        (csr_array(1j * DENSE), TypeError, "real weights, got complex128"),
        (small(e01=1), ValueError, "symmetric matrix, got an asymmetric one; try"),
        (small(e01=1, e10=2), ValueError, "symmetric"),
        (small(e01=1, e12=1, e10=1, e20=1), ValueError, "symmetric"),
        (small(e01=-1, e10=-1), ValueError, r"positive, finite weights.* from_laplacian"),
        (small(e01=np.nan, e10=np.nan), ValueError, "positive, finite"),
        (small(e01=np.inf, e10=np.inf), ValueError, "positive, finite"),
        (nx.DiGraph([(0, 1)]), ValueError, "symmetric"),
    ],
)
def test_what_is_no_graph_is_refused(graph, error, message):
    with pytest.raises(error, match=message):
        as_adjacency(graph)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3),), r"int64 \[2, E\], got torch.float32 \[2, 3\]"),
        ((torch.zeros(3, 2).long(),), r"int64 \[2, E\], got torch.int64 \[3, 2\]"),
        ((torch.tensor([[0, 1], [1, 0]]), torch.ones(3)), r"edge_weight to be \[2\], got \[3\]"),
        ((torch.tensor([[0, 1], [1, 0]]), None, 1), r"ids in 0..0, got 0..1"),
        ((torch.tensor([[0, -1], [-1, 0]]), None, 4), r"ids in 0..3, got -1..0"),
        ((torch.tensor([[0], [1]]),), "both directions of every edge"),
    ],
)
def test_bad_edge_lists_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_edge_index(*arguments)


def test_networkx_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match=r"pip install gossamer\[graphs\]"):
        to_networkx(GRAPH)
    same(as_adjacency(GRAPH))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 20),
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from(["a b.mtx", "ü.graph", "c.metis"]),
)
def test_files_round_trip(tmp_path, vertices, extra, weighted, name):
    graph = connected_graph(vertices, extra, seed=vertices, weighted=weighted)
    if not name.endswith("mtx"):
        graph.data = np.ceil(graph.data)
    write_graph(tmp_path / name, graph)
    same(read_graph(tmp_path / name), graph.toarray())
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.graph"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"whole-number weights for METIS.* try .mtx"):
        write_graph(path, GRAPH)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"expected a .mtx, .graph or .metis file, got 'a.txt'"):
        write_graph(tmp_path / "a.txt", GRAPH)


def test_a_laplacian_in_a_file_is_a_graph(tmp_path):
    mmwrite(tmp_path / "circuit.mtx", coo_array(dense_laplacian(GRAPH) + 0.5 * np.eye(12)))
    same(read_graph(tmp_path / "circuit.mtx"))


def test_metis_as_its_manual_writes_it(tmp_path):
    path = tmp_path / "manual.graph"
    path.write_text("% a comment\n4 3 011 2\n% weights of vertices, then edges\n"
                    "9 9 2 5\n9 9 1 5 3 7\n9 9 2 7 4 1\n9 9 3 1\n")  # fmt: skip
    expected = np.zeros((4, 4))
    expected[[0, 1, 2], [1, 2, 3]] = 5, 7, 1
    same(read_graph(path), expected + expected.T)
    path.write_text("4 1\n2\n1\n\n\n")  # two vertices without edges
    assert read_graph(path).nnz == 2 and read_graph(path).shape == (4, 4)


HEAD = "%%MatrixMarket matrix coordinate real symmetric\n"
BAD_FILES = {
    "empty.mtx": "",
    "no-header.mtx": "3 3 1\n1 2 1\n",
    "array.mtx": "%%MatrixMarket matrix array real general\n2 2\n0\n1\n1\n0\n",
    "oblong.mtx": HEAD.replace("symmetric", "general") + "2 3 1\n1 2 1.0\n",
    "short.mtx": HEAD + "3 3 2\n2 1 1.0\n",
    "outside.mtx": HEAD + "3 3 1\n4 1 1.0\n",
    "huge.mtx": HEAD + "99999999999 99999999999 1\n2 1 1.0\n",
    "many.mtx": HEAD + "3 3 99999999999\n2 1 1.0\n",
    "nan.mtx": HEAD + "3 3 1\n2 1 nan\n",
    "infinite.mtx": HEAD + "3 3 1\n2 1 1e999\n",
    "signs.mtx": HEAD + "3 3 2\n2 1 1.0\n3 1 -1.0\n",
    "directed.mtx": HEAD.replace("symmetric", "general") + "2 2 1\n1 2 1.0\n",
    "skew.mtx": HEAD.replace("symmetric", "skew-symmetric") + "2 2 1\n2 1 1.0\n",
    "fraction.mtx": HEAD + "3 3 1\n2.5 1 1.0\n",
    "negative.mtx": HEAD + "3 3 -1\n2 1 1.0\n",
    "long.mtx": HEAD + "3 3 1\n2 1 1.0\n3 1 1.0\n",
    "ragged.mtx": HEAD + "3 3 2\n2 1 1.0\n3 1\n",
    "complex.mtx": HEAD.replace("real", "complex") + "2 2 1\n2 1 1.0 1.0\n",
    "empty.graph": "",
    "words.graph": "three four\n",
    "one-number.graph": "3\n",
    "format.graph": "2 1 21\n2\n1\n",
    "many.graph": "2 9\n2\n1\n",
    "huge.graph": "99999999999 1\n2\n1\n",
    "rows.graph": "2 1\n2\n1\n1\n",
    "letters.graph": "2 1\nx\n1\n",
    "zero.graph": "2 1\n0\n1\n",
    "outside.graph": "2 1\n3\n1\n",
    "weights.graph": "2 1 1\n2\n1\n",
    "negative.graph": "2 1 1\n2 -4\n1 -4\n",
    "directed.graph": "3 1\n2\n3\n\n",
    "long.graph": "2 1\n99999999999999999999999\n1\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_text(BAD_FILES[name])
    with pytest.raises(FormatError, match=name) as caught:
        read_graph(path)
    assert caught.value.path == path


def test_other_suffixes_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"expected a .mtx, .graph or .metis file, got 'a.csv'"):
        read_graph(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        read_graph(tmp_path / "a.mtx")


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["a.mtx", "a.graph"]), st.data())
def test_no_mutation_of_a_file_breaks_the_reader(tmp_path: Path, name, data):
    path = tmp_path / name
    whole = connected_graph(6, 4, weighted=False)
    write_graph(path, whole)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        new = data.draw(
            st.sampled_from([b"", b"-", b"9" * 12, b"\xff", b"\r", b"nan", b"1e999", b"%", b" "])
        )
        content[place : place + data.draw(st.integers(0, 3))] = new
    path.write_bytes(content)
    try:
        found = read_graph(path)
    except FormatError:
        return
    same(as_adjacency(found), found.toarray())
