"""Layers that store their non-zero weights only, in place of torch.nn's: to train, to run."""

from gossamer.layers.packed_conv import PackedConv2d
from gossamer.layers.packed_linear import PackedLinear
from gossamer.layers.sparse_conv import SparseConv2d
from gossamer.layers.sparse_linear import SparseLinear

__all__ = ["PackedConv2d", "PackedLinear", "SparseConv2d", "SparseLinear"]
