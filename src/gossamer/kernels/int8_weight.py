"""The packed record of an int8 weight in groups of output channels, and affine quantisation.

A real number x is stored as the integer ``q = round(x / scale) + zero_point``. Weights have one
scale an output channel and zero point 0, activations one scale and zero point a tensor.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

GROUPS = (1, 2, 4, 8, 16)
QUAD = 4  # columns whose products are added at once
MOST_COLUMNS = 2**16  # sums of as many products of bytes stay within int32
READ_AHEAD = 64  # bytes that a kernel may read behind the last value
BYTES = (torch.uint8, torch.int8)
SCALES = (2.0**-100, 2.0**100)  # whose reciprocals float32 holds as well


@dataclass(frozen=True)
class Affine:
    """Real numbers as bytes: ``x = scale * (q - zero_point)``.

    Parameters
    ----------
    scale : float
        From 2**-100 to 2**100.
    zero_point : int
        The byte that stands for 0; within the dtype's range.
    dtype : torch.dtype, default torch.uint8
        uint8 or int8.

    Raises
    ------
    TypeError, ValueError
        If the dtype is another, or a number is out of range.

    Examples
    --------
    >>> relu6 = Affine.over(0.0, 6.0)
    >>> relu6.quantise(torch.tensor([0.0, 3.0, 6.0, 9.0])).tolist()
    [0, 128, 255, 255]
    """

    scale: float
    zero_point: int = 0
    dtype: torch.dtype = torch.uint8

    def __post_init__(self) -> None:
        if self.dtype not in BYTES:
            raise TypeError(f"expected dtype uint8 or int8, got {self.dtype}")
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise ValueError(f"expected scale in [2**-100, 2**100], got {self.scale}")
        low, high = self.limits
        if not low <= self.zero_point <= high:
            raise ValueError(f"expected zero_point in [{low}, {high}], got {self.zero_point}")

    @classmethod
    def over(cls, low: float, high: float, dtype: torch.dtype = torch.uint8) -> "Affine":
        """Cover the interval from `low` to `high`, stretched to hold 0 exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, SCALES[0]) if high > low else 1.0
        least = 0 if dtype == torch.uint8 else -128
        return cls(scale, least + min(255, max(0, round(-low / scale))), dtype)

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest byte."""
        return (0, 255) if self.dtype == torch.uint8 else (-128, 127)

    def quantise(self, x: Tensor) -> Tensor:
        """Return the bytes nearest to real numbers; halves go to the even byte."""
        return (x / self.scale + self.zero_point).round().clamp(*self.limits).to(self.dtype)

    def dequantise(self, q: Tensor) -> Tensor:
        """Return the real numbers that bytes stand for, float32."""
        return (q.float() - self.zero_point) * self.scale


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight [M, K] of bytes in which `group` consecutive rows share their columns.

    Made by `pack_int8`. A line is `group` rows; its columns stand in quads, the last filled up
    with zero weights.

    Parameters
    ----------
    starts : Tensor [lines + 1] int64
        First quad of each line.
    quads : Tensor [quads, 4] int32
        Columns.
    values : Tensor [4 * group * quads + 64] int8
        Line after line; in a line row after row, in a row quad after quad. The rest is zero.
    group : int
    scale : Tensor [M] float32
        Of each row: a weight is ``scale * value``.
    shape : (M, K)

    Examples
    --------
    >>> weight = pack_int8(torch.tensor([[0.0, 1.0], [0.0, -0.5]]), group=2)
    >>> weight.density, weight.to_dense().tolist()
    (0.5, [[0, 127], [0, -127]])
    """

    starts: Tensor = field(repr=False)
    quads: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    group: int
    scale: Tensor = field(repr=False)
    shape: tuple[int, int]

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return int(self.values.count_nonzero()) / max(1, self.shape[0] * self.shape[1])

    @cached_property
    def row_sums(self) -> Tensor:
        """Sum of each row's bytes, int32 [M]."""
        return self.to_dense().sum(1, dtype=torch.int32)

    def to_dense(self) -> Tensor:
        """Return the bytes as int8 [M, K]."""
        rows, columns = self.shape
        lines = len(self.starts) - 1
        at, line = _places(self.starts, self.group)
        values = self.values[at]  # [quads, group, 4]
        dense = self.values.new_zeros(lines, self.group, max(1, columns))
        # Free slots repeat column 0 with weight 0: adding leaves what is there.
        columns_at = self.quads.long()[:, None].expand_as(values)
        rows_at = torch.arange(self.group)[:, None].expand_as(values)
        dense.index_put_((line[:, None, None], rows_at, columns_at), values, accumulate=True)
        return dense.flatten(0, 1)[:rows, :columns]

    def dequantise(self) -> Tensor:
        """Return the weights that the bytes stand for, float32 [M, K]."""
        return self.to_dense() * self.scale[:, None]


