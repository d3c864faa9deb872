"""Attention patterns: which keys each query reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from gossamer.measure import causal_pairs
from gossamer.patterns.key_lists import (
    CompressedRows,
    KeyLists,
    Lists,
    Shape,
    check_least,
    check_tensor,
    compress,
)

Device = torch.device | str | None


@dataclass(frozen=True, eq=False)
class BlockPattern(CompressedRows):
    """Key blocks that each query block attends to.

    Parameters
    ----------
    offsets : Tensor [B * H * q_blocks + 1] int64
        Where each (batch, head, query block) begins in `indices`.
    indices : Tensor [nnz] int32
        Key blocks, strictly ascending within a row.
    shape : (B, H, q_blocks, k_blocks)
        Block ``t`` covers tokens ``[t * block, (t + 1) * block)``.
    block : int
        Tokens a side, a multiple of 16.

    Examples
    --------
    >>> pattern = BlockPattern.full(200, 200, block=64)
    >>> pattern.shape, pattern.density(), pattern.pairs(200, 200)
    ((1, 1, 4, 4), 0.625, 20100)
    """

    offsets: Tensor = field(repr=False)
    indices: Tensor = field(repr=False)
    shape: Shape
    block: int

    def __post_init__(self) -> None:
        _check_block(self.block)
        self._check()

    @classmethod
    def from_mask(cls, mask: Tensor, *, block: int = 64) -> BlockPattern:
        """Build from a bool mask [B, H, q_blocks, k_blocks]."""
        return cls(*compress(mask), block)

    @classmethod
    def full(
        cls,
        q_len: int,
        k_len: int,
        *,
        batch: int = 1,
        heads: int = 1,
        block: int = 64,
        device: Device = None,
    ) -> BlockPattern:
        """Build the causal-full pattern: every block that holds at least one causal pair."""
        window = Window(sink=0, local=max(1, k_len))
        return window.blocks(q_len, k_len, block=block, batch=batch, heads=heads, device=device)

    def pairs(
        self, q_len: int, k_len: int, *, causal: bool = True, window: Window | None = None
    ) -> int:
        """Count the (query, key) pairs computed, summed over the pattern's B and H.

        A `window` further hides the keys between its sink and its local part, as in the kernel.
        """
        return self._pairs((q_len, k_len), (self.block, self.block), causal, window)

    def __and__(self, other: BlockPattern) -> BlockPattern:
        return self._like(other).from_mask(self.to_mask() & other.to_mask(), block=self.block)

    def __or__(self, other: BlockPattern) -> BlockPattern:
        return self._like(other).from_mask(self.to_mask() | other.to_mask(), block=self.block)

    def _like(self, other: BlockPattern) -> BlockPattern:
        if (self.shape, self.block) != (other.shape, other.block):
            raise ValueError(f"expected two patterns of one shape and block, got {self}, {other}")
        return other


@dataclass(frozen=True, eq=False)
class TokenPattern(KeyLists):
    """A fixed-width list of key tokens for each group of consecutive queries.

    Parameters
    ----------
    indices : Tensor [B, H, groups, width] int32
        Keys, strictly ascending, padded at the tail with -1.
    group : int
        Queries that share a list: ``[g * group, (g + 1) * group)``.
    k_len : int
        Keys there are.

    Examples
    --------
    >>> mask = torch.tensor([[[[True, False, True, True], [False, True, False, False]]]])
    >>> TokenPattern.from_mask(mask, group=2).indices.tolist()
    [[[[0, 2, 3], [1, -1, -1]]]]
    """

    indices: Tensor = field(repr=False)
    group: int
    k_len: int
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        check_tensor("indices", self.indices, torch.int32, 4)
        check_least("group", self.group, 1)
        check_least("k_len", self.k_len, 0)
        object.__setattr__(self, "shape", (*self.indices.shape[:3], self.k_len))

    def _find_rows(self) -> Lists:
        counts = (self.indices >= 0).sum(-1).reshape(-1)
        starts = torch.arange(len(counts), device=counts.device) * self.indices.shape[3]
        return starts, counts, self.indices.reshape(-1)

    @classmethod
    def from_mask(cls, mask: Tensor, *, group: int) -> TokenPattern:
        """Build from a bool mask [B, H, groups, k_len], as wide as its longest list."""
        offsets, keys, shape = compress(mask)
        counts = offsets.diff()[:, None]
        width = torch.arange(int(counts.max()) if counts.numel() else 0, device=mask.device)
        indices = counts.new_full((len(counts), len(width)), -1, dtype=torch.int32)
        indices[width < counts] = keys
        return cls(indices.reshape(*shape[:3], len(width)), group, shape[3])

    def validate(self) -> Self:
        place = torch.arange(self.indices.shape[3], device=self.indices.device)
        if not torch.equal(self.indices == -1, place >= self.counts[..., None]):
            raise ValueError("expected indices padded with -1, at the tail; try from_mask")
        return super().validate()

    def pairs(self, q_len: int, *, causal: bool = True) -> int:
        """Count the (query, key) pairs computed, summed over the pattern's B and H."""
        return self._pairs((q_len, self.k_len), (self.group, 1), causal, None)


