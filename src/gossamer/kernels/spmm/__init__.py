"""SpMM: sparse weight times dense matrix, the product of a sparse layer with many columns."""

import math
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import constant, dispatched, register
from gossamer.kernels.packed import DTYPES, PackedWeight, pack
from gossamer.kernels.spmm import reference
from gossamer.kernels.validation import unit_stride
from gossamer.patterns import Block


def spmm(
    weight: PackedWeight | Tensor,
    dense: Tensor,
    *,
    bias: Tensor | None = None,
    clamp: tuple[float, float] = (-math.inf, math.inf),
    impl: backend.Impl = "auto",
) -> Tensor:
    """Return weight @ dense, with bias and clamp (ReLU is ``(0, inf)``) on the way out.

    A 1x1 convolution over [N, K, H, W] images is ``spmm(weight, images.flatten(2))``. Sums are
    float32 whatever the dtypes. Infinities and NaN in `dense` may spread to any row that has an
    entry in the same panel of columns.

    Parameters
    ----------
    weight : PackedWeight or torch.sparse_csr Tensor [M, K]
        A tensor is packed at every call: pack what is used twice.
    dense : Tensor [K, P] or [N, K, P]
        float32 or bfloat16, each matrix of a batch multiplied alike.
    bias : Tensor [M] float32, optional
        Added to every column.
    clamp : (float, float)
        Results outside are set to the nearer bound; NaN stays.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [M, P] or [N, M, P]
        In the dtype of `dense`.

    Raises
    ------
    TypeError
        If a dtype is another, or `weight` is neither packed nor compressed.
    ValueError
        If shapes or devices do not fit, or a gradient would be needed.

    Examples
    --------
    >>> weight = pack(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    >>> spmm(weight, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
    [[8.0, 10.0, 12.0], [0.0, 0.0, 0.0]]
    """
    packed = as_packed(weight)
    check_dense("dense", dense, packed, row_dim=-2)
    low, high = clamp
    if not low <= high:
        raise ValueError(f"expected clamp to be (low, high) with low <= high, got {clamp}")
    if bias is not None:
        bias = check_bias(bias, packed)
    chosen = backend.choose(impl, dense.device, backend.WITHOUT_TRITON)
    rows, dense = packed.shape[0], unit_stride(dense)
    if chosen == "cpu" and not dispatched():
        # Next to a small product, PyTorch's dispatch would take long.
        return _multiply(packed.native_panels, rows, dense, bias, low, high)
    batched = dense if dense.ndim == 3 else dense[None]
    product = torch.ops.gossamer.spmm(
        *_parts(packed, chosen), rows, batched, bias, low, high, chosen
    )
    return product if dense.ndim == 3 else product[0]


def as_packed(
    weight: PackedWeight | Tensor, layout: torch.layout = torch.sparse_csr
) -> PackedWeight:
    """Return `weight` packed; TypeError unless it is packed or a sparse tensor of `layout`."""
    if isinstance(weight, PackedWeight):
        return weight
    if not isinstance(weight, Tensor) or weight.layout != layout:
        found = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"expected a PackedWeight or a {layout} tensor, got {found}; try pack")
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError(
            "weight requires a gradient, but this kernel is for inference; "
            "try torch.no_grad() or .detach()"
        )
    return pack(weight, Block(*weight.values().shape[1:]) if layout == torch.sparse_bsr else None)


FORMS = {-2: ("[K, P]", range(2, 4)), -1: ("[..., K]", range(1, 65))}  # and their dimensions


def check_dense(name: str, dense: Tensor, weight: PackedWeight, *, row_dim: int) -> None:
    """Check dtype, dimensions, device and the size K at `row_dim` of a dense operand."""
    if dense.dtype not in DTYPES:
        raise TypeError(f"expected {name} to be float32 or bfloat16, got {dense.dtype}")
    form, ndims = FORMS[row_dim]
    if dense.ndim not in ndims or dense.shape[row_dim] != weight.shape[1]:
        raise ValueError(
            f"expected {name} to be {form} with K = {weight.shape[1]}, got {list(dense.shape)}"
        )
    if dense.device != weight.device:
        raise ValueError(
            f"expected one device, got weight on {weight.device}, {name} on {dense.device}; "
            f"try weight.to({name}.device)"
        )
    if torch.is_grad_enabled() and (dense.requires_grad or weight.values.requires_grad):
        raise ValueError(
            f"weight or {name} requires a gradient, but this kernel is for inference; "
            "try torch.no_grad() or .detach()"
        )


def check_bias(bias: Tensor, weight: PackedWeight) -> Tensor:
    """Return the bias [M] contiguous after checking it."""
    if torch.is_grad_enabled() and bias.requires_grad:
        raise ValueError(
            "bias requires a gradient, but this kernel is for inference; "
            "try torch.no_grad() or .detach()"
        )
    wanted = (torch.float32, weight.shape[:1], weight.device)
    if (bias.dtype, tuple(bias.shape), bias.device) != wanted:
        raise ValueError(
            f"expected bias to be float32 [{weight.shape[0]}] on {weight.device}, got "
            f"{bias.dtype} {list(bias.shape)} on {bias.device}"
        )
    return bias.detach().contiguous()


@constant
def _parts(weight: PackedWeight, impl: str) -> tuple[list[Tensor], int]:
    """The tensors of the weight that an implementation reads, and how wide its panels are."""
    support = weight.support
    if impl != "cpu":
        return [weight.values, support.offsets, support.column_indices], support.shape[1]
    panels = support.panels
    tensors = [panels.starts, panels.lines, panels.counts, panels.columns, weight.panel_values]
    return tensors, panels.width


def _spmm(
    weight: list[Tensor],
    panel: int,
    rows: int,
    dense: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
    impl: str,
) -> Tensor:
    if impl != "cpu":
        values, offsets, columns = weight
        return reference.spmm(values, offsets, columns, dense, bias, low, high)
    return _multiply(backend.launch("PanelWeight", panel, *weight), rows, dense, bias, low, high)


def _multiply(
    panels: Any, rows: int, dense: Tensor, bias: Tensor | None, low: float, high: float
) -> Tensor:
    out = dense.new_empty((*dense.shape[:-2], rows, dense.shape[-1]))
    launch(panels, dense, out, bias, low, high, torch.get_num_threads())
    return out


def launch(
    panels: Any,
    dense: Tensor,
    out: Tensor,
    bias: Tensor | None,
    low: float,
    high: float,
    threads: int,
) -> None:
    """Write the product into `out`; both operands have unit stride in their rows."""
    (*batch, columns, width), rows = dense.shape, out.shape[-2]
    (*matrices, row, _), (*out_matrices, out_row, _) = dense.stride(), out.stride()
    panels.times(
        dense.data_ptr(),
        dense.dtype is torch.bfloat16,
        (batch[0] if batch else 1, rows, columns, width),
        (matrices[0] if batch else 0, row),
        out.data_ptr(),
        (out_matrices[0] if batch else 0, out_row),
        0 if bias is None else bias.data_ptr(),
        low,
        high,
        threads,
    )


def _empty(weight: list[Tensor], panel: int, rows: int, dense: Tensor, *rest: object) -> Tensor:
    return dense.new_empty(dense.shape[0], rows, dense.shape[2])


register(
    "spmm(Tensor[] weight, int panel, int rows, Tensor dense, Tensor? bias, float low, float high, "
    "str impl) -> Tensor",
    _spmm,
    _empty,
)
