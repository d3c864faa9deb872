"""The record of a sparse weight: conversions, its columns, and what it refuses."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.kernels import SparsePattern, SparseWeight
from gossamer.testing import random_mask

masks = st.builds(
    lambda rows, columns, density, seed: random_mask((rows, columns), density=density, seed=seed),
    st.integers(0, 30),
    st.integers(0, 30),
    st.floats(0, 1),
    st.integers(0, 99),
)
cases = settings(max_examples=60, deadline=None)


@cases
@given(masks)
def test_a_mask_survives_the_round_trip(mask):
    pattern = SparsePattern.from_mask(mask).validate()
    assert torch.equal(pattern.to_mask(), mask)
    assert pattern.density() == pytest.approx(float(mask.float().mean()) if mask.numel() else 0.0)
    again = SparsePattern.from_places(pattern.places(), pattern.shape)
    assert torch.equal(again.offsets, pattern.offsets)
    assert torch.equal(again.indices, pattern.indices)


@cases
@given(masks)
def test_columns_hold_the_same_entries(mask):
    pattern = SparsePattern.from_mask(mask)
    turned = SparsePattern.from_mask(mask.T)
    columns = pattern.columns
    assert torch.equal(columns.offsets, turned.offsets)
    assert torch.equal(columns.indices, turned.indices)
    weight = SparseWeight(torch.rand(pattern.nnz), pattern)
    assert torch.equal(weight.to_dense().T[mask.T], weight.values[columns.order])


@cases
@given(masks, st.integers(0, 99))
def test_find_says_where_each_entry_was(mask, seed):
    other = random_mask(tuple(mask.shape), density=0.5, seed=seed)
    old, new = SparsePattern.from_mask(mask), SparsePattern.from_mask(other)
    places = old.places().tolist()
    expected = [places.index(p) if p in places else -1 for p in new.places().tolist()]
    assert old.find(new).tolist() == expected


def test_random_patterns_hold_the_density_exactly_and_are_seeded():
    draws = [
        SparsePattern.random(30, 41, density=0.13, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert all(draw.validate().nnz == round(0.13 * 30 * 41) for draw in draws)
    assert torch.equal(draws[0].indices, draws[1].indices)
    assert not torch.equal(draws[0].to_mask(), draws[2].to_mask())


def test_copies_keep_everything():
    weight = SparseWeight.from_dense(torch.eye(3))
    for twin in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(twin.to_dense(), torch.eye(3))
        assert twin.values is not weight.values


VALID = torch.tensor([0, 1, 2]), torch.tensor([0, 2], dtype=torch.int32), (2, 3)


@pytest.mark.parametrize(
    ("offsets", "indices", "shape", "error", "message"),
    [
        (VALID[0].int(), *VALID[1:], TypeError, "offsets to be torch.int64, got torch.int32"),
        (VALID[0], VALID[1].long(), VALID[2], TypeError, "indices to be torch.int32"),
        (VALID[0][None], *VALID[1:], ValueError, r"offsets to be a vector, got \[1, 3\]"),
        (*VALID[:2], (3, 3), ValueError, "4 offsets for 3 rows, got 3"),
        (*VALID[:2], (2, -3), ValueError, r"two sizes in 0..2147483647, got \(2, -3\)"),
        (VALID[0], VALID[1].to("meta"), VALID[2], ValueError, "one device"),
        (*VALID[:2], (2, 2**31), ValueError, r"two sizes in 0..2147483647, got \(2, 2147483648\)"),
        (VALID[0], VALID[1][:1].expand(2**31), VALID[2], ValueError, "at most 2147483647 entries"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(offsets, indices, shape, error, message):
    SparsePattern(*VALID)
    with pytest.raises(error, match=message):
        SparsePattern(offsets, indices, shape)


@pytest.mark.parametrize(
    ("offsets", "indices", "message"),
    [
        ([0, 2, 1], [0, 2], "rising from 0 to 2, got 0 to 1"),
        ([0, 3, 2], [0, 2], "rising from 0 to 2, got 0 to 2"),
        ([1, 1, 2], [0, 2], "got 1 to 2"),
        ([0, 1, 2], [0, 3], r"indices in \[0, 3\), got 0..3"),
        ([0, 1, 2], [-1, 2], r"got -1..2"),
        ([0, 2, 2], [2, 0], "ascending"),
        ([0, 2, 2], [1, 1], "ascending"),
    ],
)
def test_validate_looks_at_every_index(offsets, indices, message):
    pattern = SparsePattern(torch.tensor(offsets), torch.tensor(indices).int(), (2, 3))
    with pytest.raises(ValueError, match=message):
        pattern.validate()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_broken_csr_matrix_is_refused():
    for wrong in (7, -1, 2**32 + 1, -(2**32) + 1):
        offsets, indices = torch.tensor([0, 1, 2]), torch.tensor([0, wrong])
        csr = torch.sparse_csr_tensor(
            offsets, indices, torch.ones(2), (2, 3), check_invariants=False
        )
        with pytest.raises(ValueError, match=r"indices in \[0, 3\)"):
            SparsePattern.from_csr(csr)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SparsePattern.from_mask(torch.ones(2, 2)), TypeError, "bool, got torch.float32"),
        (lambda: SparsePattern.from_mask(torch.ones(2) > 0), ValueError, r"got \[2\]"),
        (lambda: SparsePattern.random(2, 2, density=1.5), ValueError, r"density in \[0, 1\]"),
        (lambda: SparsePattern.random(2, 2, density=float("nan")), ValueError, "got nan"),
        (lambda: SparseWeight(torch.ones(2).half(), SparsePattern(*VALID)), TypeError, "float16"),
        (lambda: SparseWeight(torch.ones(3), SparsePattern(*VALID)), ValueError, "2 values"),
        (
            lambda: SparseWeight(torch.ones(2, device="meta"), SparsePattern(*VALID)),
            ValueError,
            "one device",
        ),
        (
            lambda: SparseWeight.from_dense(torch.ones(2, 3), torch.ones(3, 2) > 0),
            ValueError,
            r"mask of shape \[2, 3\], got \[3, 2\]",
        ),
        (
            lambda: SparsePattern(*VALID).find(SparsePattern.from_mask(torch.ones(3, 2) > 0)),
            ValueError,
            r"shape \(2, 3\), got \(3, 2\)",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
