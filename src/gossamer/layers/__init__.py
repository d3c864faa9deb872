"""Layers in place of torch.nn's that store, or read, no more of their weights than they must."""

from gossamer.layers.lossless_linear import LosslessLinear
from gossamer.layers.packed_conv import PackedConv2d
from gossamer.layers.packed_linear import PackedLinear
from gossamer.layers.sparse_conv import SparseConv2d
from gossamer.layers.sparse_linear import SparseLinear

__all__ = ["LosslessLinear", "PackedConv2d", "PackedLinear", "SparseConv2d", "SparseLinear"]
