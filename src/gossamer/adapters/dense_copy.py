"""Models that others can load: every sparse layer in its dense form, zeros included."""

import copy
from typing import Any

from torch import nn


def dense_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which sparse and packed layers are dense.

    A layer is sparse if it has a method `to_dense`, whose result takes its place. All other
    parameters and buffers are shared with `model`, which stays as it is.

    Examples
    --------
    >>> import torch
    >>> from gossamer.layers import SparseLinear
    >>> model = nn.Sequential(SparseLinear.from_dense(nn.Linear(3, 2)), nn.ReLU())
    >>> dense_copy(model)
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): ReLU()
    )
    """
    # What a deep copy remembers as copied already, it takes over instead of copying it.
    known: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    known |= {id(tensor): tensor for tensor in model.buffers()}
    for layer in model.modules():
        if callable(to_dense := getattr(layer, "to_dense", None)):
            known[id(layer)] = to_dense()
    return copy.deepcopy(model, known)
