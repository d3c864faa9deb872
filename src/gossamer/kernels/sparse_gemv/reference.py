"""Sparse weight times a few vectors in plain PyTorch."""

import math

from torch import Tensor

from gossamer.kernels.spmm import reference


def sparse_gemv(values: Tensor, offsets: Tensor, columns: Tensor, vectors: Tensor) -> Tensor:
    """Return vectors @ weight.mT [n, M] for compressed rows and vectors [n, K]."""
    dense = vectors.mT[None]
    return reference.spmm(values, offsets, columns, dense, None, -math.inf, math.inf)[0].mT
