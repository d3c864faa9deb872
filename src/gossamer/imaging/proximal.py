"""Proximal operators on complex image sequences [..., T, H, W]."""

from collections.abc import Callable

import torch
from torch import Tensor

# Squared threshold over the sum of squares below which a float32 Gram matrix is too coarse: its
# rounding, 1e-7 of that sum, must stay far below the squares that the threshold tells apart.
_COARSE = 1e-4


def soft(z: Tensor, threshold: float) -> Tensor:
    """Shrink magnitudes by `threshold` and keep phases: the proximal operator of a sum of them.

    Parameters
    ----------
    z : Tensor
        Real or complex.
    threshold : float
        At least 0.

    Returns
    -------
    Tensor
        Of `z`'s shape.

    Examples
    --------
    >>> soft(torch.tensor([3j, 1 + 0j, -0.5 + 0j]), 1.0).abs().round(decimals=4).tolist()
    [2.0, 0.0, 0.0]
    """
    if not threshold:
        return z
    parts = torch.view_as_real(z).unbind(-1) if z.is_complex() else (z,)
    squares = sum((part.square() for part in parts[1:]), parts[0].square())
    return z * (1 - threshold * squares.rsqrt()).clamp(min=0)  # of zero, 1 - infinity


def lengths(edges: Tensor) -> Tensor:
    """Return the length of every pixel's complex vector [..., T, H, W] of edges [n, ..., T, H, W].

    Examples
    --------
    >>> lengths(torch.tensor([3j, 4 + 0j])[:, None]).tolist()
    [5.0]
    """
    return torch.view_as_real(edges).square().sum((0, -1)).sqrt()  # vector_norm is far slower


def svt(x: Tensor, threshold: float, *, dim: int) -> Tensor:
    """Shrink the singular values of an unfolding: the proximal operator of the nuclear norm.

    Parameters
    ----------
    x : Tensor [T, H, W] complex
    threshold : float
        What each singular value loses, at least 0.
    dim : int
        What the rows of the unfolding are: -3 gives frames by pixels (the Casorati matrix,
        transposed), -2 image rows by everything else.

    Returns
    -------
    Tensor [T, H, W]

    Examples
    --------
    >>> x = torch.diag(torch.tensor([3.0, 1.0])).to(torch.complex64)[:, None]
    >>> svt(x, 2.0, dim=-3).real[:, 0].tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    gram = _gram(x, dim)
    if threshold**2 < _COARSE * float(gram.diagonal().real.sum()):
        gram = _gram(x.to(torch.complex128), dim)
    return _shrink(x, gram, lambda sizes: (sizes - threshold).clamp(min=0), dim)


def singular_values(x: Tensor, *, dim: int) -> Tensor:
    """Return the singular values of an unfolding [x.shape[dim], rest], float64, ascending.

    Examples
    --------
    >>> x = torch.diag(torch.tensor([3.0, 1.0])).to(torch.complex64)[:, None]
    >>> singular_values(x, dim=-3).tolist()
    [1.0, 3.0]
    """
    return torch.linalg.eigvalsh(_gram(x.to(torch.complex128), dim)).clamp(min=0).sqrt()


def shrink_singular_values(x: Tensor, shrink: Callable[[Tensor], Tensor], *, dim: int) -> Tensor:
    """Replace the singular values s of an unfolding by ``shrink(s)``, at most s each.

    The small Gram matrix gives them without a decomposition of the unfolding itself. It is summed
    in float64, since squares take half of float32's digits from the small ones.

    Parameters
    ----------
    x : Tensor [T, H, W] complex
    shrink : callable
        Of float64 singular values [n], ascending, to as many.
    dim : int
        As for `svt`.

    Returns
    -------
    Tensor [T, H, W]
    """
    return _shrink(x, _gram(x.to(torch.complex128), dim), shrink, dim)


def _shrink(x: Tensor, gram: Tensor, shrink: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Apply the operator ``U shrink(s) / s U^H``; no singular vector is divided by its value."""
    squares, vectors = torch.linalg.eigh(gram)
    sizes = squares.clamp(min=0).sqrt()
    limits = torch.finfo(sizes.dtype)
    least = (sizes[-1] * limits.eps**0.5).clamp(min=limits.tiny)
    operator = ((vectors * (shrink(sizes) / sizes.clamp(min=least))) @ vectors.mH).to(x.dtype)
    if dim == -3:
        return (operator @ x.flatten(1)).view_as(x)
    return operator @ x  # [H, H] @ [T, H, W]


def _gram(x: Tensor, dim: int) -> Tensor:
    """Return the unfolding times its adjoint [n, n]."""
    rows = x.flatten(1) if dim == -3 else x.transpose(0, 1).flatten(1)
    return rows @ rows.mH
