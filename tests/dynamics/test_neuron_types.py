"""Neuron types: what a layer computes, what it may still change, and what it may not."""

import pytest
import torch

from gossamer.dynamics import NeuronType, NeuronTypes, SparseActivation, sparse_mlp


def typed(codes) -> SparseActivation:
    layer = SparseActivation(len(codes))
    layer.types.copy_(torch.tensor(codes))
    return layer


def test_each_type_does_what_it_says():
    z = torch.tensor([[-2.0, -2.0, -2.0], [3.0, 3.0, 3.0]])
    assert typed([0, 1, 2])(z).tolist() == [[0.0, -2.0, 0.0], [3.0, 3.0, 0.0]]


def test_eval_mode_draws_nothing():
    layer = SparseActivation(64)
    layer.temperature = 0.5
    z = torch.randn(5, 64)
    assert not torch.equal(layer(z), z.relu())
    assert torch.equal(layer.eval()(z), z.relu())


def test_draws_are_one_hot_and_reach_the_logits():
    torch.manual_seed(0)
    layer = typed([0, 0, 1, 2])
    drawn = layer.sample()
    assert drawn.sum(-1).tolist() == [1.0] * 4 and set(drawn.unique().tolist()) <= {0.0, 1.0}
    layer.temperature = 0.5
    layer(torch.rand(8, 4)).sum().backward()
    assert layer.logits.grad is not None
    reached = layer.logits.grad.abs().sum(-1) > 0
    assert reached.tolist() == [True, True, False, False]  # settled neurons learn nothing


def test_draws_follow_the_logits():
    torch.manual_seed(0)
    layer = SparseActivation(30_000)
    with torch.no_grad():
        layer.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log().expand(30_000, 3))
    assert torch.allclose(layer.sample().mean(0), torch.tensor([0.5, 0.3, 0.2]), atol=0.01)


def test_a_settled_neuron_is_never_revived():
    layer = typed([0, 0, 2, 1])
    with torch.no_grad():
        layer.logits[:] = torch.tensor([9.0, 1.0, 0.0])
        layer.logits[1] = torch.tensor([0.0, 1.0, 2.0])
    assert layer.scores[2:].tolist() == [-torch.inf] * 2
    layer.freeze(torch.tensor([True, False, True, True]))
    assert layer.types.tolist() == [0, 2, 2, 1]
    layer.reset_logits()
    assert layer.types.tolist() == [0, 2, 2, 1]
    for _ in range(20):
        assert layer.sample()[2:].argmax(-1).tolist() == [2, 1]


def test_types_survive_a_state_dict():
    model = sparse_mlp(2, (3,), 1)
    model[1].types.copy_(torch.tensor([2, 1, 0]))
    other = sparse_mlp(2, (3,), 1)
    other.load_state_dict(model.state_dict())
    assert NeuronTypes.of(other).layers[0].tolist() == [2, 1, 0]
    assert "RELU=1, IDENTITY=1, ZERO=1" in repr(other)


def test_counts():
    types = NeuronTypes(
        (torch.tensor([0, 0, 1], dtype=torch.int8), torch.tensor([2], dtype=torch.int8))
    )
    assert [types.count(kind) for kind in NeuronType] == [2, 1, 1]
    assert types.density == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseActivation(0), r"width: expected at least 1, got 0"),
        (lambda: SparseActivation(2)(torch.ones(3)), r"expected \[..., 2\], got \[3\]"),
        (lambda: SparseActivation(2).sample(0.0), r"tau: .* got 0"),
        (lambda: NeuronTypes((torch.zeros(2),)), r"int8 codes.*got torch.float32 \[2\]"),
        (lambda: NeuronTypes((torch.tensor([3], dtype=torch.int8),)), r"int8 codes 0"),
        (lambda: NeuronTypes((torch.zeros(1, 2, dtype=torch.int8),)), r"got torch.int8 \[1, 2\]"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