def pack_int8(weight: Tensor, *, group: int = 8) -> Int8Weight:
    """Quantise a sparse weight to bytes, each row by its largest weight, and pack it for int8_spmm.

    Parameters
    ----------
    weight : Tensor [M, K] float32
        Dense with zeros, on CPU. A column that is zero in all rows of a group is skipped there.
    group : {1, 2, 4, 8, 16}, default=8
        Consecutive rows that share their columns.

    Raises
    ------
    TypeError
        If `weight` is not float32.
    ValueError
        If it is no matrix, is not finite, has more than 65,536 columns, or the group is another.

    Examples
    --------
    >>> pack_int8(torch.eye(4), group=4).quads.tolist()
    [[0, 1, 2, 3]]
    """
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"expected weight to be float32, got {found}; try .float()")
    if weight.ndim != 2 or weight.shape[1] > MOST_COLUMNS or weight.device.type != "cpu":
        raise ValueError(
            f"expected weight to be [M, K] with K <= {MOST_COLUMNS} on the CPU, got "
            f"{list(weight.shape)} on {weight.device}; try weight.flatten(1)"
        )
    if group not in GROUPS:
        raise ValueError(f"expected group to be one of {GROUPS}, got {group}")
    if not bool(weight.isfinite().all()):
        raise ValueError("expected finite weights, got infinity or NaN")
    weight = weight.detach()
    rows, columns = weight.shape
    scale = (weight.abs().amax(1) if columns else weight.new_zeros(rows)) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    quantised = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    lines = -(-rows // group)
    padded = quantised.new_zeros(lines * group, columns)
    padded[:rows] = quantised
    tiles = padded.unflatten(0, (lines, group))
    line, column = tiles.any(1).nonzero().T

    # Columns go to slots of whole quads; a line's free slots repeat column 0 with weight 0.
    counts = torch.bincount(line, minlength=lines)
    quads = -(-counts // QUAD)
    starts = torch.cat([quads.new_zeros(1), quads.cumsum(0)])
    rank = torch.arange(len(line)) - torch.cat([counts.new_zeros(1), counts.cumsum(0)])[line]
    slot = starts[line] * QUAD + rank
    total = int(starts[-1])
    at = torch.zeros(total * QUAD, dtype=torch.int32)
    at[slot] = column.int()
    slots = quantised.new_zeros(total * QUAD, group)
    slots[slot] = tiles[line, :, column]
    values = quantised.new_zeros(total * QUAD * group + READ_AHEAD)
    values[_places(starts, group)[0]] = slots.unflatten(0, (total, QUAD)).mT
    return Int8Weight(starts, at.unflatten(0, (total, QUAD)), values, group, scale, (rows, columns))


def _places(starts: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Where the values of each quad lie, int64 [quads, group, 4], and its line [quads]."""
    counts = starts.diff()
    line = torch.arange(len(counts)).repeat_interleave(counts)
    begin, count = starts[line], counts[line]
    rank = torch.arange(len(line)) - begin
    row = torch.arange(group)
    place = begin[:, None] * group + row * count[:, None] + rank[:, None]
    return place[:, :, None] * QUAD + torch.arange(QUAD), line
