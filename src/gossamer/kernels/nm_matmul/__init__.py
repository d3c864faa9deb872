"""N:M weight times dense matrix: n weights kept of every m, for any n and m."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import constant, register
from gossamer.kernels.nm_matmul import reference
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.spmm import check_dense
from gossamer.kernels.validation import unit_stride
from gossamer.patterns import NM


def nm_matmul(weight: PackedWeight, dense: Tensor, *, impl: backend.Impl = "auto") -> Tensor:
    """Return weight @ dense for a weight packed to an N:M pattern.

    Sums are float32. On CUDA, a 2:4 weight in bfloat16 goes to PyTorch's semi-structured product.
    A group with fewer than n weights multiplies its first column by 0, so that infinities and NaN
    there spread to the row.

    Parameters
    ----------
    weight : PackedWeight [M, K]
        Made by ``pack(weight, NM(n, m))``; m at most 256.
    dense : Tensor [K, P] or [N, K, P]
        float32 or bfloat16, each matrix of a batch multiplied alike.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [M, P] or [N, M, P]
        In the dtype of `dense`.

    Raises
    ------
    TypeError
        If a dtype is another, or `weight` is not packed.
    ValueError
        If `weight` is of another pattern, or shapes or devices do not fit, or a gradient would be
        needed.

    Examples
    --------
    >>> from gossamer.kernels import pack
    >>> weight = pack(torch.tensor([[0.0, 2.0, 0.0, 1.0]]), NM(2, 4))
    >>> nm_matmul(weight, torch.arange(8.0).reshape(4, 2)).tolist()
    [[10.0, 13.0]]
    """
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"expected a PackedWeight, got {type(weight).__name__}; try pack")
    pattern = weight.pattern
    if not isinstance(pattern, NM) or pattern.m > 256:
        raise ValueError(
            f"expected a weight packed to NM(n, m) with m <= 256, got {pattern}; "
            "try pack(weight, NM(2, 4))"
        )
    check_dense("dense", dense, weight, row_dim=-2)
    chosen = backend.choose(impl, dense.device, backend.WITHOUT_TRITON)
    if impl == "auto" and dense.ndim == 2 and _fits_tensor_cores(weight, dense):
        return torch.mm(_semi_structured(weight), dense)
    batched = unit_stride(dense if dense.ndim == 3 else dense[None])
    product = torch.ops.gossamer.nm_matmul(*_groups(weight), pattern.m, batched, chosen)
    return product if dense.ndim == 3 else product[0]


def _fits_tensor_cores(weight: PackedWeight, dense: Tensor) -> bool:
    rows, columns = weight.shape
    return (
        weight.pattern == NM(2, 4)
        and dense.device.type == "cuda"
        and weight.dtype == dense.dtype == torch.bfloat16
        and rows % 32 == 0
        and columns % 64 == 0
    )


@constant
def _semi_structured(weight: PackedWeight) -> Tensor:
    return weight.semi_structured


@constant
def _groups(weight: PackedWeight) -> list[Tensor]:
    return list(weight.groups)


def _nm_matmul(values: Tensor, indices: Tensor, m: int, dense: Tensor, impl: str) -> Tensor:
    if impl != "cpu":
        return reference.nm_matmul(values, indices, m, dense)
    out = _empty(values, indices, m, dense)
    backend.launch("nm_matmul", m, values, indices, dense, out, torch.get_num_threads())
    return out


def _empty(values: Tensor, indices: Tensor, m: int, dense: Tensor, *rest: object) -> Tensor:
    return dense.new_empty(dense.shape[0], values.shape[0], dense.shape[2])


register(
    "nm_matmul(Tensor values, Tensor indices, int m, Tensor dense, str impl) -> Tensor",
    _nm_matmul,
    _empty,
)
