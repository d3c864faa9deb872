"""The check of packed weights agrees with `pack`, which builds the dense mask, on any support."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.kernels import PackedWeight, pack, packed_checks
from gossamer.kernels.packed_checks import entries, packed_problem
from gossamer.kernels.support import Support
from gossamer.patterns import NM, Block, Channel, Unstructured, WeightPattern

PATTERNS = [
    Unstructured(),
    NM(1, 2),
    NM(2, 4),
    NM(3, 4),
    Block(1, 2),
    Block(2, 1),
    Block(2, 2),
    Block(4, 4),
    Channel(0),
    Channel(1),
    Channel(-1),
    Channel(-2),
]


def masks(pattern: WeightPattern, seed: int, rows: int, columns: int, flips: int) -> torch.Tensor:
    """Return a mask that has the pattern, or misses it by a few places."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator)
    if isinstance(pattern, NM):
        groups = scores.reshape(rows, columns // pattern.m, pattern.m)
        mask = (groups.argsort(-1).argsort(-1) < pattern.n).reshape(rows, columns)
    else:
        units = pattern.units(scores)
        mask = pattern.to_mask(units < units.median(), (rows, columns))
    places = torch.randint(0, rows * columns, (flips,), generator=generator)
    mask.view(-1)[places] ^= True
    return mask


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.integers(0, 2**32),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([4, 8, 16]),
    st.integers(0, 2),
    st.sampled_from([1, 3, 7, 1 << 18]),
)
def test_as_pack_decides(pattern, seed, rows, columns, flips, chunk):
    mask = masks(pattern, seed, rows, columns, flips)
    weight = pack(mask.float())
    claimed = PackedWeight(weight.values, weight.support, pattern)
    try:
        pack(weight.to_csr(), pattern)
        expected = True
    except ValueError:
        expected = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_checks, "CHUNK", chunk)
        assert (packed_problem(claimed) is None) == expected


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_numbers_are_judged(data):
    rows, columns, nnz = (data.draw(st.integers(0, 4)) for _ in range(3))
    number = st.integers(-2, 6)
    offsets = torch.tensor(data.draw(st.lists(number, min_size=rows + 1, max_size=rows + 1)))
    indices = data.draw(st.lists(number, min_size=nnz, max_size=nnz))
    support = Support(offsets, torch.tensor(indices, dtype=torch.int16), (rows, columns))
    found = packed_problem(PackedWeight(torch.ones(nnz), support, Unstructured()))
    steps = offsets.tolist()
    valid = steps[0] == 0 and steps[-1] == nnz and steps == sorted(steps)
    if valid:
        parts = [indices[a:b] for a, b in itertools.pairwise(steps)]
        valid = all(part == sorted(set(part)) for part in parts)
        valid &= all(0 <= index < columns for index in indices)
    assert (found is None) == valid


def test_entries_are_those_of_the_support():
    support = pack((torch.rand(9, 70, generator=torch.Generator().manual_seed(0)) < 0.2).float())
    support = support.support
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_checks, "CHUNK", 5)
        row, column = (torch.cat(parts) for parts in zip(*entries(support), strict=True))
    assert torch.equal(row, support.row_indices)
    assert torch.equal(column, support.column_indices.long())


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (3, 4)])
@pytest.mark.parametrize("pattern", [Unstructured(), Channel(0), Channel(1), Block(1, 1), NM(1, 1)])
def test_empty_weights(shape, pattern):
    empty = pack(torch.zeros(shape))
    assert packed_problem(PackedWeight(empty.values, empty.support, pattern)) is None
