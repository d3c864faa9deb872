"""Folding: the same function with a row for each ReLU that matters, and for no other neuron."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.dynamics import PiecewiseAffine, SparseActivation, sparse_mlp

CODES = st.lists(st.integers(0, 2), min_size=5, max_size=5)


def typed_mlp(*layers) -> nn.Sequential:
    model = sparse_mlp(3, tuple(len(codes) for codes in layers), 2).double().eval()
    for place, codes in enumerate(layers):
        model[2 * place + 1].types.copy_(torch.tensor(codes))
    return model


@settings(max_examples=60, deadline=None)
@given(first=CODES, second=CODES, third=CODES, seed=st.integers(0, 10**6))
def test_the_folded_function_is_the_network(first, second, third, seed):
    torch.manual_seed(seed)
    model = typed_mlp(first, second, third)
    folded = PiecewiseAffine.from_module(model)
    x = torch.randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        assert np.allclose(folded(x.numpy()), model(x).numpy(), atol=1e-12)
    assert folded.relus <= sum(codes.count(0) for codes in (first, second, third))
    assert not np.triu(folded.hidden_weight).any()


def test_identities_and_zeros_leave_no_row():
    assert PiecewiseAffine.from_module(typed_mlp([1] * 4, [1, 2, 1])).relus == 0
    assert PiecewiseAffine.from_module(typed_mlp([0, 1, 2, 0], [1, 0, 1])).relus == 3


def test_relus_that_nothing_reads_are_dropped():
    model = typed_mlp([0, 0, 0], [0, 1])
    with torch.no_grad():
        model[2].weight[:, 1] = 0.0  # nobody reads the second of the first layer
        model[4].weight[:, 0] = 0.0  # nor the ReLU of the second
    folded = PiecewiseAffine.from_module(model)
    assert folded.relus == 2
    x = torch.randn(20, 3, dtype=torch.float64)
    assert np.allclose(folded(x.numpy()), model(x).detach().numpy())


def test_batch_norm_is_folded_only_when_fixed():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(64, 4) * 3 + 1)
    model = nn.Sequential(
        nn.Linear(2, 4), nn.Sequential(norm, nn.Identity(), nn.ReLU()), nn.Linear(4, 1, bias=False)
    )
    with pytest.raises(ValueError, match=r"fixed statistics, try model.eval\(\)"):
        PiecewiseAffine.from_module(model)
    x = torch.randn(20, 2, dtype=torch.float64)
    folded = PiecewiseAffine.from_module(model.double().eval())
    assert np.allclose(folded(x.numpy()), model(x).detach().numpy())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), TypeError, "got Tanh"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), ValueError, "a linear layer first"),
        (nn.Sequential(), ValueError, "at least one linear layer"),
    ],
)
def test_refuses(model, error, message):
    with pytest.raises(error, match=message):
        PiecewiseAffine.from_module(model)


def test_refuses_types_that_are_still_drawn():
    layer = SparseActivation(2)
    layer.temperature = 0.5
    with pytest.raises(ValueError, match="fixed neuron types"):
        PiecewiseAffine.from_module(nn.Sequential(nn.Linear(2, 2), layer))
