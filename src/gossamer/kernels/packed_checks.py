"""What a packed weight that comes from elsewhere must fulfil before a kernel trusts it.

Nothing of the dense weight's size is made, and the entries are looked at a part at a time: a check
costs a few megabytes, whatever sizes a file claims.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gossamer.kernels.packed import DTYPES, PackedWeight
from gossamer.kernels.support import MAX_SIZE, Support
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


def entries(support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a support by parts: the rows and columns of its entries, int64."""
    for begin, end in _parts(0, len(support.columns)):
        yield _rows(support, begin, end), _columns(support, begin, end).long()


def _columns_problem(support: Support) -> str | None:
    width = support.shape[1]
    for begin, end in _parts(0, len(support.columns)):
        before = max(0, begin - 1)
        column = _columns(support, before, end)
        wrong = (column < 0) | (column >= width)
        falls = column[1:] <= column[:-1]
        first, last = torch.searchsorted(support.offsets, torch.tensor([before + 1, end])).tolist()
        falls[support.offsets[first:last] - before - 1] = False  # where a row begins
        wrong[1:] |= falls
        if bool(wrong.any()):
            at = before + int(wrong.nonzero()[0])
            row = int(_rows(support, at, at + 1))
            found = f"found {int(_columns(support, at, at + 1))}"
            if at > int(support.offsets[row]):
                found += f" after {int(_columns(support, at - 1, at))}"
            return (
                f"columns: expected 0..{width - 1}, strictly ascending in each row, {found} "
                f"in row {row}"
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
        whole = not len(support.columns) or _blocks_whole(support, height, width)
    return None if whole else f"columns: expected those of {pattern}, found others"


def _groups_hold(support: Support, pattern: NM) -> bool:
    """Whether no entry has its n-th predecessor in its own group."""
    n, m = pattern.n, pattern.m
    for begin, end in _parts(n, len(support.columns)):
        group = _columns(support, begin, end) // m
        suspects = (group == _columns(support, begin - n, end - n) // m).nonzero().flatten() + begin
        rows = torch.searchsorted(support.offsets, suspects, right=True)
        if bool((rows == torch.searchsorted(support.offsets, suspects - n, right=True)).any()):
            return False
    return True


def _blocks_whole(support: Support, height: int, width: int) -> bool:
    """Whether columns come in aligned runs of `width`, and the rows of a block agree."""
    counts = support.offsets.diff().reshape(-1, height)
    if bool(((counts != counts[:, :1]) | (counts % width != 0)).any()):
        return False
    step = torch.arange(width, dtype=torch.int32)
    for begin, end in _parts(0, len(support.columns) // width, max(1, CHUNK // width)):
        runs = _columns(support, begin * width, end * width).reshape(-1, width)
        if bool((runs[:, 0] % width != 0).any()) or bool((runs != runs[:, :1] + step).any()):
            return False
    if height == 1:
        return True
    for begin, end in _parts(0, len(support.columns)):
        row = _rows(support, begin, end)
        first = support.offsets[row // height * height] - support.offsets[row]
        first += torch.arange(begin, end)
        if not torch.equal(support.columns[first], support.columns[begin:end]):
            return False
    return True


def _parts(begin: int, end: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    size = CHUNK if size is None else size
    return ((first, min(first + size, end)) for first in range(begin, end, size))


def _columns(support: Support, begin: int, end: int) -> Tensor:
    columns = support.columns[begin:end].int()
    return columns & 0xFFFF if support.columns.dtype == torch.int16 else columns


def _rows(support: Support, begin: int, end: int) -> Tensor:
    """Return the rows of the entries from `begin` to before `end`, of which there is one."""
    ends = torch.tensor([begin, end - 1])
    first, last = (torch.searchsorted(support.offsets, ends, right=True) - 1).tolist()
    counts = support.offsets[first : last + 2].clamp(begin, end).diff()
    return torch.arange(first, last + 1).repeat_interleave(counts, output_size=end - begin)
