"""Deal the tokens of each group out to sets of one size, in the order of a key."""

from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.balanced_sets import reference
from gossamer.kernels.library import register
from gossamer.patterns import TokenSets

MOST = 2**62  # combined group and key


def balanced_sets(
    groups: Tensor, keys: Tensor, *, size: int, impl: backend.Impl = "auto"
) -> tuple[TokenSets, ...]:
    """Cut every group into as few sets as hold it, all as full as each other.

    A group of n tokens gets S = ceil(n / size) sets. Slot k of its set j holds the token of rank
    floor((j size + k) n / (S size)) in the order of the keys; ties go by token. Where n < S size,
    tokens repeat in slots next to each other, and each is in one set only.

    Parameters
    ----------
    groups : Tensor [N] int64
        Non-negative; any numbers.
    keys : Tensor [orders, N] int64
        Non-negative. Every row is an order of its own, and gives a partition of its own.
    size : int
        Slots of a set.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    tuple of TokenSets
        One for each row of `keys`, with sets in the order of their groups.

    Raises
    ------
    ValueError, TypeError
        If shapes or types do not fit, or numbers are negative or too large.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> groups, keys = torch.tensor([0, 0, 7, 0]), torch.tensor([[2, 0, 1, 1], [0, 1, 2, 3]])
    >>> by_first, by_second = balanced_sets(groups, keys, size=2)
    >>> by_first.indices.tolist(), by_second.indices.tolist()
    ([[1, 1], [3, 0], [2, 2]], [[0, 0], [1, 3], [2, 2]])
    """
    _check(groups, keys, size)
    indices, repeated = torch.ops.gossamer.balanced_sets(
        groups.contiguous(),
        keys.contiguous(),
        size,
        backend.choose(impl, groups.device, backend.WITHOUT_TRITON),
    )
    return tuple(
        TokenSets(*each, len(groups))
        for each in zip(indices.unbind(), repeated.unbind(), strict=True)
    )


def _check(groups: Tensor, keys: Tensor, size: int) -> None:
    if keys.ndim != 2 or groups.shape != keys.shape[1:]:
        raise ValueError(
            f"expected groups [N] and keys [orders, N], got {list(groups.shape)} and "
            f"{list(keys.shape)}"
        )
    for name, tensor in (("groups", groups), ("keys", keys)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"expected {name} to be int64, got {tensor.dtype}; try .long()")
    if size < 1:
        raise ValueError(f"expected size >= 1, got {size}")
    if torch.compiler.is_compiling() or not keys.numel():
        return
    lows, highs = zip(*(map(int, tensor.aminmax()) for tensor in (groups, keys)), strict=True)
    if min(lows) < 0 or (highs[0] + 1) * (highs[1] + 1) > MOST:
        raise ValueError(
            f"expected groups and keys >= 0 whose product is at most 2**62, got groups in "
            f"{lows[0]}..{highs[0]} and keys in {lows[1]}..{highs[1]}"
        )


def _run(groups: Tensor, keys: Tensor, size: int, impl: str) -> tuple[Tensor, Tensor]:
    if impl == "reference" or not keys.numel():
        return reference.deal(groups, keys, size)
    span = int(keys.max()) + 1
    sets: Any = backend.launch("balanced_sets", groups, keys, span, size, None, None)
    indices = keys.new_empty(len(keys), sets, size)
    repeated = torch.empty_like(indices, dtype=torch.bool)
    backend.launch("balanced_sets", groups, keys, span, size, indices, repeated)
    return indices, repeated


def _fake(groups: Tensor, keys: Tensor, size: int, impl: str) -> tuple[Tensor, Tensor]:
    sets = torch.library.get_ctx().new_dynamic_size()
    indices = keys.new_empty(keys.shape[0], sets, size)
    return indices, torch.empty_like(indices, dtype=torch.bool)


register(
    "balanced_sets(Tensor groups, Tensor keys, int size, str impl) -> (Tensor, Tensor)",
    _run,
    _fake,
)
