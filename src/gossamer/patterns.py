"""Patterns: the shape of what stays.

Attention patterns say which keys a query reads, weight patterns which weights go together. One
rule aligns attention everywhere: query ``i`` sits at the absolute position ``i + k_len - q_len``
(bottom-right aligned), and causal attention admits key ``j`` when ``j`` is at most that position.
Lengths need not divide by a block or group: the last one is shorter. A pattern may hold fewer
heads than the query has, as long as they divide them: query head ``h`` of ``H`` reads list
``h * pattern_heads // H``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Self

import torch
from torch import Tensor

from gossamer.measure import causal_pairs

Shape = tuple[int, int, int, int]
Lists = tuple[Tensor, Tensor, Tensor]
Device = torch.device | str | None


class _KeyLists:
    """Ascending lists of keys or key blocks, one for each (batch, head, query tile)."""

    shape: Shape  # of the mask
    rows: Lists
    """starts and counts (int64 [rows]) and flat (int32): list r is
    ``flat[starts[r] : starts[r] + counts[r]]``, in (batch, head, query tile) order."""

    @property
    def counts(self) -> Tensor:
        """Length of every list, int64 [B, H, query tiles]."""
        return self.rows[1].reshape(self.shape[:3])

    def to_mask(self) -> Tensor:
        """Return the bool mask of `shape`."""
        row, key = self._entries()
        mask = torch.zeros(prod(self.shape), dtype=torch.bool, device=key.device)
        mask[row * self.shape[3] + key] = True
        return mask.reshape(self.shape)

    def density(self) -> float:
        """Return the share kept, the mean of the mask (0 where it has no element)."""
        return int(self.counts.sum()) / max(1, prod(self.shape))

    def to(self, device: torch.device | str) -> Self:
        """Return the pattern with its tensors on `device`."""
        tensors = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        moved = {name: part.to(device) for name, part in tensors.items()}
        return replace(self, **moved)  # pyright: ignore  (all are dataclasses)

    def validate(self) -> Self:
        """Check every index (a pass over all of them) and return the pattern itself.

        Raises
        ------
        ValueError
            If a list is out of range, not ascending, or holds a duplicate.
        """
        row, key = self._entries()
        if bool(((key < 0) | (key >= self.shape[3])).any()):
            span = f"{int(key.min())}..{int(key.max())}"
            raise ValueError(f"expected indices in [0, {self.shape[3]}), got {span}")
        if bool(((key[1:] <= key[:-1]) & (row[1:] == row[:-1])).any()):
            raise ValueError("expected strictly ascending indices in a list; try from_mask")
        return self

    def _entries(self) -> tuple[Tensor, Tensor]:
        """List number and key of every entry, int64 [nnz] each."""
        starts, counts, flat = self.rows
        ends = counts.cumsum(0)
        nnz = int(ends[-1]) if len(ends) else 0
        row = torch.bincount(ends, minlength=nnz + 1).cumsum(0)[:nnz]  # lists that end before
        skipped = starts - (ends - counts)
        return row, flat[skipped[row] + torch.arange(nnz, device=flat.device)].long()

    def _pairs(
        self, lengths: tuple[int, int], tile: tuple[int, int], causal: bool, window: Window | None
    ) -> int:
        """Count query-key pairs when an entry stands for a `tile` of queries and keys."""
        (q_len, k_len), (height, width) = lengths, tile
        if (ceil(q_len / height), ceil(k_len / width)) != self.shape[2:]:
            raise ValueError(f"expected lengths that fit {self}, got {q_len=} and {k_len=}")
        row, key = self._entries()
        top, left = row % max(1, self.shape[2]) * height, key * width
        bottom, right = (top + height).clamp(max=q_len), (left + width).clamp(max=k_len)
        pairs, shift = (bottom - top) * (right - left), k_len - q_len
        if causal:
            pairs = _pairs_below(top + shift, bottom + shift, left, right)
        if window is not None:  # less the keys past the sink that the window has left behind
            shift -= window.local
            left, right = left.clamp(min=window.sink), right.clamp(min=window.sink)
            pairs = pairs - _pairs_below(top + shift, bottom + shift, left, right)
        return int(pairs.sum())


class _CompressedRows(_KeyLists):
    """Lists stored as one CSR."""

    offsets: Tensor
    indices: Tensor

    def validate(self) -> Self:
        first, last, nnz = int(self.offsets[0]), int(self.offsets[-1]), self.indices.numel()
        if (first, last) != (0, nnz) or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"expected offsets rising from 0 to {nnz}, got {first} to {last}")
        return super().validate()

    def _check(self) -> None:
        _check_tensor("offsets", self.offsets, torch.int64, 1)
        _check_tensor("indices", self.indices, torch.int32, 1)
        if self.offsets.device != self.indices.device:
            devices = f"{self.offsets.device} and {self.indices.device}"
            raise ValueError(f"expected offsets and indices on one device, got {devices}")
        if len(self.shape) != 4 or min(self.shape) < 0:
            raise ValueError(f"expected shape to be four sizes, got {self.shape}")
        if self.offsets.numel() != prod(self.shape[:3]) + 1:
            raise ValueError(
                f"expected 1 + {prod(self.shape[:3])} offsets for {self}, got "
                f"{self.offsets.numel()}"
            )
        object.__setattr__(self, "rows", (self.offsets[:-1], self.offsets.diff(), self.indices))


@dataclass(frozen=True, eq=False)
class BlockPattern(_CompressedRows):
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
    rows: Lists = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_block(self.block)
        self._check()

    @classmethod
    def from_mask(cls, mask: Tensor, *, block: int = 64) -> BlockPattern:
        """Build from a bool mask [B, H, q_blocks, k_blocks]."""
        return cls(*_compress(mask), block)

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
class TokenPattern(_KeyLists):
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
    rows: Lists = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_tensor("indices", self.indices, torch.int32, 4)
        _check_least("group", self.group, 1)
        _check_least("k_len", self.k_len, 0)
        batch, heads, groups, width = self.indices.shape
        object.__setattr__(self, "shape", (batch, heads, groups, self.k_len))
        counts = (self.indices >= 0).sum(-1).reshape(-1)
        starts = torch.arange(len(counts), device=counts.device) * width
        object.__setattr__(self, "rows", (starts, counts, self.indices.reshape(-1)))

    @classmethod
    def from_mask(cls, mask: Tensor, *, group: int) -> TokenPattern:
        """Build from a bool mask [B, H, groups, k_len], as wide as its longest list."""
        offsets, keys, shape = _compress(mask)
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
class StripePattern(_CompressedRows):
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
    rows: Lists = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_least("group", self.group, 1)
        self._check()

    @classmethod
    def from_mask(cls, mask: Tensor, *, group: int) -> StripePattern:
        """Build from a bool mask [B, H, groups, k_len]."""
        return cls(*_compress(mask), group)

    def pairs(self, q_len: int, *, causal: bool = True) -> int:
        """Count the (query, key) pairs computed, summed over the pattern's B and H."""
        return self._pairs((q_len, self.shape[3]), (self.group, 1), causal, None)


