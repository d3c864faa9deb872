"""A weight matrix that stores its non-zeros only, as compressed sparse rows, to be trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)  # float64 runs the reference, to check gradients with
MOST = 2**31 - 1  # rows, columns and entries: all are counted in int32


class Columns(NamedTuple):
    """The same entries by column: compressed sparse columns, with where each entry is stored."""

    offsets: Tensor
    """int64 [K + 1]"""
    indices: Tensor
    """int32 [nnz]: rows, ascending within a column"""
    order: Tensor
    """int32 [nnz]: the place of each entry among the rows' entries"""


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where the non-zeros of a matrix are.

    Parameters
    ----------
    offsets : Tensor [M + 1] int64
        Where each row begins in `indices`.
    indices : Tensor [nnz] int32
        Columns, strictly ascending within a row.
    shape : (M, K)

    Raises
    ------
    TypeError, ValueError
        If a dtype, size or device does not fit; `validate` also looks at every index.

    Examples
    --------
    >>> pattern = SparsePattern.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
    >>> pattern.offsets.tolist(), pattern.indices.tolist(), pattern.density()
    ([0, 2, 3], [0, 2, 1], 0.5)
    """

    offsets: Tensor = field(repr=False)
    indices: Tensor = field(repr=False)
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        for name, tensor, dtype in (
            ("offsets", self.offsets, torch.int64),
            ("indices", self.indices, torch.int32),
        ):
            if tensor.dtype != dtype:
                raise TypeError(f"expected {name} to be {dtype}, got {tensor.dtype}")
            if tensor.ndim != 1:
                raise ValueError(f"expected {name} to be a vector, got {list(tensor.shape)}")
        if len(self.shape) != 2 or min(self.shape) < 0 or max(self.shape) > MOST:
            raise ValueError(f"expected shape to be two sizes in 0..{MOST}, got {self.shape}")
        if len(self.offsets) != self.shape[0] + 1:
            raise ValueError(
                f"expected {self.shape[0] + 1} offsets for {self.shape[0]} rows, got "
                f"{len(self.offsets)}"
            )
        if self.offsets.device != self.indices.device:
            raise ValueError(
                f"expected one device, got offsets on {self.offsets.device}, indices on "
                f"{self.indices.device}"
            )
        if len(self.indices) > MOST:
            raise ValueError(f"expected at most {MOST} entries, got {len(self.indices)}")

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """Build from a bool mask [M, K]."""
        if mask.dtype != torch.bool:
            raise TypeError(f"expected mask to be bool, got {mask.dtype}; try weight != 0")
        if mask.ndim != 2:
            raise ValueError(f"expected mask to be [rows, columns], got {list(mask.shape)}")
        rows, columns = mask.shape
        return cls(_offsets(mask.sum(1)), mask.nonzero()[:, 1].int(), (rows, columns))

    @classmethod
    def random(
        cls, rows: int, columns: int, *, density: float, generator: torch.Generator | None = None
    ) -> Self:
        """Draw ``round(density * rows * columns)`` places, every set of them alike.

        Examples
        --------
        >>> SparsePattern.random(30, 40, density=0.1).nnz
        120
        """
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"expected density in [0, 1], got {density}")
        count = round(density * rows * columns)
        scores = torch.rand(rows * columns, generator=generator)
        kept = scores.topk(count, sorted=False).indices.sort().values
        return cls.from_places(kept, (rows, columns))

    @classmethod
    def from_places(cls, places: Tensor, shape: tuple[int, int]) -> Self:
        """Build from ascending ``row * columns + column``, int64 [nnz]."""
        rows = places // max(1, shape[1])
        counts = torch.bincount(rows, minlength=shape[0])
        return cls(_offsets(counts), (places % max(1, shape[1])).int(), shape)

    @classmethod
    def from_csr(cls, matrix: Tensor) -> Self:
        """Read the pattern of a two-dimensional `torch.sparse_csr` tensor, and check it."""
        if matrix.layout != torch.sparse_csr or matrix.ndim != 2:
            raise TypeError(
                f"expected a torch.sparse_csr matrix, got {matrix.layout} {list(matrix.shape)}; "
                "try .to_sparse_csr()"
            )
        rows, columns = matrix.shape
        offsets, indices = matrix.crow_indices().long(), matrix.col_indices()
        indices = indices.clamp(-1, MOST).int()  # out of range stays out of range
        return cls(offsets, indices, (rows, columns)).validate()

    @property
    def nnz(self) -> int:
        """Entries there are."""
        return len(self.indices)

    def density(self) -> float:
        """Return the share of entries kept."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    def rows(self) -> Tensor:
        """Return the row of every entry, int64 [nnz]."""
        numbers = torch.arange(self.shape[0], device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=self.nnz)

    def places(self) -> Tensor:
        """Return ``row * columns + column`` of every entry, int64 [nnz], ascending."""
        return self.rows() * self.shape[1] + self.indices

    def to_mask(self) -> Tensor:
        """Return the bool mask [M, K]."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.indices.device)
        mask.view(-1)[self.places()] = True
        return mask

    def to(self, device: torch.device | str) -> Self:
        """Return the pattern with its tensors on `device`, itself where they are there."""
        offsets, indices = self.offsets.to(device), self.indices.to(device)
        return self if indices is self.indices else type(self)(offsets, indices, self.shape)

    @cached_property
    def columns(self) -> Columns:
        """The entries by column, sorted once."""
        order = torch.sort(self.indices, stable=True).indices
        counts = torch.bincount(self.indices, minlength=self.shape[1])
        return Columns(_offsets(counts), self.rows()[order].int(), order.int())

    def validate(self) -> Self:
        """Check every index (a pass over all of them) and return the pattern itself.

        Raises
        ------
        ValueError
            If offsets do not rise from 0 to nnz, or a row is out of range or not ascending.
        """
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        if (first, last) != (0, self.nnz) or bool((self.offsets.diff() < 0).any()):
            raise ValueError(f"expected offsets rising from 0 to {self.nnz}, got {first} to {last}")
        if bool(((self.indices < 0) | (self.indices >= self.shape[1])).any()):
            span = f"{int(self.indices.min())}..{int(self.indices.max())}"
            raise ValueError(f"expected indices in [0, {self.shape[1]}), got {span}")
        if bool((self.places().diff() <= 0).any()):
            raise ValueError("expected strictly ascending indices in a row; try from_mask")
        return self

    def find(self, other: SparsePattern) -> Tensor:
        """Return where each entry of `other` is in this pattern, int64 [other.nnz], -1 if absent.

        Examples
        --------
        >>> old = SparsePattern.from_mask(torch.tensor([[True, False, True]]))
        >>> old.find(SparsePattern.from_mask(torch.tensor([[False, True, True]]))).tolist()
        [-1, 1]
        """
        if other.shape != self.shape:
            raise ValueError(f"expected a pattern of shape {self.shape}, got {other.shape}")
        if not self.nnz:
            return other.offsets.new_full((other.nnz,), -1)
        mine, wanted = self.places(), other.places()
        at = torch.searchsorted(mine, wanted).clamp(max=self.nnz - 1)
        return torch.where(mine[at] == wanted, at, -1)


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """The non-zeros of a weight [M, K]: their values and where they are.

    Parameters
    ----------
    values : Tensor [nnz] float32
        In the order of the pattern's entries. float64 runs the reference, to check gradients.
    pattern : SparsePattern

    Examples
    --------
    >>> weight = SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> weight.values.tolist(), weight.to_dense().tolist()
    ([2.0, 3.0], [[0.0, 2.0], [3.0, 0.0]])
    """

    values: Tensor
    pattern: SparsePattern

    def __post_init__(self) -> None:
        if self.values.dtype not in DTYPES:
            raise TypeError(f"expected float32 values, got {self.values.dtype}; try .float()")
        if self.values.shape != self.pattern.indices.shape:
            raise ValueError(
                f"expected {self.pattern.nnz} values, one an entry, got {list(self.values.shape)}"
            )
        if self.values.device != self.pattern.indices.device:
            raise ValueError(
                f"expected one device, got values on {self.values.device}, pattern on "
                f"{self.pattern.indices.device}"
            )

    @classmethod
    def from_dense(cls, dense: Tensor, mask: Tensor | None = None) -> Self:
        """Keep the entries of `dense` [M, K] under `mask`, or else those that are not zero."""
        pattern = SparsePattern.from_mask(dense != 0 if mask is None else mask)
        if tuple(dense.shape) != pattern.shape:
            raise ValueError(
                f"expected a mask of shape {list(dense.shape)}, got {list(pattern.shape)}"
            )
        return cls(dense.flatten()[pattern.places()], pattern)

    @classmethod
    def from_csr(cls, matrix: Tensor) -> Self:
        """Read a two-dimensional `torch.sparse_csr` tensor; the values are shared, not copied."""
        pattern = SparsePattern.from_csr(matrix)
        return cls(matrix.values(), pattern)

    def to_dense(self) -> Tensor:
        """Return the matrix [M, K] with its zeros."""
        dense = self.values.new_zeros(self.pattern.shape).flatten()
        return dense.index_put((self.pattern.places(),), self.values).view(self.pattern.shape)


def _offsets(counts: Tensor) -> Tensor:
    """Where runs of these lengths begin, and the end of the last."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
