"""The layouts of activations that the sparse kernels read: [images, positions, features].

A linear layer's rows are the positions of one image; a convolution's input [B, C, H, W], seen
as [B, H * W, C], keeps its positions contiguous, and so does the output made for it.
"""

import torch
from torch import Tensor

from gossamer.kernels import backend


def readable(x: Tensor) -> Tensor:
    """Return `x`, copied only when neither its positions nor its features are contiguous."""
    return x if x.stride(2) == 1 or x.stride(1) == 1 else x.contiguous()


def empty_features(like: Tensor, features: int) -> Tensor:
    """Return an uninitialised [images, positions, `features`] tensor laid out as `like` is."""
    images, positions, _ = like.shape
    if like.stride(1) == 1 and like.stride(2) != 1:
        return like.new_empty(images, features, positions).mT
    return like.new_empty(images, positions, features)


def as_images(x: Tensor) -> Tensor:
    """Return `x` [..., features] as [images, positions, features], copied only when it must be."""
    if x.ndim == 3 and x.stride(1) == 1 and x.stride(2) != 1:
        return x
    return x.reshape(1, x.shape[:-1].numel(), x.shape[-1])


def empty_dots(x: Tensor, entries: int) -> Tensor:
    """Return room for one sum over the positions of `x` an entry; zeros where there are none."""
    return x.new_empty(entries) if x.shape[0] * x.shape[1] else x.new_zeros(entries)


def choose(impl: str, x: Tensor) -> str:
    """Return the implementation for `x`: float64 has the reference only."""
    if x.dtype != torch.float64:
        return backend.choose(impl, x.device, backend.WITHOUT_TRITON)
    if impl not in ("auto", "reference"):
        raise TypeError(f"expected float32 for impl={impl!r}, got float64; try impl='auto'")
    return "reference"
