"""The packed record of a sparse weight: the values of a support, and where kernels want them.

A weight [M, K] is stored as compressed rows whose entries may be explicit zeros: the entries are
the *support*, the weights that may be non-zero.
"""

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from gossamer.kernels import backend
from gossamer.kernels.memory import streamed
from gossamer.kernels.support import MAX_SIZE, Support, narrow_columns, row_offsets
from gossamer.patterns import NM, Unstructured, WeightPattern

DTYPES = (torch.float32, torch.bfloat16)


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
        return PackedWeight(streamed(self.values[order]), support, Unstructured())

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
        return streamed(padded[entries.flatten()].view(entries.shape))

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
        return self._placed(groups.entries), streamed(groups.indices)

    @cached_property
    def semi_structured(self) -> Tensor:
        """A 2:4 weight as PyTorch's semi-structured tensor, for CUDA's tensor cores."""
        return to_sparse_semi_structured(self.to_dense())

    def _placed(self, entries: Tensor) -> Tensor:
        padded = torch.cat([self.values.float(), self.values.new_zeros(1).float()])
        return streamed(padded.index_select(0, entries.flatten()).reshape(entries.shape))


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
        offsets, values = row_offsets(mask.sum(1)), weight[mask]
    else:
        raise TypeError(
            f"expected weight dense, sparse_csr or sparse_bsr, got {weight.layout}; "
            "try weight.to_dense()"
        )
    support = _support(offsets, columns, weight.shape)
    return PackedWeight(streamed(values.to(dtype)), support, pattern)


def _support(offsets: Tensor, columns: Tensor, shape: torch.Size) -> Support:
    return Support(offsets, narrow_columns(columns, shape[1]), (shape[0], shape[1]))


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
    return row_offsets(counts), wide[order], weight.values().flatten()[order]
