"""Sparse matrix times a few vectors: the product of a sparse layer while a model decodes."""

import math
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import constant, dispatched, register
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.sparse_gemv import reference
from gossamer.kernels.spmm import as_packed, check_dense

MAX_VECTORS = 16
WAYS = ("gather", "spread", "expand")
DENSE_ENOUGH = 0.2  # weights kept above which bit masks beat indices, for one vector


def sparse_gemv(
    weight: PackedWeight | Tensor, vectors: Tensor, *, impl: backend.Impl = "auto"
) -> Tensor:
    """Return weight @ vector for each of a few vectors.

    The weight is read once, in order: values with 16-bit indices where few are kept, values with
    a bit mask where more are. bfloat16 values halve what is read. Sums are float32. Infinities
    and NaN in a vector may spread to its whole result.

    Parameters
    ----------
    weight : PackedWeight or torch.sparse_csr Tensor [M, K]
        A tensor is packed at every call: pack what is used twice.
    vectors : Tensor [..., K]
        float32 or bfloat16, 1 to 16 of them; for more there is `spmm`.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [..., M]
        In the dtype of `vectors`.

    Raises
    ------
    TypeError
        If a dtype is another, or `weight` is neither packed nor compressed.
    ValueError
        If shapes or devices do not fit, or a gradient would be needed.

    Examples
    --------
    >>> from gossamer.kernels import pack
    >>> weight = pack(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    >>> sparse_gemv(weight, torch.tensor([[1.0, 4.0], [2.0, 5.0]])).tolist()
    [[8.0, 0.0], [10.0, 0.0]]
    """
    packed = as_packed(weight)
    check_dense("vectors", vectors, packed, row_dim=-1)
    shape = vectors.shape[:-1]
    count = math.prod(shape)
    if not 1 <= count <= MAX_VECTORS:
        raise ValueError(f"expected 1..{MAX_VECTORS} vectors, got {count}; try spmm")
    chosen = backend.choose(impl, vectors.device, backend.WITHOUT_TRITON)
    if chosen == "cpu" and not dispatched():
        # While a model decodes, PyTorch's dispatch would take as long as a small product.
        held = packed.native_rows.get(count) or taken_over(packed, count)
        return _product(held, vectors, shape, count)
    way = _way(packed.density, count) if chosen == "cpu" else "spread"
    rows, columns = packed.shape
    flat = vectors.reshape(count, columns)
    product = torch.ops.gossamer.sparse_gemv(_parts(packed, chosen, way), rows, flat, way, chosen)
    return product.view(*shape, rows)


@constant
def _way(density: float, vectors: int) -> str:
    """How weights and vector elements meet fastest, by the instructions each way costs."""
    can_expand = backend.native_module().active() not in ("avx2", "portable")
    if can_expand and density >= (DENSE_ENOUGH if vectors == 1 else 0.06 + vectors / 64):
        return "expand"
    return "gather" if vectors <= 2 else "spread"


@constant
def _parts(weight: PackedWeight, impl: str, way: str) -> list[Tensor]:
    """The tensors of the weight that an implementation reads."""
    support = weight.support
    if impl != "cpu":
        return [weight.values, support.offsets, support.column_indices]
    if way == "gather":
        slices = support.slices
        return [weight.slice_values, slices.starts, slices.columns, slices.rows]
    return [weight.values, support.offsets, support.bits if way == "expand" else support.columns]


def _sparse_gemv(weight: list[Tensor], rows: int, vectors: Tensor, way: str, impl: str) -> Tensor:
    if impl != "cpu":
        values, offsets, columns = weight
        return reference.sparse_gemv(values, offsets, columns, vectors).contiguous()
    held = _vector_weight(way, rows, weight)
    return _product(held, vectors, vectors.shape[:-1], len(vectors))


def taken_over(weight: PackedWeight, count: int) -> Any:
    """Return the weight as the native kernel holds it for that many vectors, and keep it."""
    way = _way(weight.density, count)
    if way not in weight.native_rows:
        parts = _parts(weight, "cpu", way)
        weight.native_rows[way] = _vector_weight(way, weight.shape[0], parts)
    weight.native_rows[count] = weight.native_rows[way]
    return weight.native_rows[count]


def _vector_weight(way: str, rows: int, parts: list[Tensor]) -> Any:
    values, offsets, places, *lanes = parts
    lanes = lanes[0] if lanes else None
    return backend.launch("VectorWeight", WAYS.index(way), rows, values, offsets, places, lanes)


def _product(weight: Any, vectors: Tensor, shape: torch.Size, count: int) -> Tensor:
    # Conversions that change nothing would take as long as a small product, too.
    ready = vectors.dtype is torch.float32 and vectors.is_contiguous()
    x = vectors if ready else vectors.float().contiguous()
    out = x.new_empty((*shape, weight.rows))
    threads = torch.get_num_threads()
    weight.times(x.data_ptr(), count, vectors.shape[-1], out.data_ptr(), threads)
    return out if ready else out.to(vectors.dtype)


register(
    "sparse_gemv(Tensor[] weight, int rows, Tensor vectors, str way, str impl) -> Tensor",
    _sparse_gemv,
    lambda weight, rows, vectors, way, impl: vectors.new_empty(len(vectors), rows),
)
