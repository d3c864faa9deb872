"""Which weights of a sparse matrix may be non-zero, and the layouts that kernels read.

The support is stored as compressed rows. Everything else is derived from it when a kernel first
asks, and kept: panels for products with many columns, bit masks, slices and groups for few.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gossamer.kernels.memory import streamed
from gossamer.patterns import NM

PANELS = (128, 256)  # columns a panel: to meet many entries in the first-level cache, or few in the
DENSE = 0.15  # second: the density that tells them apart
ROWS = 128  # rows a block, within which lines are sorted by length
SLICE = 16  # rows whose entries lie side by side, for one vector
GROUPS = (8, 4, 2)  # consecutive rows that may share their column indices
GROUP_FILL = 0.9  # share of a group's cells that must be entries for it to pay
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Panels:
    """Entries in the order in which a block of the dense operand in cache wants them.

    Rows fall into blocks of `ROWS`, columns into panels of `width`. A block and a panel meet in a
    cell; a cell holds its *lines*, groups of `group` consecutive rows, longest first, and a line
    holds *units*, a column's weights in that group.

    Parameters
    ----------
    width : int
        Columns a panel, at most 256.
    group : int
        Rows a line: 1, 2, 4 or 8.
    starts : Tensor [blocks * panels + 1] int64
        First unit of each cell.
    lines : Tensor [blocks * panels, ROWS / group] int16
        The block's lines from the longest to the shortest.
    counts : Tensor, like `lines`, int16
        Units of those lines; negative behind the last row of the matrix.
    columns : Tensor [units] uint8
        Within the panel.
    entries : Tensor [units, group] int32 or int64
        Entry of the compressed rows in each cell of a unit; one past the last where there is none.
    """

    width: int
    group: int
    starts: Tensor
    lines: Tensor
    counts: Tensor
    columns: Tensor
    entries: Tensor


@dataclass(frozen=True, eq=False)
class Slices:
    """Rows in slices of `SLICE` of about the same length, entry beside entry (SELL-C-sigma).

    A product with one vector then needs no sum across lanes. Rows without entries are in no slice.

    Parameters
    ----------
    starts : Tensor [slices + 1] int64
        First line of each slice, longest slices first.
    rows : Tensor [slices, SLICE] int32
        Of the matrix; -1 where there is none.
    columns : Tensor [lines, SLICE], as in `Support`
        A row's last column again where the row has ended.
    entries : Tensor, like `columns`, int64
        Entry of the compressed rows; one past the last where there is none.
    """

    starts: Tensor
    rows: Tensor
    columns: Tensor
    entries: Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Entries of an N:M weight, `n` for each `m` consecutive columns of a row.

    Parameters
    ----------
    indices : Tensor [M, K / m, n] uint8
        Column within its group; ascending, then 0 where a group holds fewer entries.
    entries : Tensor, like `indices`, int64
        Entry of the compressed rows; one past the last where there is none.
    """

    indices: Tensor
    entries: Tensor


