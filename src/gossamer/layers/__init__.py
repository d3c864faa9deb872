"""Trainable layers that store their non-zero weights only, in place of torch.nn's."""

from gossamer.layers.sparse_conv import SparseConv2d
from gossamer.layers.sparse_linear import SparseLinear

__all__ = ["SparseConv2d", "SparseLinear"]
