"""SparseGPT's sweep: prune a weight column by column, and let later columns make up for it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.budgets import Density
from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.sparsegpt_sweep.reference import sweep_block
from gossamer.patterns import NM, Unstructured, WeightPattern

BLOCK = 128  # columns; the released code's


@dataclass(frozen=True, eq=False)
class Sweep:
    """A pruned weight.

    Parameters
    ----------
    weight : Tensor [out, in] float32
        Zero outside the mask, and changed inside it to make up for what is gone.
    mask : Tensor [out, in] bool
        What stays.
    loss : Tensor [out] float32
        Estimated growth of each output's squared error, in the units of the Hessian.
    """

    weight: Tensor
    mask: Tensor
    loss: Tensor


def sparsegpt_sweep(
    weight: Tensor,
    factor: Tensor,
    *,
    density: float | None = None,
    pattern: WeightPattern | None = None,
    mask: Tensor | None = None,
    block: int = BLOCK,
    impl: backend.Impl = "auto",
) -> Sweep:
    """Prune columns from left to right, each error moved to the columns not yet reached.

    With H = X^T X of the inputs and U the upper Cholesky factor of its inverse, column i loses
    ``e = w_i / U_ii`` where it is pruned, and every later column j changes by ``-e U_ij``: the
    best repair that leaves earlier columns alone.

    Parameters
    ----------
    weight : Tensor [out, in] float32
        Not changed.
    factor : Tensor [in, in] float32
        U, upper triangular with a positive diagonal.
    density : float, optional
        Share kept in each block of columns, over all rows, by ``(w / U_ii)^2`` as it is when the
        sweep reaches the block.
    pattern : WeightPattern, optional
        ``NM(n, m)`` instead of a density: chosen in each row when the sweep reaches the group.
    mask : Tensor [out, in] bool, optional
        What stays, instead of a density or pattern.
    block : int, default=128
        Columns a block; for N:M rounded up to whole groups.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Sweep

    Raises
    ------
    TypeError, ValueError
        If tensors do not fit, or not exactly one of density, N:M pattern and mask is given.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> pruned = sparsegpt_sweep(torch.tensor([[1.0, 3.0]]), torch.eye(2), density=0.5)
    >>> pruned.weight.tolist(), pruned.loss.tolist()
    ([[0.0, 3.0]], [0.5])
    """
    _check(weight, factor, density, pattern, mask, block)
    n, m = (pattern.n, pattern.m) if isinstance(pattern, NM) else (0, 0)
    return Sweep(
        *torch.ops.gossamer.sparsegpt_sweep(
            weight,
            factor,
            mask,
            1.0 if density is None else density,
            n,
            m,
            -(-block // m) * m if m else block,
            backend.choose(impl, weight.device, backend.WITHOUT_TRITON),
        )
    )


def _check(
    weight: Tensor,
    factor: Tensor,
    density: float | None,
    pattern: WeightPattern | None,
    mask: Tensor | None,
    block: int,
) -> None:
    for name, tensor in (("weight", weight), ("factor", factor)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"expected {name} to be float32, got {tensor.dtype}; try .float()")
        if tensor.requires_grad:
            raise ValueError(f"expected {name} without gradient; try .detach()")
    if weight.ndim != 2 or factor.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"expected weight [out, in] and factor [in, in], got {list(weight.shape)} and "
            f"{list(factor.shape)}"
        )
    if weight.device != factor.device:
        raise ValueError(f"expected one device, got {weight.device} and {factor.device}")
    if not isinstance(pattern, NM | Unstructured | None):
        raise TypeError(f"expected pattern to be NM or Unstructured, got {pattern}")
    if sum([density is not None, isinstance(pattern, NM), mask is not None]) != 1:
        raise ValueError("expected exactly one of density, an NM pattern and a mask")
    if density is not None:
        Density(density)
    if isinstance(pattern, NM) and weight.shape[1] % pattern.m:
        raise ValueError(f"expected inputs in groups of {pattern.m}, got {weight.shape[1]}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise ValueError(
            f"expected mask to be bool {list(weight.shape)}, got {mask.dtype} {list(mask.shape)}"
        )
    if block < 1:
        raise ValueError(f"expected block of at least 1, got {block}")
    if not bool((factor.diagonal() > 0).all()):
        raise ValueError("expected factor with a positive diagonal; try a Cholesky factor")


def _run(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    density: float,
    n: int,
    m: int,
    block: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    weight = weight.clone(memory_format=torch.contiguous_format)
    given = mask is not None
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.clone()
    loss = weight.new_zeros(len(weight))
    for first in range(0, weight.shape[1], block):
        columns = slice(first, first + block)
        part, diagonal = weight[:, columns], factor[columns, columns].contiguous()
        errors = part.new_empty(part.shape)
        if not given and not m:
            scores = (part / diagonal.diagonal()).square()
            mask[:, columns] = Density(density, dim=None).select(scores)
        if impl == "cpu":
            kept = mask[:, columns].view(torch.uint8)
            threads = torch.get_num_threads()
            backend.launch("sparsegpt_sweep", part, diagonal, kept, errors, loss, n, m, threads)
        else:
            sweep_block(part, diagonal, mask[:, columns], errors, loss, n, m)
        weight[:, first + block :] -= errors @ factor[columns, first + block :]
    return weight, mask, loss


def _empty(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    density: float,
    n: int,
    m: int,
    block: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.empty_like(weight, dtype=torch.bool)
    return torch.empty_like(weight), kept, weight.new_empty(len(weight))


register(
    "sparsegpt_sweep(Tensor weight, Tensor factor, Tensor? mask, float density, int n, int m, "
    "int block, str impl) -> (Tensor, Tensor, Tensor)",
    _run,
    _empty,
)
