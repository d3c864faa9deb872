"""Proximal operators on complex image sequences [..., T, H, W]."""

from collections.abc import Callable

import torch
from torch import Tensor


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
    >>> soft(torch.tensor([3j, 1 + 0j, -0.5 + 0j]), 1.0).abs().tolist()
    [2.0, 0.0, 0.0]
    """
    size = z.abs()
    return z * ((size - threshold).clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).tiny))


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
    return shrink_singular_values(x, lambda sizes: (sizes - threshold).clamp(min=0), dim=dim)


def singular_values(x: Tensor, *, dim: int) -> Tensor:
    """Return the singular values of an unfolding [x.shape[dim], rest], float64, ascending.

    Examples
    --------
    >>> x = torch.diag(torch.tensor([3.0, 1.0])).to(torch.complex64)[:, None]
    >>> singular_values(x, dim=-3).tolist()
    [1.0, 3.0]
    """
    return torch.linalg.eigvalsh(_gram(x, dim)).clamp(min=0).sqrt()


def shrink_singular_values(x: Tensor, shrink: Callable[[Tensor], Tensor], *, dim: int) -> Tensor:
    """Replace the singular values s of an unfolding by ``shrink(s)``, at most s each.

    The small Gram matrix gives them without a decomposition of the unfolding itself. It is summed
    in float64, since squares would take half of float32's digits from the small ones, and no
    singular vector is ever divided by its value.

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
    squares, vectors = torch.linalg.eigh(_gram(x, dim))
    sizes = squares.clamp(min=0).sqrt()
    least = sizes[-1] * torch.finfo(torch.float64).eps ** 0.5
    ratios = shrink(sizes) / sizes.clamp(min=least.clamp(min=torch.finfo(torch.float64).tiny))
    operator = ((vectors * ratios) @ vectors.mH).to(x.dtype)
    if dim == -3:
        return (operator @ x.flatten(1)).view_as(x)
    return operator @ x  # [H, H] @ [T, H, W]


def _gram(x: Tensor, dim: int) -> Tensor:
    """Return the unfolding times its adjoint [n, n], complex128."""
    rows = x.flatten(1) if dim == -3 else x.transpose(0, 1).flatten(1)
    rows = rows.to(torch.complex128)
    return rows @ rows.mH
