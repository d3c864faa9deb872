"""Block-sparse weight times dense matrix: SpMM for weights whose blocks stay or go whole."""

import math

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.spmm import as_packed, spmm
from gossamer.patterns import Block


def block_spmm(
    weight: PackedWeight | Tensor,
    dense: Tensor,
    *,
    bias: Tensor | None = None,
    clamp: tuple[float, float] = (-math.inf, math.inf),
    impl: backend.Impl = "auto",
) -> Tensor:
    """Return weight @ dense, with bias and clamp, for a weight of whole blocks.

    What makes blocks fast is their height: rows that share their columns read the dense operand
    once. `spmm` finds such rows itself, 8, 4 or 2 at a time, so this is its product behind a
    stricter door. Width would save indices only, whose loads hide behind the arithmetic: an inner
    loop of its own for whole blocks was no faster beyond the spread of measurement.

    Parameters
    ----------
    weight : PackedWeight or torch.sparse_bsr Tensor [M, K]
        Made by ``pack(weight, Block(rows, columns))``. A tensor is packed at every call: pack
        what is used twice.
    dense : Tensor [K, P] or [N, K, P]
        float32 or bfloat16, each matrix of a batch multiplied alike.
    bias : Tensor [M] float32, optional
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
        If a dtype is another, or `weight` is neither packed nor of blocks.
    ValueError
        If `weight` is packed to another pattern, shapes or devices do not fit, or a gradient would
        be needed.

    Examples
    --------
    >>> from gossamer.kernels import pack
    >>> weight = torch.zeros(4, 4)
    >>> weight[:2, 2:] = 3.0
    >>> block_spmm(pack(weight, Block(2, 2)), torch.arange(4.0)[:, None]).flatten().tolist()
    [15.0, 15.0, 0.0, 0.0]
    """
    packed = as_packed(weight, torch.sparse_bsr)
    if not isinstance(packed.pattern, Block):
        raise ValueError(
            f"expected a weight packed to Block(rows, columns), got {packed.pattern}; "
            "try pack(weight, Block(4, 4)), or spmm"
        )
    return spmm(packed, dense, bias=bias, clamp=clamp, impl=impl)
