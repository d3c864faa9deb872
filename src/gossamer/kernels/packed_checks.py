"""What a packed weight that comes from elsewhere must fulfil before a kernel trusts it.

Nothing of the dense weight's size is made, and the entries are looked at a part at a time: a check
costs a few megabytes, whatever sizes a file claims.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.kernels.packed import DTYPES, MAX_SIZE, PackedWeight, Support
from gossamer.patterns import NM, Block, Channel, Unstructured, WeightPattern

PATTERNS = (Unstructured, NM, Block, Channel)
CHUNK = 1 << 18  # entries looked at together


def packed_problem(weight: PackedWeight) -> str | None:
    """Say what is wrong with a packed weight, None if nothing is.

    Parameters
    ----------
    weight : PackedWeight
        On CPU; its tensors may hold anything. Its support must have its pattern as `pack` demands
        it: NM holds at most n entries a group, Block and Channel hold whole units.

    Examples
    --------
    >>> columns = torch.tensor([1, 1], dtype=torch.int16)
    >>> support = Support(torch.tensor([0, 2]), columns, (1, 4))
    >>> packed_problem(PackedWeight(torch.ones(2), support, Unstructured()))
    'columns: expected 0..3, strictly ascending in each row, found 1 after 1 in row 0'
    """
    support = weight.support
    rows, columns = support.shape
    if not 0 <= min(rows, columns) <= max(rows, columns) <= MAX_SIZE:
        return f"expected two sizes of 0 to {MAX_SIZE}, found {rows} x {columns}"
    if weight.dtype not in DTYPES:
        return f"values: expected float32 or bfloat16, found {weight.dtype}"
    expected = (torch.int64, torch.int16 if columns <= 1 << 16 else torch.int32)
    if (found := (support.offsets.dtype, support.columns.dtype)) != expected:
        return f"offsets, columns: expected {expected}, found {found}"
    nnz = support.columns.numel()
    for name, tensor, size in (
        ("offsets", support.offsets, rows + 1),
        ("columns", support.columns, nnz),
        ("values", weight.values, nnz),
    ):
        if tensor.shape != (size,):
            return f"{name}: expected [{size}], found {list(tensor.shape)}"
    first, last = int(support.offsets[0]), int(support.offsets[-1])
    falls = (support.offsets[1:] < support.offsets[:-1]).nonzero()
    if first != 0 or last != nnz or len(falls):
        return f"offsets: expected to rise from 0 to {nnz}, the number of columns, found " + (
            f"a fall in row {int(falls[0])}" if len(falls) else f"{first} to {last}"
        )
    return _columns_problem(support) or _pattern_problem(support, weight.pattern)


def entries(support: Support) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Go through a support by parts: the entries' numbers, their rows and columns, int64."""
    for begin in range(0, len(support.columns), CHUNK):
        entry = torch.arange(begin, min(begin + CHUNK, len(support.columns)))
        row = torch.searchsorted(support.offsets, entry, right=True) - 1
        yield entry, row, _columns(support, entry)


def _columns_problem(support: Support) -> str | None:
    for entry, row, column in entries(support):
        before = _columns(support, (entry - 1).clamp(min=0))
        starts = entry == support.offsets[row]
        wrong = (column < 0) | (column >= support.shape[1]) | ~starts & (column <= before)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            after = "" if starts[at] else f" after {before[at].item()}"
            return (
                f"columns: expected 0..{support.shape[1] - 1}, strictly ascending in each row, "
                f"found {column[at].item()}{after} in row {row[at].item()}"
            )
    return None


def _pattern_problem(support: Support, pattern: WeightPattern) -> str | None:
    if type(pattern) not in PATTERNS:
        return f"expected one of {', '.join(kind.__name__ for kind in PATTERNS)}, found {pattern!r}"
    rows, columns = support.shape
    if isinstance(pattern, NM):
        height, width = 1, pattern.m
    elif isinstance(pattern, Block):
        height, width = pattern.rows, pattern.columns
    elif isinstance(pattern, Channel):
        if not -2 <= pattern.dim < 2:
            return f"expected a pattern of a matrix, found {pattern}"
        height, width = (1, columns) if pattern.dim % 2 == 0 else (rows, 1)
    else:
        return None
    if rows % max(1, height) or columns % max(1, width):
        return f"expected a shape that {pattern} divides, found {rows} x {columns}"
    if isinstance(pattern, NM):
        whole = _groups_hold(support, pattern)
    else:
        whole = _blocks_whole(support, height, width)
    return None if whole else f"columns: expected those of {pattern}, found others"


def _groups_hold(support: Support, pattern: NM) -> bool:
    """Whether no entry has its n-th predecessor in its own group."""
    for entry, row, column in entries(support):
        earlier = entry - pattern.n
        same_row = earlier >= support.offsets[row]
        group = _columns(support, earlier.clamp(min=0)) // pattern.m
        if bool((same_row & (group == column // pattern.m)).any()):
            return False
    return True


def _blocks_whole(support: Support, height: int, width: int) -> bool:
    """Whether rows of a block agree, and columns come in aligned runs of `width`."""
    if not len(support.columns):
        return True
    counts = support.offsets.diff().reshape(-1, height)
    if bool(((counts != counts[:, :1]) | (counts % width != 0)).any()):
        return False
    for entry, row, column in entries(support):
        place = entry - support.offsets[row]
        top = support.offsets[row // height * height] + place
        start = _columns(support, entry - place % width)
        run = (start % width == 0) & (column == start + place % width)
        if not bool((run & (column == _columns(support, top))).all()):
            return False
    return True


def _columns(support: Support, entry: Tensor) -> Tensor:
    columns = support.columns[entry].long()
    return columns & 0xFFFF if support.columns.dtype == torch.int16 else columns