@dataclass(frozen=True)
class Window:
    """The first `sink` keys and the last `local` keys of every query, its own included.

    Examples
    --------
    >>> Window(sink=1, local=2).to_mask(4, 4).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """

    sink: int
    local: int

    def __post_init__(self) -> None:
        _check_least("sink", self.sink, 0)
        _check_least("local", self.local, 1)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Window:
        """Recover the window from its mask [q_len, k_len]; ValueError when it is not one's."""
        _check_tensor("mask", mask, torch.bool, 2)
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
        _check_tensor("mask", mask, torch.bool, 2)
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


class WeightPattern:
    """Which weights are kept or dropped together; here, each on its own.

    Patterns act on a weight as the matrix product reads it, [..., out, in]; bring a convolution's
    weight there first, for instance to [kh, kw, out, in].
    """

    def units(self, scores: Tensor) -> Tensor:
        """Reduce elementwise scores to one score a unit."""
        return scores

    def to_mask(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Spread a bool mask over the units to a weight of `shape`."""
        if tuple(units.shape) != tuple(shape):
            raise ValueError(f"expected units for shape {tuple(shape)}, got {tuple(units.shape)}")
        return units

    def from_mask(self, mask: Tensor) -> Tensor:
        """Return the bool mask over units; ValueError when `mask` lacks this pattern."""
        return mask

    def density(self, mask: Tensor) -> float:
        """Return the share of weights kept by a mask that has this pattern."""
        units = self.from_mask(mask)
        return int(units.sum()) / max(1, units.numel())


@dataclass(frozen=True)
class Unstructured(WeightPattern):
    """Every weight on its own."""


@dataclass(frozen=True)
class NM(WeightPattern):
    """Exactly `n` of every `m` consecutive weights along the last dimension.

    The units are the weights, one group a row: [..., groups, m].

    Examples
    --------
    >>> NM(2, 4).units(torch.arange(8.0)).tolist()
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"expected 1 <= n <= m, got {self}")

    def units(self, scores: Tensor) -> Tensor:
        if not scores.ndim or scores.shape[-1] % self.m:
            raise ValueError(f"expected a shape that {self} divides, got {tuple(scores.shape)}")
        return scores.reshape(*scores.shape[:-1], scores.shape[-1] // self.m, self.m)

    def to_mask(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        if bool((units.sum(-1) != self.n).any()):
            raise ValueError(
                f"expected {self.n} kept of every {self.m}, got another count; "
                f"try TopK({self.n}), which counts in each group"
            )
        return super().to_mask(units.flatten(-2), shape)

    def from_mask(self, mask: Tensor) -> Tensor:
        units = self.units(mask)
        self.to_mask(units, mask.shape)
        return units


@dataclass(frozen=True)
class Block(WeightPattern):
    """Blocks of `rows` x `columns` weights over the last two dimensions, scored by their sum.

    Examples
    --------
    >>> Block(1, 2).units(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist()
    [[3.0, 7.0]]
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        _check_least("rows", self.rows, 1)
        _check_least("columns", self.columns, 1)

    def units(self, scores: Tensor) -> Tensor:
        return self._tiles(scores).sum(-1)

    def to_mask(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        mask = units.repeat_interleave(self.rows, -2).repeat_interleave(self.columns, -1)
        return super().to_mask(mask, shape)

    def from_mask(self, mask: Tensor) -> Tensor:
        return _whole(self._tiles(mask), self)

    def _tiles(self, x: Tensor) -> Tensor:  # [..., block rows, block columns, weights]
        if x.ndim < 2 or x.shape[-2] % self.rows or x.shape[-1] % self.columns:
            raise ValueError(f"expected a shape that {self} divides, got {tuple(x.shape)}")
        grid = (x.shape[-2] // self.rows, x.shape[-1] // self.columns)
        tiles = x.reshape(*x.shape[:-2], grid[0], self.rows, grid[1], self.columns)
        return tiles.transpose(-3, -2).flatten(-2)


@dataclass(frozen=True)
class Channel(WeightPattern):
    """Whole slices along `dim` (default 0, output channels), scored by their sum.

    Examples
    --------
    >>> Channel().units(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [3.0, 7.0]
    """

    dim: int = 0

    def units(self, scores: Tensor) -> Tensor:
        return self._slices(scores).sum(-1)

    def to_mask(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        mask = units.new_empty(shape)
        slices = self._slices(mask)
        if units.shape != slices.shape[:1]:
            raise ValueError(f"expected {len(slices)} units, got shape {tuple(units.shape)}")
        mask.movedim(self.dim, 0).copy_(units.reshape(-1, *[1] * (len(shape) - 1)))
        return mask

    def from_mask(self, mask: Tensor) -> Tensor:
        return _whole(self._slices(mask), self)

    def _slices(self, x: Tensor) -> Tensor:  # [channels, weights]
        if not -x.ndim <= self.dim < x.ndim:
            raise ValueError(f"expected a shape that has {self}, got {tuple(x.shape)}")
        return x.movedim(self.dim, 0).reshape(x.shape[self.dim], -1)


def _whole(units: Tensor, pattern: WeightPattern) -> Tensor:
    kept = units.any(-1)
    if not torch.equal(kept, units.all(-1)):
        raise ValueError(f"expected a mask of {pattern}, got one that keeps a unit in part")
    return kept


def _compress(mask: Tensor) -> tuple[Tensor, Tensor, Shape]:
    """CSR offsets and indices of the last dimension's lists, and the mask's shape."""
    _check_tensor("mask", mask, torch.bool, 4)
    batch, heads, tiles, keys = mask.shape
    ends = mask.sum(-1).flatten().cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return offsets, mask.flatten(0, 2).nonzero()[:, 1].int(), (batch, heads, tiles, keys)


def _pairs_below(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Pairs (row, column) with column <= row in each tile, in closed form."""

    def triangle(x: Tensor) -> Tensor:  # 1 + 2 + ... + x
        return x.clamp(min=0) * (x + 1) // 2

    return (triangle(bottom - left) - triangle(top - left)) - (
        triangle(bottom - right) - triangle(top - right)
    )


def _distances(q_len: int, k_len: int) -> Tensor:
    """Query position minus key, int64 [q_len, k_len]."""
    return torch.arange(k_len - q_len, k_len)[:, None] - torch.arange(k_len)


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value}")


def _check_block(block: int) -> None:
    if block < 16 or block % 16:
        raise ValueError(f"expected block to be a positive multiple of 16, got {block}; try 64")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, ndim: int) -> None:
    found = getattr(tensor, "dtype", type(tensor))
    if found != dtype:
        raise TypeError(f"expected {name} to be a tensor of {dtype}, got {found}")
    if tensor.ndim != ndim:
        raise ValueError(f"expected {name} with {ndim} dimensions, got shape {tuple(tensor.shape)}")
