"""Dot products at the entries of a pattern in plain PyTorch."""

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements gathered at a time


def rows_of(offsets: Tensor, indices: Tensor) -> Tensor:
    """Return the row of every entry, int64 [nnz]."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff(), output_size=len(indices))


def sddmm(left: Tensor, right: Tensor, offsets: Tensor, indices: Tensor) -> Tensor:
    """Return sum over images and positions of left[..., row] * right[..., column], [nnz]."""
    a, b = left.flatten(0, 1), right.flatten(0, 1)
    rows, columns = rows_of(offsets, indices), indices.long()
    chunk = max(1, CHUNK // max(1, len(a)))
    pairs = zip(rows.split(chunk), columns.split(chunk), strict=True)
    return torch.cat([(a[:, row] * b[:, column]).sum(0) for row, column in pairs])
