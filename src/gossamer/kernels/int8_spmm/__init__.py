"""Int8 SpMM: a weight of bytes in groups of output channels times a matrix of bytes."""

import math

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.int8_spmm import reference
from gossamer.kernels.int8_weight import BYTES, Affine, Int8Weight
from gossamer.kernels.library import register
from gossamer.kernels.validation import unit_stride

FLIP = 128  # an int8 byte read as uint8 is this much more


def int8_spmm(
    weight: Int8Weight,
    dense: Tensor,
    *,
    read: Affine | None = None,
    bias: Tensor | None = None,
    clamp: tuple[float, float] = (-math.inf, math.inf),
    write: Affine | None = None,
    impl: backend.Impl = "auto",
) -> Tensor:
    """Return weight @ dense with exact integer sums, as real numbers or bytes where asked for.

    What limits the native kernel: with AVX-512 VNNI, 64 multiply-adds an instruction; with AMX and
    groups of 8 or 16, the eight shuffles that interleave four rows of `dense` at 64 positions for
    ``256 * group`` multiply-adds. Elsewhere products are widened, at a quarter of VNNI.

    Parameters
    ----------
    weight : Int8Weight [M, K]
    dense : Tensor [K, P] or [N, K, P]
        uint8 or int8, on CPU; or float32, rounded to the bytes that `read` says on the way in.
    read : Affine, optional
        What the bytes of `dense` stand for; without it they are integers and so is the result.
    bias : Tensor [M] float32, optional
        Added to the real sums; needs `read`.
    clamp : (float, float)
        Real results outside are set to the nearer bound; ReLU is ``(0, inf)``.
    write : Affine, optional
        Bytes that the real results are rounded to; needs `read`.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [M, P] or [N, M, P]
        int32 without `read`, else bytes as `write` says, else float32.

    Raises
    ------
    TypeError
        If a dtype is another.
    ValueError
        If shapes or devices do not fit, or an option needs `read`.

    Examples
    --------
    >>> from gossamer.kernels import pack_int8
    >>> weight = pack_int8(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), group=2)
    >>> int8_spmm(weight, torch.tensor([[9, 9], [1, 2]], dtype=torch.uint8)).tolist()
    [[127, 254], [-127, -254]]
    >>> int8_spmm(weight, torch.tensor([[9], [2]], dtype=torch.uint8), read=Affine(0.5)).tolist()
    [[1.0], [-1.0]]
    """
    _check(weight, dense, read, bias, write)
    low, high = clamp
    if not low <= high:
        raise ValueError(f"expected clamp to be (low, high) with low <= high, got {clamp}")
    chosen = backend.choose(impl, dense.device, backend.WITHOUT_TRITON)
    rows = weight.shape[0]
    factor = offset = None
    bytes_of = Affine(1.0, dtype=dense.dtype) if read is None else read
    zero = bytes_of.zero_point + (FLIP if bytes_of.dtype == torch.int8 else 0)
    if read is not None:
        factor, offset = weight.scale * read.scale, torch.zeros(rows) if bias is None else bias
    if factor is not None and offset is not None and write is not None:
        # The kernel's bytes are unsigned.
        zero_out = write.zero_point + (FLIP if write.dtype == torch.int8 else 0)
        factor, offset = factor / write.scale, offset / write.scale + zero_out
        low, high = (min(255.0, max(0.0, x / write.scale + zero_out)) for x in (low, high))
    kind = torch.int32 if read is None else torch.float32 if write is None else write.dtype
    parts = [weight.starts, weight.quads, weight.values, -zero * weight.row_sums]
    batched = unit_stride(dense if dense.ndim == 3 else dense[None])
    product = torch.ops.gossamer.int8_spmm(
        parts,
        rows,
        weight.group,
        batched,
        1 / bytes_of.scale,
        zero,
        factor,
        offset,
        low,
        high,
        kind,
        chosen,
    )
    return product if dense.ndim == 3 else product[0]


def _check(
    weight: Int8Weight,
    dense: Tensor,
    read: Affine | None,
    bias: Tensor | None,
    write: Affine | None,
) -> None:
    if not isinstance(weight, Int8Weight):
        raise TypeError(f"expected an Int8Weight, got {type(weight).__name__}; try pack_int8")
    allowed = BYTES if read is None else (*BYTES, torch.float32)
    if not isinstance(dense, Tensor) or dense.dtype not in allowed:
        found = dense.dtype if isinstance(dense, Tensor) else type(dense).__name__
        raise TypeError(
            f"expected dense to be uint8 or int8, or float32 with read, got {found}; try "
            "Affine.quantise"
        )
    rows, columns = weight.shape
    if dense.ndim not in (2, 3) or dense.shape[-2] != columns:
        raise ValueError(
            f"expected dense to be [K, P] or [N, K, P] with K = {columns}, got {list(dense.shape)}"
        )
    if dense.device.type != "cpu":
        raise ValueError(f"expected dense on the CPU, got {dense.device}; try .cpu()")
    if read is None and (bias is not None or write is not None):
        raise ValueError("bias and write need real numbers: say in `read` what bytes stand for")
    if read is not None and dense.dtype in BYTES and read.dtype != dense.dtype:
        raise TypeError(f"expected read to be of dense's {dense.dtype}, got {read.dtype}")
    if torch.is_grad_enabled() and dense.requires_grad:
        raise ValueError(
            "dense requires a gradient, but this kernel is for inference; try torch.no_grad()"
        )
    if bias is not None and (bias.dtype != torch.float32 or tuple(bias.shape) != (rows,)):
        raise ValueError(
            f"expected bias to be float32 [{rows}], got {bias.dtype} {list(bias.shape)}"
        )


def _int8_spmm(
    weight: list[Tensor],
    rows: int,
    group: int,
    dense: Tensor,
    inverse: float,
    zero: float,
    factor: Tensor | None,
    offset: Tensor | None,
    low: float,
    high: float,
    kind: torch.dtype,
    impl: str,
) -> Tensor:
    out = dense.new_empty(dense.shape[0], rows, dense.shape[2], dtype=kind)
    if impl == "cpu":
        parts = (*weight, dense, inverse, zero, out, factor, offset, low, high)
        backend.launch("int8_spmm", group, *parts, torch.get_num_threads())
        return out
    starts, quads, values, begin = weight
    packed = Int8Weight(starts, quads, values, group, torch.ones(rows), (rows, dense.shape[1]))
    if dense.dtype == torch.float32:
        unsigned = (dense * inverse + zero).round().nan_to_num(0.0).clamp(0, 255)
    else:
        unsigned = dense.int() + (FLIP if dense.dtype == torch.int8 else 0)
    sums = reference.integer_product(packed.to_dense(), unsigned, begin)
    if factor is not None and offset is not None:
        sums = (sums * factor.double()[:, None] + offset.double()[:, None]).clamp(low, high)
    if kind in BYTES:
        sums = sums.float().round() - (FLIP if kind == torch.int8 else 0)
    return out.copy_(sums)


def _empty(
    weight: list[Tensor],
    rows: int,
    group: int,
    dense: Tensor,
    inverse: float,
    zero: float,
    factor: Tensor | None,
    offset: Tensor | None,
    low: float,
    high: float,
    kind: torch.dtype,
    impl: str,
) -> Tensor:
    return dense.new_empty(dense.shape[0], rows, dense.shape[2], dtype=kind)


register(
    "int8_spmm(Tensor[] weight, int rows, int group, Tensor dense, float inverse, float zero, "
    "Tensor? factor, Tensor? offset, float low, float high, ScalarType kind, str impl) -> Tensor",
    _int8_spmm,
    _empty,
)
