"""A product that spends nothing on zero activations, in plain PyTorch."""

import torch
from torch import Tensor


def activation_sparse_matmul(activations: Tensor, weight_t: Tensor) -> Tensor:
    """Return activations @ weight_t, float32 [n, M], of the non-zero activations."""
    return torch.sparse.mm(activations.float().to_sparse(), weight_t.float())
