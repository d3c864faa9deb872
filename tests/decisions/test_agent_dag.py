"""Every sampled graph is a DAG of zeros and ones, is made again by its noise, and can be learnt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.decisions import (
    AgentDag,
    FixedDag,
    edge_density,
    full_dag,
    line_dag,
    topological_depth,
)


def generator(n, learn_order=True, scale=1.0, seed=0):
    torch.manual_seed(seed)
    dag = AgentDag(n, 3, learn_order=learn_order)
    with torch.no_grad():
        for weight in dag.parameters():
            weight.mul_(scale)
    return dag


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 8),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    learn_order=st.booleans(),
)
def test_every_sample_is_acyclic_and_binary(n, seed, scale, learn_order):
    dag = generator(n, learn_order, scale, seed)
    context = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
    for deterministic in (False, True):
        graphs = dag.sample(context, deterministic=deterministic).detach()
        assert bool(((graphs == 0) | (graphs == 1)).all())
        topological_depth(graphs)  # an order exists
        power = graphs.double()
        for _ in range(n):
            assert bool((power.diagonal(dim1=1, dim2=2) == 0).all())  # no cycle of this length
            power = power @ graphs.double()


def test_samples_differ_and_reach_both_directions():
    graphs = generator(4).sample(torch.zeros(200, 3)).detach()
    share = graphs.mean(0)
    off_diagonal = share[~torch.eye(4, dtype=torch.bool)]
    assert bool((off_diagonal > 0.05).all()) and bool((off_diagonal < 0.5).all())


def test_a_fixed_order_keeps_to_the_upper_triangle():
    graphs = generator(5, learn_order=False).sample(torch.randn(50, 3)).detach()
    assert torch.equal(graphs, graphs.triu(1)) and float(edge_density(graphs)) > 0.2


def test_noise_makes_the_same_graphs_again():
    dag, context = generator(5), torch.randn(30, 3)
    noise = dag.draw_noise(30, torch.Generator().manual_seed(3))
    first = dag.sample(context, noise=noise)
    assert torch.equal(first, dag.sample(context, noise=noise))
    drawn = dag.sample(context, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, drawn)
    assert not torch.equal(first, dag.sample(context))


def test_deterministic_ignores_noise():
    dag, context = generator(5), torch.randn(30, 3)
    noisy = dag.sample(context, noise=dag.draw_noise(30), deterministic=True)
    assert torch.equal(noisy, dag.sample(context, deterministic=True))


@pytest.mark.parametrize("learn_order", [True, False])
def test_gradients_reach_every_network(learn_order):
    dag = generator(4, learn_order)
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    (dag.sample(torch.randn(8, 3)) * weight).sum().backward()
    for name, parameter in dag.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_it_learns_wanted_edges_from_the_context():
    dag = generator(3, learn_order=False, seed=1)
    optimizer = torch.optim.Adam(dag.parameters(), lr=0.05)
    context = torch.eye(3)[torch.arange(64) % 2]
    wanted = torch.stack((full_dag(3), line_dag(3)))[torch.arange(64) % 2]
    for _ in range(80):
        optimizer.zero_grad()
        (dag.sample(context) - wanted).square().mean().backward()
        optimizer.step()
    assert torch.equal(dag.sample(context, deterministic=True).detach(), wanted)


def test_the_relaxation_is_soft():
    soft = generator(4).sample(torch.zeros(6, 3), hard=False)
    assert bool(((soft > 0) & (soft < 1)).any())


def test_a_fixed_dag_is_the_same_everywhere():
    graphs = FixedDag(full_dag(3)).sample(torch.zeros(4, 9))
    assert torch.equal(graphs, full_dag(3).expand(4, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AgentDag(1, 3), "n_agents: expected at least 2, got 1"),
        (lambda: AgentDag(2, 0), "context_dim: .* got 0"),
        (lambda: AgentDag(2, 3, hidden=0), "hidden: .* got 0"),
        (lambda: AgentDag(2, 3, sinkhorn_iters=0), "sinkhorn_iters: .* got 0"),
        (lambda: AgentDag(2, 3, temperature=-1.0), "temperature: .* got -1"),
        (lambda: AgentDag(2, 3).sample(torch.zeros(5, 4)), r"context: expected \[batch, 3\]"),
        (lambda: FixedDag(torch.ones(3, 3)), "no cycle"),
        (lambda: FixedDag(torch.zeros(4, 3, 3)), r"adjacency: expected \[n, n\]"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
