"""Pruned networks at run time: stored weights are sparse, and zeros are not multiplied."""

from gossamer.inference.quantized import compile_int8
from gossamer.inference.sparse_model import LayerReport, SparseModel, compile

__all__ = ["LayerReport", "SparseModel", "compile", "compile_int8"]
