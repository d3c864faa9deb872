"""The packed record: exact both ways, honest about patterns, cheap to give new values."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import PackedWeight, pack
from gossamer.kernels.support import ROWS
from gossamer.patterns import NM, Block, Channel, Unstructured, WeightPattern
from gossamer.testing import random_mask

DTYPES = [torch.float32, torch.bfloat16]


def sparse(shape: tuple[int, int], density: float, seed: int = 0, group: int = 1) -> Tensor:
    lines = random_mask((-(-shape[0] // group), shape[1]), density=density, seed=seed)
    mask = lines.repeat_interleave(group, 0)[: shape[0]]
    generator = torch.Generator().manual_seed(seed)
    return torch.where(mask, torch.randn(shape, generator=generator), 0.0)


def compressed(weight: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return weight.to_sparse_csr() if block is None else weight.to_sparse_bsr(block)


def rebuilt(weight: PackedWeight) -> Tensor:
    """The dense weight that the panels describe, walked line by line."""
    panels, (rows, columns) = weight.support.panels, weight.shape
    dense = torch.zeros(rows, columns)
    across = max(1, -(-columns // panels.width))
    for cell in range(len(panels.lines)):
        unit = int(panels.starts[cell])
        for line, count in zip(panels.lines[cell], panels.counts[cell], strict=True):
            row = cell // across * ROWS + int(line) * panels.group
            for _ in range(int(count)):
                column = cell % across * panels.width + int(panels.columns[unit])
                height = min(panels.group, rows - row)
                dense[row : row + height, column] += weight.panel_values[unit, :height]
                unit += 1
        assert unit == int(panels.starts[cell + 1])
    return dense


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(DTYPES),
)
def test_every_layout_holds_the_same_weight(rows, columns, density, group, dtype):
    weight = sparse((rows, columns), density, group=group).to(dtype)
    packed = pack(weight)
    assert packed.shape == (rows, columns) and packed.dtype == dtype
    assert torch.equal(packed.to_dense(), weight)
    assert torch.equal(packed.to_csr().to_dense(), weight)
    assert torch.equal(packed.transposed().to_dense(), weight.mT)
    assert torch.equal(packed.transposed().transposed().to_dense(), weight)
    assert torch.equal(rebuilt(packed), weight.float())
    assert packed.density == pytest.approx(
        float((weight != 0).float().mean()) if len(weight) and columns else 0
    )
    words = packed.support.bits
    bit = (words[:, :, None] >> torch.arange(64) & 1).bool().flatten(1)[:, :columns]
    assert torch.equal(bit, weight != 0)


@pytest.mark.parametrize(("group", "found"), [(8, 8), (4, 4), (2, 2), (1, 1), (16, 8)])
def test_rows_that_share_columns_are_found(group, found):
    weight = sparse((96, 300), 0.1, group=group)
    assert pack(weight).support.panels.group == found
    weight[5] = 0.0  # still more than nine tenths full
    assert pack(weight).support.panels.group == found


def test_sparse_tensors_keep_their_explicit_zeros():
    weight = sparse((40, 60), 0.2)
    csr = compressed(weight)
    csr.values()[:7] = 0.0
    packed = pack(csr)
    assert len(packed.values) == len(csr.values())
    again = packed.to_csr()
    assert torch.equal(again.crow_indices(), csr.crow_indices())
    assert torch.equal(again.col_indices(), csr.col_indices())
    assert torch.equal(again.values(), csr.values())
    bsr = compressed(weight, (4, 5))
    assert torch.equal(pack(bsr).to_dense(), weight)
    assert len(pack(bsr).values) == bsr.values().numel()


def test_wide_weights_have_wide_indices():
    weight = torch.zeros(3, 70000)
    weight[0, 65535], weight[1, 65536], weight[2, 69999] = 1.0, 2.0, 3.0
    packed = pack(weight)
    assert packed.support.columns.dtype == torch.int32
    assert torch.equal(packed.to_dense(), weight)
    narrow = pack(weight[:, :65536])
    assert narrow.support.columns.dtype == torch.int16
    assert torch.equal(narrow.to_dense(), weight[:, :65536])


@pytest.mark.parametrize("pattern", [Block(4, 1), Block(2, 3), Channel(), Channel(1)])
def test_units_are_stored_whole(pattern: WeightPattern):
    weight = torch.zeros(8, 12)
    weight[5, 7] = 2.0
    packed = pack(weight, pattern)
    units = pattern.units(weight) != 0
    assert torch.equal(packed.support.mask(), pattern.to_mask(units, (8, 12)))
    assert torch.equal(packed.to_dense(), weight) and packed.pattern == pattern
    assert torch.equal(pack(packed.to_csr(), pattern).to_dense(), weight)


def test_new_values_share_the_layouts():
    packed = pack(sparse((50, 40), 0.3))
    panels, values = packed.support.panels, torch.arange(float(len(packed.values)))
    changed = packed.with_values(values)
    assert changed.support.panels is panels
    expected = packed.to_dense()
    expected[expected != 0] = values
    assert torch.equal(changed.to_dense(), expected)
    assert torch.equal(changed.transposed().to_dense(), expected.mT)
    assert changed.transposed().support is packed.transposed().support


def test_rounding_to_bfloat16_keeps_the_support():
    weight = torch.tensor([[1.00390625, 0.0, 1e-42]])
    packed = pack(weight, dtype=torch.bfloat16)
    assert len(packed.values) == 2
    assert torch.equal(packed.to_dense(), weight.bfloat16())
    assert torch.equal(pack(weight.half(), dtype=torch.float32).to_dense(), weight.half().float())


def test_copies_and_pickles():
    packed = pack(sparse((30, 20), 0.4), Unstructured())
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), packed.to("cpu")):
        assert torch.equal(twin.to_dense(), packed.to_dense()) and twin.pattern == packed.pattern


def broken(**changes: Tensor) -> Tensor:
    parts = {
        "crow_indices": torch.tensor([0, 1, 2]),
        "col_indices": torch.tensor([0, 1]),
        "values": torch.ones(2),
    } | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(*parts.values(), size=(2, 3), check_invariants=False)


BAD_INPUT = [
    ((torch.zeros(4),), ValueError, r"\[M, K\], got \[4\]"),
    ((torch.zeros(4, 3, 1, 1),), ValueError, r"try weight.flatten\(1\)"),
    ((torch.zeros(1, 1).expand(2**31, 1),), ValueError, r"up to 2147483647, got \[2147483648, 1\]"),
    ((torch.zeros(1, 1).expand(1, 2**31),), ValueError, r"up to 2147483647, got \[1, 2147483648\]"),
    ((torch.zeros(4, 3).int(),), TypeError, r"floats, got torch.int32"),
    (([[1.0]],), TypeError, r"tensor of floats, got list"),
    ((torch.zeros(4, 3).double(),), TypeError, r"float32 or bfloat16, got torch.float64"),
    ((torch.zeros(4, 3), None, torch.float16), TypeError, r"got torch.float16"),
    ((torch.zeros(4, 3).to_sparse(),), TypeError, r"got torch.sparse_coo; try"),
    ((torch.ones(2, 4), NM(2, 4)), ValueError, r"at most 2 of 4 weights, got 4"),
    ((torch.ones(2, 6), NM(2, 4)), ValueError, r"divides, got \(2, 6\)"),
    ((torch.ones(3, 4), Block(2, 1)), ValueError, r"Block\(rows=2, columns=1\) divides"),
    ((broken(crow_indices=torch.tensor([0, 2, 1])),), ValueError, r"rise from 0 to 2"),
    ((broken(crow_indices=torch.tensor([0, 1, 3])),), ValueError, r"rise from 0 to 2"),
    ((broken(col_indices=torch.tensor([0, 3])),), ValueError, r"indices in 0..2"),
    ((broken(col_indices=torch.tensor([-1, 2])),), ValueError, r"indices in 0..2"),
    (
        (broken(crow_indices=torch.tensor([0, 2, 2]), col_indices=torch.tensor([1, 1])),),
        ValueError,
        r"strictly ascending columns",
    ),
    ((broken(), Channel()), ValueError, r"whole units of Channel\(dim=0\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pack(*arguments)


def test_a_sparse_tensor_of_any_size_is_packed_without_its_zeros():
    size = 2**31 - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        csr = torch.sparse_csr_tensor(
            torch.tensor([0, 0, 2]), torch.tensor([5, size - 1]), torch.ones(2), (2, size)
        )
    packed = pack(csr)
    assert packed.support.column_indices.tolist() == [5, size - 1]
    assert packed.support.row_indices.tolist() == [1, 1]


def test_bad_values_are_named():
    packed = pack(torch.eye(3))
    for values in (torch.ones(2), torch.ones(3).double()):
        with pytest.raises(ValueError, match=r"expected values like \[3\] torch.float32 on cpu"):
            packed.with_values(values)
