"""Sampled dense-dense matrix product: a @ b at the entries of a sparse pattern only."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.features import as_images, choose, empty_dots, readable
from gossamer.kernels.library import register
from gossamer.kernels.sddmm import reference
from gossamer.kernels.sparse_weight import DTYPES, SparsePattern


def sddmm(
    a: Tensor, b: Tensor, pattern: SparsePattern | Tensor, *, impl: backend.Impl = "auto"
) -> Tensor:
    """Return ``a @ b`` at the entries of `pattern`; nothing of the full size is made.

    Parameters
    ----------
    a : Tensor [M, N] float32
    b : Tensor [N, K] float32
        The weight's gradient of a linear layer is ``sddmm(grad.T, input, pattern)``.
    pattern : SparsePattern or torch.sparse_csr Tensor, [M, K]
        A CSR tensor is checked and its indices are converted at every call.
    impl : {"auto", "reference", "cpu"}
        float64 runs the reference.

    Returns
    -------
    Tensor [nnz]
        In the order of the pattern's entries.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit, or a gradient would be needed.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> pattern = SparsePattern.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> sddmm(torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0, 20.0]]), pattern).tolist()
    [10.0, 20.0, 40.0]
    """
    pattern = pattern if isinstance(pattern, SparsePattern) else SparsePattern.from_csr(pattern)
    _check(a, b, pattern)
    return torch.ops.gossamer.sddmm(
        a.mT[None], as_images(b), pattern.offsets, pattern.indices, choose(impl, a)
    )


def _check(a: Tensor, b: Tensor, pattern: SparsePattern) -> None:
    rows, columns = pattern.shape
    if a.ndim != 2 or a.shape[0] != rows:
        raise ValueError(f"expected a of [{rows}, N], got {list(a.shape)}")
    if b.ndim != 2 or b.shape != (a.shape[1], columns):
        raise ValueError(f"expected b of [{a.shape[1]}, {columns}], got {list(b.shape)}")
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} to be float32, got {tensor.dtype}; try .float()")
        if tensor.dtype != a.dtype:
            raise TypeError(f"expected one dtype, got {a.dtype} a and {tensor.dtype} {name}")
        if tensor.device != pattern.indices.device:
            raise ValueError(
                f"expected one device, got {name} on {tensor.device}, pattern on "
                f"{pattern.indices.device}"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, which sddmm does not have; "
                "try .detach(), or sparse_linear"
            )


def _sddmm(left: Tensor, right: Tensor, offsets: Tensor, indices: Tensor, impl: str) -> Tensor:
    left, right = readable(left), readable(right)
    if impl != "cpu":
        return reference.sddmm(left, right, offsets, indices)
    dots = empty_dots(left, len(indices))
    backend.launch("sddmm", left, right, offsets, indices, dots, torch.get_num_threads())
    return dots


register(
    "sddmm(Tensor left, Tensor right, Tensor offsets, Tensor indices, str impl) -> Tensor",
    _sddmm,
    lambda left, right, offsets, indices, impl: left.new_empty(indices.shape),
)
