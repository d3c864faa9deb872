"""Sparse weight times dense matrix in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def spmm(
    values: Tensor,
    offsets: Tensor,
    columns: Tensor,
    dense: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
) -> Tensor:
    """Return clamp(weight @ dense + bias) [N, M, P] for compressed rows and dense [N, K, P].

    A row of the product is a bag of the rows of `dense` that its entries name.
    """
    batch, depth, width = dense.shape
    rows = len(offsets) - 1
    if not dense.numel():
        product = dense.new_zeros(rows, batch * width, dtype=torch.float32)
    else:
        product = embedding_bag(
            columns.to(offsets.dtype),
            dense.transpose(0, 1).reshape(depth, batch * width).float(),
            offsets,
            mode="sum",
            per_sample_weights=values.float(),
            include_last_offset=True,
        )
    if bias is not None:
        product = product + bias[:, None]
    product = product.clamp(low, high).to(dense.dtype)
    return product.reshape(rows, batch, width).transpose(0, 1).contiguous()
