"""A dense copy shares what was dense, replaces what was sparse, and leaves the model alone."""

import torch
from torch import nn

from gossamer.adapters.dense_copy import dense_copy
from gossamer.layers import SparseLinear


def test_dense_parts_are_shared_and_sparse_ones_replaced():
    sparse = SparseLinear.from_dense(nn.Linear(3, 3), torch.eye(3) > 0)
    model = nn.Sequential(nn.BatchNorm1d(3), sparse, nn.Sequential(sparse, nn.Linear(3, 2)))
    copied = dense_copy(model)
    assert copied[0] is not model[0] and copied[0].weight is model[0].weight
    assert copied[0].running_mean is model[0].running_mean
    assert copied[2][1].weight is model[2][1].weight
    assert type(copied[1]) is nn.Linear and copied[1] is copied[2][0]  # one layer used twice
    assert torch.equal(copied[1].weight, sparse.weight.to_dense())
    assert model[1] is sparse and model[2][0] is sparse
    copied.eval()
    assert model.training and model[0].training


def test_a_sparse_layer_by_itself():
    layer = SparseLinear.from_dense(nn.Linear(3, 2))
    assert type(dense_copy(layer)) is nn.Linear
    assert type(layer) is SparseLinear