@dataclass(frozen=True, eq=False)
class StripePattern(CompressedRows):
    """A ragged list of key columns for each group of consecutive queries.

    Parameters
    ----------
    offsets : Tensor [B * H * groups + 1] int64
        Where each (batch, head, group) begins in `indices`.
    indices : Tensor [nnz] int32
        Key columns, strictly ascending within a group.
    shape : (B, H, groups, k_len)
        Lists and keys there are.
    group : int
        Queries that share a list: ``[g * group, (g + 1) * group)``.

    Examples
    --------
    >>> mask = torch.tensor([[[[True, False, True, True], [False, True, False, False]]]])
    >>> stripes = StripePattern.from_mask(mask, group=2)
    >>> stripes.offsets.tolist(), stripes.indices.tolist(), stripes.pairs(4)
    ([0, 3, 4], [0, 2, 3, 1], 4)
    """

    offsets: Tensor = field(repr=False)
    indices: Tensor = field(repr=False)
    shape: Shape
    group: int

    def __post_init__(self) -> None:
        check_least("group", self.group, 1)
        self._check()

    @classmethod
    def from_mask(cls, mask: Tensor, *, group: int) -> StripePattern:
        """Build from a bool mask [B, H, groups, k_len]."""
        return cls(*compress(mask), group)

    def pairs(self, q_len: int, *, causal: bool = True) -> int:
        """Count the (query, key) pairs computed, summed over the pattern's B and H."""
        return self._pairs((q_len, self.shape[3]), (self.group, 1), causal, None)


@dataclass(frozen=True)
class Window:
    """The first `sink` keys and the last `local` keys of every query, its own included.

    Where a kernel is given left padding (`key_start`), the sinks are a sequence's first real keys;
    the window's own methods know of no padding.

    Examples
    --------
    >>> Window(sink=1, local=2).to_mask(4, 4).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """

    sink: int
    local: int

    def __post_init__(self) -> None:
        check_least("sink", self.sink, 0)
        check_least("local", self.local, 1)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Window:
        """Recover the window from its mask [q_len, k_len]; ValueError when it is not one's."""
        check_tensor("mask", mask, torch.bool, 2)
        q_len, k_len = mask.shape
        dropped = (~mask[-1:]).nonzero()[:, 1]  # by the last query
        sink, near = (int(dropped[0]), k_len - 1 - int(dropped[-1])) if len(dropped) else (0, k_len)
        window = cls(sink, max(1, near))
        if not torch.equal(window.to_mask(q_len, k_len), mask.cpu()):
            raise ValueError("expected the mask of a window, got one that no sink and local make")
        return window

    def to_mask(self, q_len: int, k_len: int) -> Tensor:
        """Return the bool mask [q_len, k_len]."""
        back = _distances(q_len, k_len)
        return (back >= 0) & ((back < self.local) | (torch.arange(k_len) < self.sink))

    def pairs(self, q_len: int, k_len: int) -> int:
        """Count the (query, key) pairs of one head."""
        causal = (torch.arange(q_len) + 1 + k_len - q_len).clamp(min=0)
        local = causal.clamp(max=self.local)
        return int((local + (causal - local).clamp(max=self.sink)).sum())

    def density(self, q_len: int, k_len: int) -> float:
        """Return the share of the causal pairs that the window keeps."""
        return self.pairs(q_len, k_len) / max(1, causal_pairs(q_len, k_len))

    def blocks(
        self,
        q_len: int,
        k_len: int,
        *,
        block: int = 64,
        batch: int = 1,
        heads: int = 1,
        device: Device = None,
    ) -> BlockPattern:
        """Return the smallest block pattern that covers the window."""
        _check_block(block)
        first = torch.arange(0, q_len, block, device=device)[:, None] + k_len - q_len
        key = torch.arange(0, k_len, block, device=device)
        near = key + block > first - self.local + 1
        mask = (key < first + block) & (near | (key < self.sink))
        return BlockPattern.from_mask(mask.expand(batch, heads, -1, -1), block=block)


@dataclass(frozen=True)
class Diagonal:
    """Diagonals of the attention map: key = query position - offset, for each offset.

    Examples
    --------
    >>> Diagonal((0, 2)).to_mask(3, 3).int().tolist()
    [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    """

    offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.offsets) != sorted(set(self.offsets)):
            raise ValueError(f"expected offsets strictly ascending, got {self.offsets}")

    @classmethod
    def from_mask(cls, mask: Tensor) -> Diagonal:
        """Recover the diagonals from a mask [q_len, k_len]; ValueError when one is in part."""
        check_tensor("mask", mask, torch.bool, 2)
        q_len = mask.shape[0]  # distances run from 1 - q_len up
        kept = torch.bincount(_distances(*mask.shape)[mask.cpu()] + q_len - 1).nonzero()
        diagonals = cls(tuple(int(place) + 1 - q_len for place in kept))
        if not torch.equal(diagonals.to_mask(*mask.shape), mask.cpu()):
            raise ValueError("expected whole diagonals, got a mask that keeps one in part")
        return diagonals

    def to_mask(self, q_len: int, k_len: int) -> Tensor:
        """Return the bool mask [q_len, k_len]."""
        return torch.isin(_distances(q_len, k_len), torch.tensor(self.offsets, dtype=torch.int64))

    def density(self, q_len: int, k_len: int) -> float:
        """Return the share of all ``q_len * k_len`` pairs that lies on the diagonals."""
        lengths = (min(q_len, q_len + o) - max(0, o + q_len - k_len) for o in self.offsets)
        return sum(max(0, length) for length in lengths) / max(1, q_len * k_len)


def _check_block(block: int) -> None:
    if block < 16 or block % 16:
        raise ValueError(f"expected block to be a positive multiple of 16, got {block}; try 64")


def _distances(q_len: int, k_len: int) -> Tensor:
    """Query position minus key, int64 [q_len, k_len]."""
    return torch.arange(k_len - q_len, k_len)[:, None] - torch.arange(k_len)
