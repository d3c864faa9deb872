"""What patterns made of lists of keys share: storage, masks, checks and pair counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from math import ceil, prod
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gossamer.patterns.attention import Window

Shape = tuple[int, int, int, int]
Lists = tuple[Tensor, Tensor, Tensor]


class KeyLists(ABC):
    """Ascending lists of keys or key blocks, one for each (batch, head, query tile)."""

    shape: Shape  # of the mask

    @property
    def rows(self) -> Lists:
        """Starts and counts (int64 [rows]) and flat (int32), found once: records do not change.

        List r is ``flat[starts[r] : starts[r] + counts[r]]``, in (batch, head, query tile) order.
        """
        # torch.compile cannot trace the lock that cached_property holds in Python 3.11.
        return self._find_rows() if torch.compiler.is_compiling() else self._rows

    @cached_property
    def _rows(self) -> Lists:
        return self._find_rows()

    @abstractmethod
    def _find_rows(self) -> Lists: ...

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


class CompressedRows(KeyLists):
    """Lists stored as one CSR."""

    offsets: Tensor
    indices: Tensor

    def _find_rows(self) -> Lists:
        return self.offsets[:-1], self.offsets.diff(), self.indices

    def validate(self) -> Self:
        first, last, nnz = int(self.offsets[0]), int(self.offsets[-1]), self.indices.numel()
        if (first, last) != (0, nnz) or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"expected offsets rising from 0 to {nnz}, got {first} to {last}")
        return super().validate()

    def _check(self) -> None:
        check_tensor("offsets", self.offsets, torch.int64, 1)
        check_tensor("indices", self.indices, torch.int32, 1)
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


def compress(mask: Tensor) -> tuple[Tensor, Tensor, Shape]:
    """Return CSR offsets and indices of the last dimension's lists, and the mask's shape."""
    check_tensor("mask", mask, torch.bool, 4)
    batch, heads, tiles, keys = mask.shape
    ends = mask.sum(-1).flatten().cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return offsets, mask.flatten(0, 2).nonzero()[:, 1].int(), (batch, heads, tiles, keys)


def check_least(name: str, value: int, least: int) -> None:
    """Refuse a number below its least."""
    if value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value}")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, ndim: int) -> None:
    """Refuse anything but a tensor of `dtype` with `ndim` dimensions."""
    found = getattr(tensor, "dtype", type(tensor))
    if found != dtype:
        raise TypeError(f"expected {name} to be a tensor of {dtype}, got {found}")
    if tensor.ndim != ndim:
        raise ValueError(f"expected {name} with {ndim} dimensions, got shape {tuple(tensor.shape)}")


def _pairs_below(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Pairs (row, column) with column <= row in each tile, in closed form."""

    def triangle(x: Tensor) -> Tensor:  # 1 + 2 + ... + x
        return x.clamp(min=0) * (x + 1) // 2

    return (triangle(bottom - left) - triangle(top - left)) - (
        triangle(bottom - right) - triangle(top - right)
    )
