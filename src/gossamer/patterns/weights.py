"""Weight patterns: which weights stay or go together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"expected rows and columns of at least 1, got {self}")

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
        x = x.movedim(self.dim, 0)
        return x.reshape(x.shape[0], x.shape[1:].numel())


def _whole(units: Tensor, pattern: WeightPattern) -> Tensor:
    kept = units.any(-1)
    if not torch.equal(kept[..., None].expand_as(units), units):
        raise ValueError(f"expected a mask of {pattern}, got one that keeps a unit in part")
    return kept
