"""Finite differences and the dual step of total variation in plain PyTorch."""

import torch
from torch import Tensor


def finite_differences(image: Tensor, dims: tuple[int, ...] | list[int]) -> Tensor:
    """Return [len(dims), *image.shape]: ``x[i + 1] - x[i]`` along each, and 0 behind the last."""
    found = image.new_zeros(len(dims), *image.shape)
    for part, dim in zip(found, dims, strict=True):
        inner = image.shape[dim] - 1
        part.narrow(dim, 0, inner).copy_(image.narrow(dim, 1, inner) - image.narrow(dim, 0, inner))
    return found


def tv_adjoint(dual: Tensor, dims: tuple[int, ...] | list[int]) -> Tensor:
    """Return the adjoint of `finite_differences`; it reads no difference behind the last."""
    image = dual.new_zeros(dual.shape[1:])
    for part, dim in zip(dual, dims, strict=True):
        inner = image.shape[dim] - 1
        image.narrow(dim, 1, inner).add_(part.narrow(dim, 0, inner))
        image.narrow(dim, 0, inner).sub_(part.narrow(dim, 0, inner))
    return image


def tv_dual_ascent(
    dual: Tensor, image: Tensor, dims: tuple[int, ...] | list[int], step: float, radius: float
) -> Tensor:
    """Return ``dual + step * differences``, every element scaled back into a ball over `dims`."""
    risen = torch.add(dual, finite_differences(image, dims), alpha=step)
    sizes = torch.view_as_real(risen).square().sum((0, -1)).sqrt()  # vector_norm is far slower
    return risen * (radius / sizes.clamp(min=radius))
