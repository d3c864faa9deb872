"""N:M weight times dense matrix in plain PyTorch."""

import torch
from torch import Tensor

from gossamer.kernels.spmm import reference


def nm_matmul(values: Tensor, indices: Tensor, m: int, dense: Tensor) -> Tensor:
    """Return weight @ dense [N, M, P] for values and indices [M, K / m, n], dense [N, K, P]."""
    rows, groups, n = values.shape
    group = torch.arange(groups, device=values.device)[:, None] * m
    offsets = torch.arange(rows + 1, device=values.device) * (groups * n)
    columns = (group + indices).flatten()
    return reference.spmm(values.flatten(), offsets, columns, dense, None, -torch.inf, torch.inf)
