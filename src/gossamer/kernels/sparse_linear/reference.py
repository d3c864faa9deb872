"""A linear layer with a sparse weight and its gradients in plain PyTorch."""

import torch
from torch import Tensor

from gossamer.kernels.sddmm import reference


def sparse_linear(
    input: Tensor, values: Tensor, bias: Tensor | None, offsets: Tensor, indices: Tensor
) -> Tensor:
    """Return input @ weight.T + bias, [images, positions, M]."""
    rows = reference.rows_of(offsets, indices)
    shape = (len(offsets) - 1, input.shape[2])
    places = torch.stack([rows, indices.long()])
    weight = torch.sparse_coo_tensor(
        places, values, shape, is_coalesced=True, check_invariants=False
    )
    output = torch.sparse.mm(weight, input.flatten(0, 1).mT).mT
    if bias is not None:
        output = output + bias
    return output.reshape(*input.shape[:2], shape[0])


def sparse_linear_backward(
    grad: Tensor, input: Tensor, values: Tensor, offsets: Tensor, indices: Tensor, order: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of input [images, positions, K] and values [nnz], read by column."""
    by_column = values[order]
    products = reference.sddmm(input, grad, offsets, indices)
    by_row = torch.empty_like(values)
    by_row[order.long()] = products
    return sparse_linear(grad, by_column, None, offsets, indices), by_row
