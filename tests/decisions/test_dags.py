"""Depths of DAGs agree with networkx, and whatever is no DAG is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.decisions import edge_density, empty_dag, full_dag, line_dag, topological_depth


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 2**31), density=st.floats(0, 1))
def test_depth_is_the_longest_path(n, seed, density):
    networkx = pytest.importorskip("networkx")
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(n, n, generator=generator) < density).float().triu(1)
    order = torch.randperm(n, generator=generator)
    adjacency = upper[order][:, order]
    graph = networkx.DiGraph(adjacency.numpy())
    depth = dict.fromkeys(range(n), 0)
    for agent in networkx.topological_sort(graph):
        for child in graph.successors(agent):
            depth[child] = max(depth[child], depth[agent] + 1)
    both = topological_depth(torch.stack((adjacency, torch.zeros(n, n))))
    assert both[0].tolist() == [depth[agent] for agent in range(n)]
    assert both[1].tolist() == [0] * n


def test_the_named_dags():
    assert topological_depth(empty_dag(4)).tolist() == [0, 0, 0, 0]
    assert line_dag(3).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert topological_depth(full_dag(4)).tolist() == [0, 1, 2, 3]
    assert torch.equal(line_dag(2), full_dag(2))  # the released line stops one edge short


def test_density_is_the_mean_share_of_possible_edges():
    graphs = torch.stack((empty_dag(5), line_dag(5), full_dag(5))).requires_grad_()
    density = edge_density(graphs)
    assert density.detach().item() == pytest.approx((0 + 0.4 + 1) / 3)
    density.backward()
    assert graphs.grad is not None and torch.allclose(graphs.grad, torch.tensor(2 / 20 / 3))


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (torch.eye(3), "no cycle"),
        (torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), "no cycle"),
        (torch.stack((full_dag(3), full_dag(3) + full_dag(3).T)), "no cycle"),
        (full_dag(3) / 2, "zeros and ones"),
        (torch.full((2, 2), torch.nan), "zeros and ones"),
        (torch.zeros(2, 3), r"got \(2, 3\)"),
    ],
)
def test_refuses_what_is_no_dag(adjacency, message):
    with pytest.raises(ValueError, match=message):
        topological_depth(adjacency)


@pytest.mark.parametrize("make", [empty_dag, line_dag, full_dag])
def test_refuses_one_agent(make):
    with pytest.raises(ValueError, match="n_agents: expected at least 2, got 1"):
        make(1)
