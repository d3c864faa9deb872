"""The packed record of a sparse weight: what it holds, and the layouts that kernels read.

A weight [M, K] is stored as compressed rows whose entries may be explicit zeros: the entries are
the *support*, the weights that may be non-zero. Everything else is derived from it when a kernel
first asks, and kept: panels for products with many columns, bit masks and groups for few.
"""

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from gossamer.kernels import backend
from gossamer.kernels.memory import empty_streamed
from gossamer.patterns import NM, Unstructured, WeightPattern

DTYPES = (torch.float32, torch.bfloat16)
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
        offsets = _offsets(torch.bincount(columns, minlength=self.shape[1]))
        shape = (self.shape[1], self.shape[0])
        return Support(offsets, _narrow(self.row_indices[order], shape[1]), shape), order

    @cached_property
    def bits(self) -> Tensor:
        """One bit a weight, int64 [M, ceil(K / 64)]; bit i of word w is column 64 w + i."""
        rows, columns = self.shape
        words = -(-columns // 64)
        bits = torch.zeros(rows * words, dtype=torch.int64, device=self.offsets.device)
        column = self.column_indices.long()
        bits.index_add_(0, self.row_indices * words + column // 64, 1 << column % 64)
        return _settled(bits.reshape(rows, words))

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

        begin = _offsets(counts.clamp(min=0).flatten())
        order = slot.argsort(stable=True)
        entries = torch.full((len(order), group), len(row), device=row.device)
        entries[order.argsort()[unit_of_entry], row % group] = torch.arange(len(row))
        return Panels(
            width,
            group,
            begin[::per_block].contiguous(),
            lines.to(torch.int16),
            counts.to(torch.int16),
            _settled((column[order] % width).to(torch.uint8)),
            entries.to(torch.int32 if len(row) < MAX_SIZE else torch.int64),
        )

    @cached_property
    def slices(self) -> Slices:
        """The layout of products with one vector or two."""
        counts, order = self.offsets.diff().sort(descending=True, stable=True)
        kept = int((counts > 0).sum())
        rows = torch.full((-(-kept // SLICE) * SLICE,), -1, device=order.device)
        rows[:kept] = order[:kept]
        starts = _offsets(counts[:kept][::SLICE])
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
            _settled(self.columns[entries]),
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


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A sparse weight [M, K], ready for the kernels; made by `pack`.

    Parameters
    ----------
    values : Tensor [nnz] float32 or bfloat16
        One value an entry of the support, row after row; explicit zeros are allowed.
    support : Support
    pattern : WeightPattern
        What the support was built to, for kernels that use its regularity.

    Examples
    --------
    >>> weight = pack(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> weight.density, weight.transposed().to_dense().tolist()
    (0.5, [[0.0, 3.0], [2.0, 0.0]])
    """

    values: Tensor = field(repr=False)
    support: Support = field(repr=False)
    pattern: WeightPattern

    def __reduce__(self) -> tuple:
        """Copy and pickle without what was worked out for a kernel."""
        return type(self), (self.values, self.support, self.pattern)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        return self.support.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Of the values and the support."""
        return self.values.device

    @property
    def density(self) -> float:
        """Share of the weights that are entries."""
        return len(self.values) / max(1, self.shape[0] * self.shape[1])

    def to_dense(self) -> Tensor:
        """Return the dense weight [M, K]."""
        dense = self.values.new_zeros(self.shape)
        dense[self.support.row_indices, self.support.column_indices.long()] = self.values
        return dense

    def to_csr(self) -> Tensor:
        """Return a torch.sparse_csr tensor [M, K] that holds the same entries."""
        indices = self.support.offsets, self.support.column_indices.long()
        with warnings.catch_warnings():  # PyTorch calls its own format a beta
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(
                *indices, self.values, self.shape, check_invariants=False
            )

    def transposed(self) -> "PackedWeight":
        """Return the transposed weight [K, M]; its support is worked out once and shared."""
        support, order = self.support.transposed
        return PackedWeight(_settled(self.values[order]), support, Unstructured())

    def with_values(self, values: Tensor) -> "PackedWeight":
        """Return a weight of the same support and layouts with other values [nnz].

        Raises
        ------
        ValueError
            If `values` is not of the shape, dtype and device of this weight's values.
        """
        mine = (self.values.shape, self.dtype, self.device)
        if (values.shape, values.dtype, values.device) != mine:
            raise ValueError(
                f"expected values like {list(mine[0])} {mine[1]} on {mine[2]}, got "
                f"{list(values.shape)} {values.dtype} on {values.device}"
            )
        return PackedWeight(values.contiguous(), self.support, self.pattern)

    def to(self, device: torch.device | str) -> "PackedWeight":
        """Return the weight with its tensors on `device`."""
        support = self.support
        moved = Support(support.offsets.to(device), support.columns.to(device), support.shape)
        return PackedWeight(self.values.to(device), moved, self.pattern)

    @cached_property
    def panel_values(self) -> Tensor:
        """The values in the order of the support's panels, float32 [units, group], 0 between."""
        return self._placed(self.support.panels.entries)

    @cached_property
    def native_panels(self) -> object:
        """The panels as the native kernels hold them."""
        panels = self.support.panels
        layout = panels.starts, panels.lines, panels.counts, panels.columns
        return backend.launch("PanelWeight", panels.width, *layout, self.panel_values)

    @cached_property
    def native_rows(self) -> dict[str | int, object]:
        """The weight as native kernels hold it, by the way that they read it and by vectors."""
        return {}

    @cached_property
    def slice_values(self) -> Tensor:
        """The values in the order of the support's slices [lines, SLICE], 0 between."""
        entries = self.support.slices.entries
        padded = torch.cat([self.values, self.values.new_zeros(1)])
        return _settled(padded[entries.flatten()].view(entries.shape))

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Values, float32, and indices, uint8, of an N:M weight: [M, K / m, n] both.

        Raises
        ------
        ValueError
            If the weight was packed to another pattern.
        """
        if not isinstance(self.pattern, NM) or self.pattern.m > 256:
            raise ValueError(
                f"expected a weight packed to NM(n, m) with m <= 256, got {self.pattern}"
            )
        groups = self.support.groups(self.pattern)
        return self._placed(groups.entries), _settled(groups.indices)

    @cached_property
    def semi_structured(self) -> Tensor:
        """A 2:4 weight as PyTorch's semi-structured tensor, for CUDA's tensor cores."""
        return to_sparse_semi_structured(self.to_dense())

    def _placed(self, entries: Tensor) -> Tensor:
        padded = torch.cat([self.values.float(), self.values.new_zeros(1).float()])
        return _settled(padded.index_select(0, entries.flatten()).reshape(entries.shape))


def pack(
    weight: Tensor, pattern: WeightPattern | None = None, dtype: torch.dtype | None = None
) -> PackedWeight:
    """Pack a sparse weight for `spmm`, `sparse_gemv` and `nm_matmul`.

    Parameters
    ----------
    weight : Tensor [M, K]
        Dense with zeros, or torch.sparse_csr or torch.sparse_bsr, whose explicit zeros stay.
        Floating point.
    pattern : WeightPattern, default=Unstructured()
        The weight is checked against it: NM holds at most n non-zeros a group, Block and Channel
        store a unit whole when any of its weights is not zero.
    dtype : torch.dtype, optional
        float32 or bfloat16, to which values are rounded. By default the weight's own.

    Returns
    -------
    PackedWeight
        `to_dense` and `to_csr` give the values back exactly, -0.0 as 0.0.

    Raises
    ------
    TypeError
        If `weight` is no tensor of floats, or the dtype is neither float32 nor bfloat16.
    ValueError
        If it is no matrix, is malformed, or is not of `pattern`.

    Examples
    --------
    >>> from gossamer.patterns import NM
    >>> weight = torch.tensor([[0.0, 1.5, 0.0, -2.0], [3.0, 0.0, 0.0, 0.0]])
    >>> packed = pack(weight, NM(2, 4))
    >>> packed.values.tolist(), torch.equal(packed.to_dense(), weight)
    ([1.5, -2.0, 3.0], True)
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"expected weight to be a tensor of floats, got {found}")
    if weight.ndim != 2:
        raise ValueError(
            f"expected weight to be [M, K], got {list(weight.shape)}; try weight.flatten(1)"
        )
    if max(weight.shape) > MAX_SIZE:
        raise ValueError(f"expected M and K up to {MAX_SIZE}, got {list(weight.shape)}")
    dtype = weight.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise TypeError(f"expected dtype to be float32 or bfloat16, got {dtype}; name one")
    pattern = Unstructured() if pattern is None else pattern
    weight = weight.detach()
    if weight.layout in (torch.sparse_csr, torch.sparse_bsr):
        offsets, columns, values = _compressed_rows(weight)
        if not isinstance(pattern, Unstructured):
            mask = _support(offsets, columns, weight.shape).mask()
            if not torch.equal(_widened(mask, pattern), mask):
                raise ValueError(f"expected whole units of {pattern}, got a tensor with parts")
    elif weight.layout == torch.strided:
        mask = _widened(weight != 0, pattern)
        columns = mask.nonzero()[:, 1]
        offsets, values = _offsets(mask.sum(1)), weight[mask]
    else:
        raise TypeError(
            f"expected weight dense, sparse_csr or sparse_bsr, got {weight.layout}; "
            "try weight.to_dense()"
        )
    support = _support(offsets, columns, weight.shape)
    return PackedWeight(_settled(values.to(dtype)), support, pattern)


def _support(offsets: Tensor, columns: Tensor, shape: torch.Size) -> Support:
    return Support(offsets, _narrow(columns, shape[1]), (shape[0], shape[1]))


def _narrow(columns: Tensor, width: int) -> Tensor:
    return _settled(columns.int().to(torch.int16 if width <= 1 << 16 else torch.int32))


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _settled(tensor: Tensor) -> Tensor:
    """Copy what will be streamed from memory again and again to huge pages."""
    return empty_streamed(tuple(tensor.shape), tensor.dtype, tensor.device).copy_(tensor)


def _widened(mask: Tensor, pattern: WeightPattern) -> Tensor:
    """Return the mask of the pattern's units that hold a kept weight."""
    if isinstance(pattern, Unstructured):
        return mask
    if not isinstance(pattern, NM):
        return pattern.to_mask(pattern.units(mask.float()) > 0, tuple(mask.shape))
    most = int(pattern.units(mask).sum(-1).max()) if mask.numel() else 0
    if most > pattern.n:
        raise ValueError(f"expected at most {pattern.n} of {pattern.m} weights, got {most}")
    return mask


def _compressed_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check a torch.sparse_csr or sparse_bsr tensor; return row offsets, columns and values."""
    offsets, columns = weight.crow_indices().long(), weight.col_indices().long()
    height, width = weight.values().shape[1:] or (1, 1)
    counts = offsets.diff()
    if int(offsets[0]) or int(offsets[-1]) != len(columns) or bool((counts < 0).any()):
        raise ValueError(f"expected row offsets that rise from 0 to {len(columns)}")
    if bool(((columns < 0) | (columns >= weight.shape[1] // width)).any()):
        raise ValueError(f"expected column indices in 0..{weight.shape[1] // width - 1}")
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    if bool(((columns.diff() <= 0) & (row.diff() == 0)).any()):
        raise ValueError("expected strictly ascending columns in a row; try .to_dense()")
    if weight.layout == torch.sparse_csr:
        return offsets, columns, weight.values()
    inside = torch.arange(max(height, width), device=row.device)
    rows = (row[:, None, None] * height + inside[:height, None]).expand_as(weight.values())
    wide = (columns[:, None, None] * width + inside[:width]).expand_as(weight.values()).flatten()
    order = (rows.flatten() * weight.shape[1] + wide).argsort()
    counts = counts.repeat_interleave(height) * width
    return _offsets(counts), wide[order], weight.values().flatten()[order]
