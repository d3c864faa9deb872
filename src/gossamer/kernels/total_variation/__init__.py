"""Total variation of image sequences: the two passes that a primal-dual iteration makes."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.total_variation import reference
from gossamer.kernels.total_variation.reference import finite_differences

__all__ = ["finite_differences", "tv_adjoint", "tv_dual_ascent"]

_DTYPES = (torch.complex64, torch.complex128)


def tv_dual_ascent(
    dual: Tensor,
    image: Tensor,
    *,
    dims: tuple[int, ...],
    step: float,
    radius: float,
    impl: backend.Impl = "auto",
) -> Tensor:
    """Step along the differences of images, then project onto balls: TV's half of an iteration.

    ``q = dual + step D image``; every pixel's vector of differences over `dims` is divided by
    ``max(1, |q| / radius)``. Differences are forward ones, 0 behind the last pixel.

    Parameters
    ----------
    dual : Tensor [len(dims), ..., T, H, W] complex64 or complex128
    image : Tensor [..., T, H, W]
        Of the same type.
    dims : tuple of int
        Which of -3 (time), -2 (rows), -1 (columns) are differenced, ascending. Several together
        are isotropic.
    step : float
        At least 0.
    radius : float
        Of the balls, above 0: the weight of the total variation.
    impl : {"auto", "reference", "cpu"}
        The C++ kernel takes complex64.

    Returns
    -------
    Tensor [len(dims), ..., T, H, W]

    Raises
    ------
    TypeError
        If a tensor is not complex, or types differ or do not suit `impl`.
    ValueError
        If shapes, dims, step, radius or devices do not fit, or a gradient would be needed.

    Examples
    --------
    >>> image = torch.tensor([[[0, 3, 3, 4j]]], dtype=torch.complex64)
    >>> dual = torch.zeros(1, 1, 1, 4, dtype=torch.complex64)
    >>> tv_dual_ascent(dual, image, dims=(-1,), step=1.0, radius=4.0).abs()
    tensor([[[[3., 0., 4., 0.]]]])
    """
    _check(dual, dims)
    if image.shape != dual.shape[1:] or image.dtype != dual.dtype or image.device != dual.device:
        raise ValueError(
            f"expected image {list(dual.shape[1:])} of {dual.dtype} on {dual.device}, got "
            f"{list(image.shape)} of {image.dtype} on {image.device}"
        )
    if not (0 <= step < float("inf") and 0 < radius < float("inf")):
        raise ValueError(f"expected step >= 0 and radius > 0, finite, got {step} and {radius}")
    _check_no_grad(image)
    return torch.ops.gossamer.tv_dual_ascent(
        dual, image, list(dims), step, radius, _choose(impl, dual)
    )


def tv_adjoint(dual: Tensor, *, dims: tuple[int, ...], impl: backend.Impl = "auto") -> Tensor:
    """Sum what differences pull at each pixel: the adjoint of `finite_differences`.

    Parameters
    ----------
    dual : Tensor [len(dims), ..., T, H, W] complex64 or complex128
    dims : tuple of int
        As for `tv_dual_ascent`.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [..., T, H, W]

    Raises
    ------
    TypeError, ValueError
        As `tv_dual_ascent` does.

    Examples
    --------
    >>> dual = torch.tensor([[[[1, 1, 2, 9]]]], dtype=torch.complex64)
    >>> tv_adjoint(dual, dims=(-1,)).real
    tensor([[[-1.,  0., -1.,  2.]]])
    """
    _check(dual, dims)
    return torch.ops.gossamer.tv_adjoint(dual, list(dims), _choose(impl, dual))


def _check(dual: Tensor, dims: tuple[int, ...]) -> None:
    if dual.dtype not in _DTYPES:
        raise TypeError(f"expected dual to be complex64 or complex128, got {dual.dtype}")
    if not dims or list(dims) != sorted(set(dims) & {-3, -2, -1}):
        raise ValueError(f"expected dims out of -3, -2, -1, ascending, got {tuple(dims)}")
    if dual.ndim < 4 or dual.shape[0] != len(dims):
        raise ValueError(f"expected dual [{len(dims)}, ..., T, H, W], got {list(dual.shape)}")
    _check_no_grad(dual)


def _check_no_grad(tensor: Tensor) -> None:
    if torch.is_grad_enabled() and tensor.requires_grad:
        raise ValueError("this kernel has no gradient, try torch.no_grad() or .detach()")


def _choose(impl: str, dual: Tensor) -> str:
    if dual.dtype == torch.complex64:
        return backend.choose(impl, dual.device, backend.WITHOUT_TRITON)
    if impl not in ("auto", "reference"):
        raise TypeError(f"expected complex64 for impl={impl!r}, got {dual.dtype}; try impl='auto'")
    return "reference"


def _layout(dual: Tensor) -> tuple[int, int, int, int]:
    """Return sequences, frames, rows and columns."""
    frames, rows, columns = dual.shape[-3:]
    return dual.shape[1:-3].numel(), frames, rows, columns


def _tv_dual_ascent(
    dual: Tensor, image: Tensor, dims: list[int], step: float, radius: float, impl: str
) -> Tensor:
    if impl != "cpu":
        return reference.tv_dual_ascent(dual, image, dims, step, radius)
    out = torch.empty_like(dual, memory_format=torch.contiguous_format)
    backend.launch(
        "tv_dual_ascent",
        _floats(dual),
        _floats(image),
        _floats(out),
        _bits(dims),
        *_layout(dual),
        step,
        radius,
        torch.get_num_threads(),
    )
    return out


def _tv_adjoint(dual: Tensor, dims: list[int], impl: str) -> Tensor:
    if impl != "cpu":
        return reference.tv_adjoint(dual, dims)
    out = dual.new_empty(dual.shape[1:])
    backend.launch(
        "tv_adjoint",
        _floats(dual),
        _floats(out),
        _bits(dims),
        *_layout(dual),
        torch.get_num_threads(),
    )
    return out


def _floats(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj().contiguous())


def _bits(dims: list[int]) -> int:
    return sum(1 << (dim + 3) for dim in dims)  # 1 time, 2 rows, 4 columns


def _empty_dual(dual: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(dual, memory_format=torch.contiguous_format)


def _empty_image(dual: Tensor, *rest: object) -> Tensor:
    return dual.new_empty(dual.shape[1:])


register(
    "tv_dual_ascent(Tensor dual, Tensor image, int[] dims, float step, float radius, str impl) "
    "-> Tensor",
    _tv_dual_ascent,
    _empty_dual,
)
register("tv_adjoint(Tensor dual, int[] dims, str impl) -> Tensor", _tv_adjoint, _empty_image)