@dataclass(frozen=True, eq=False)
class Support:
    """Which weights of a matrix may be non-zero, as compressed rows.

    Parameters
    ----------
    offsets : Tensor [M + 1] int64
        Where each row begins.
    columns : Tensor [nnz]
        Strictly ascending in a row. int16 that holds the bits of an uint16 where K <= 65536,
        int32 otherwise.
    shape : (M, K)
    """

    offsets: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def __reduce__(self) -> tuple:
        """Copy and pickle without the layouts that were worked out."""
        return type(self), (self.offsets, self.columns, self.shape)

    @property
    def column_indices(self) -> Tensor:
        """The columns as int32 [nnz]."""
        narrow = self.columns.dtype == torch.int16
        return self.columns.int() & 0xFFFF if narrow else self.columns

    @cached_property
    def row_indices(self) -> Tensor:
        """Row of every entry, int64 [nnz]."""
        rows = torch.arange(self.shape[0], device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=len(self.columns))

    def mask(self) -> Tensor:
        """Return the bool mask [M, K]."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.offsets.device)
        mask[self.row_indices, self.column_indices.long()] = True
        return mask

    @cached_property
    def transposed(self) -> "tuple[Support, Tensor]":
        """The support of the transposed matrix, and this one's entry behind each of its entries."""
        columns = self.column_indices.long()
        order = columns.argsort(stable=True)
        offsets = row_offsets(torch.bincount(columns, minlength=self.shape[1]))
        shape = (self.shape[1], self.shape[0])
        return Support(offsets, narrow_columns(self.row_indices[order], shape[1]), shape), order

    @cached_property
    def bits(self) -> Tensor:
        """One bit a weight, int64 [M, ceil(K / 64)]; bit i of word w is column 64 w + i."""
        rows, columns = self.shape
        words = -(-columns // 64)
        bits = torch.zeros(rows * words, dtype=torch.int64, device=self.offsets.device)
        column = self.column_indices.long()
        bits.index_add_(0, self.row_indices * words + column // 64, 1 << column % 64)
        return streamed(bits.reshape(rows, words))

    @cached_property
    def panels(self) -> Panels:
        """The layout of products with many columns."""
        rows, columns = self.shape
        group, width = self._group(), PANELS[len(self.columns) < DENSE * rows * columns]
        row, column = self.row_indices, self.column_indices.long()
        units, unit_of_entry = (row // group * columns + column).unique(return_inverse=True)
        line, column = units // max(1, columns), units % max(1, columns)
        blocks, panels, per_block = -(-rows // ROWS), max(1, -(-columns // width)), ROWS // group
        cell = line // per_block * panels + column // width
        slot = cell * per_block + line % per_block

        counts = torch.bincount(slot, minlength=blocks * panels * per_block)
        absent = torch.arange(blocks * per_block, device=row.device) * group >= rows
        shape = (blocks, panels, per_block)
        counts = counts.reshape(shape).masked_fill(absent.reshape(blocks, 1, per_block), -1)
        counts, lines = counts.flatten(0, 1).sort(dim=1, descending=True, stable=True)
        slot = cell * per_block + lines.argsort(dim=1).flatten()[slot]

        begin = row_offsets(counts.clamp(min=0).flatten())
        order = slot.argsort(stable=True)
        entries = torch.full((len(order), group), len(row), device=row.device)
        entries[order.argsort()[unit_of_entry], row % group] = torch.arange(len(row))
        return Panels(
            width,
            group,
            begin[::per_block].contiguous(),
            lines.to(torch.int16),
            counts.to(torch.int16),
            streamed((column[order] % width).to(torch.uint8)),
            entries.to(torch.int32 if len(row) < MAX_SIZE else torch.int64),
        )

    @cached_property
    def slices(self) -> Slices:
        """The layout of products with one vector or two."""
        counts, order = self.offsets.diff().sort(descending=True, stable=True)
        kept = int((counts > 0).sum())
        rows = torch.full((-(-kept // SLICE) * SLICE,), -1, device=order.device)
        rows[:kept] = order[:kept]
        starts = row_offsets(counts[:kept][::SLICE])
        line = torch.arange(int(starts[-1]), device=order.device)
        of = torch.searchsorted(starts, line, right=True) - 1  # slice of each line
        row = rows.view(-1, SLICE)[of]
        depth = (line - starts[of])[:, None]
        begin, end = self.offsets[row.clamp(min=0)], self.offsets[row.clamp(min=0) + 1]
        inside = (row >= 0) & (begin + depth < end)
        entries = torch.minimum(begin + depth, end - 1)
        return Slices(
            starts,
            rows.int().view(-1, SLICE),
            streamed(self.columns[entries]),
            torch.where(inside, entries, len(self.columns)),
        )

    def groups(self, pattern: NM) -> Groups:
        """The layout of products with N:M weights."""
        rows, columns = self.shape
        column = self.column_indices.long()
        group = self.row_indices * (columns // pattern.m) + column // pattern.m
        rank = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
        shape = (rows, columns // pattern.m, pattern.n)
        indices = torch.zeros(shape, dtype=torch.uint8, device=group.device).flatten(0, 1)
        indices[group, rank] = (column % pattern.m).to(torch.uint8)
        entries = torch.full_like(indices, len(group), dtype=torch.int64)
        entries[group, rank] = torch.arange(len(group), device=group.device)
        return Groups(indices.reshape(shape), entries.reshape(shape))

    def _group(self) -> int:
        """Return the most rows that share their columns in nearly all entries."""
        rows, columns = self.shape
        nnz = len(self.columns)
        if not nnz:
            return 1
        padded = torch.zeros(
            -(-rows // 8) * 8, columns, dtype=torch.bool, device=self.offsets.device
        )
        padded[:rows] = self.mask()
        for group in GROUPS:
            units = int(padded.unflatten(0, (-1, group)).any(1).sum())
            if nnz >= GROUP_FILL * units * group:
                return group
        return 1


def narrow_columns(columns: Tensor, width: int) -> Tensor:
    """Return column indices as `Support` stores them for a matrix of that width."""
    return streamed(columns.int().to(torch.int16 if width <= 1 << 16 else torch.int32))


def row_offsets(counts: Tensor) -> Tensor:
    """Return where each run begins and the last one ends, for runs of `counts`."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
