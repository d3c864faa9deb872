"""Sums of products of bytes in plain PyTorch: exact, since float64 holds them."""

from torch import Tensor


def integer_product(weight: Tensor, dense: Tensor, begin: Tensor) -> Tensor:
    """Return ``begin + weight @ dense`` as float64 [N, M, P] of int8 [M, K] and bytes [N, K, P]."""
    return weight.double() @ dense.double() + begin.double()[:, None]
