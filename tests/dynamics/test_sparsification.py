"""The rounds: budgets are met exactly, what is settled stays, and the useful ReLU is found."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from gossamer.dynamics import (
    NeuronType,
    NeuronTypes,
    Training,
    settle_stable,
    sparse_mlp,
    sparsify_activations,
)
from gossamer.dynamics.relaxed_training import mean_squared_error, train

SHORT = Training(2, 2, 2, batch_size=32, weight_penalty=1e-5)


@pytest.fixture
def data():
    x = torch.randn(128, 3, generator=torch.Generator().manual_seed(0))
    return x, x.abs() @ torch.tensor([[1.0], [-1.0], [0.5]])


def model(seed=0):
    torch.manual_seed(seed)
    return sparse_mlp(3, (8, 8), 1)


def test_rounds_meet_their_budgets_and_never_revive(data):
    found = sparsify_activations(model(), data, [10, 6, 2], training=SHORT)
    assert [each.types.count(NeuronType.RELU) for each in found] == [10, 6, 2]
    assert [each.epochs for each in found] == [6, 10, 14]
    for before, after in pairwise(found):
        for old, new in zip(before.types.layers, after.types.layers, strict=True):
            assert torch.equal(new[old != NeuronType.RELU], old[old != NeuronType.RELU])
    for each in found:
        assert not each.model.training
        kept = NeuronTypes.of(each.model)
        assert all(map(torch.equal, kept.layers, each.types.layers))


def test_a_seed_gives_the_same_models_and_leaves_the_generator_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model(), model()
    torch.manual_seed(5)
    outputs = [
        sparsify_activations(each, data, [4], training=SHORT, seed=3)[0].model(data[0])
        for each in first
    ]
    assert torch.equal(*outputs)
    assert torch.equal(torch.rand(3), expected)


def test_the_penalty_leaves_fewer_relus_likely(data):
    def likely(penalty):
        network = model()
        for layer in (network[1], network[3]):
            layer.temperature = 0.5
        training = Training(epochs=2, relu_penalty=penalty, lr=0.05, batch_size=32)
        torch.manual_seed(0)
        train(
            network, [*network.parameters()], data, 5, mean_squared_error, training,
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        return float(torch.cat([network[1].scores, network[3].scores]).mean())

    free, costly = likely(0.0), likely(1.0)
    assert costly < 0.15 < free / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_relu_is_enough_for_one_hinge(seed):
    x = torch.linspace(-1, 1, 256)[:, None]
    torch.manual_seed(seed)
    network = sparse_mlp(1, (8,), 1)
    training = Training(40, 60, 60, lr=0.02, batch_size=64, noise=0, weight_penalty=0)
    (found,) = sparsify_activations(network, (x, x.abs()), [1], training=training)
    assert mean_squared_error(found.model, x, x.abs()) < 1e-3
    linear = nn.functional.mse_loss(x.abs(), x.abs().mean().expand_as(x))
    assert linear > 0.05  # what identities alone would leave


def test_a_loss_may_read_more_than_two_tensors(data):
    weights = torch.rand(128, 1)

    def loss(network, x, y, weight):
        return (weight * (network(x) - y).square()).mean()

    (found,) = sparsify_activations(model(), (*data, weights), [4], loss=loss, training=SHORT)
    assert found.budget == 4


def test_stable_relus_are_retyped_without_loss():
    network = model().eval()
    with torch.no_grad():
        network[0].bias[:3], network[0].bias[3:5] = 9.0, -9.0
    x = torch.rand(200, 3) - 0.5
    before = network(x)
    settled = settle_stable(network, [-0.5] * 3, [0.5] * 3)
    assert network[1].types[:5].tolist() == [1, 1, 1, 2, 2]
    assert settled == sum(int((layer.types != 0).sum()) for layer in (network[1], network[3]))
    assert torch.allclose(network(x), before, atol=1e-6)


def test_an_input_box_settles_first(data):
    network = model()
    with torch.no_grad():
        network[0].bias[0] = 100.0
    found = sparsify_activations(
        network, data, [12], training=SHORT, input_box=([-5.0] * 3, [5.0] * 3)
    )
    assert found[0].types.layers[0][0] == NeuronType.IDENTITY


@pytest.mark.parametrize(
    ("budgets", "rows", "message"),
    [
        ([], 128, r"budgets: .* got \[\]"),
        ([4, 4], 128, r"budgets: expected to decrease .* got \[4, 4\]"),
        ([4, 6], 128, r"got \[4, 6\]"),
        ([17], 128, r"at most 16"),
        ([4, 0], 128, r"at least 1"),
        ([4], 100, r"data: .* got \[100, 128\]"),
    ],
)
def test_refuses(data, budgets, rows, message):
    with pytest.raises(ValueError, match=message):
        sparsify_activations(model(), (data[0][:rows], data[1]), budgets, training=SHORT)


def test_refuses_models_and_losses_that_cannot_be_sparsified(data):
    with pytest.raises(ValueError, match="SparseActivation layers, got none"):
        sparsify_activations(nn.Linear(3, 1), data, [1])
    with pytest.raises(ValueError, match="finite loss"):
        sparsify_activations(model(), (data[0] * float("nan"), data[1]), [1], training=SHORT)
    with pytest.raises(TypeError, match="got Tanh"):
        settle_stable(nn.Sequential(nn.Tanh()), [0.0], [1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs: expected at least 0, got -1"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr: .* above 0"),
        ({"logit_lr": 0.0}, "logit_lr: .* above 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"noise": float("nan")}, "noise"),
        ({"relu_penalty": float("inf")}, "relu_penalty"),
    ],
)
def test_training_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Training(**options)
