"""Rotary position encoding in plain PyTorch."""

import torch
from torch import Tensor


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (d, d + D / 2) of vectors [..., D] by its angle [..., D / 2]."""
    first, second = vectors.float().chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(vectors.dtype)
