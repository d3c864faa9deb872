"""Balanced sets against the definition, group by group, in plain Python."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.kernels import balanced_sets, instruction_sets
from gossamer.patterns import TokenSets

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
cases = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def expected(groups: list[int], keys: list[int], size: int) -> tuple[list, list]:
    """The slots, one group after the other."""
    indices, repeated = [], []
    for group in sorted(set(groups)):
        ranked = sorted((keys[token], token) for token, own in enumerate(groups) if own == group)
        n, sets = len(ranked), -(-len(ranked) // size)
        for j in range(sets):
            ranks = [(j * size + k) * n // (sets * size) for k in range(size)]
            indices.append([ranked[rank][1] for rank in ranks])
            repeated.append([k > 0 and ranks[k] == ranks[k - 1] for k in range(size)])
    return indices, repeated


@cases
@given(
    st.integers(1, 120),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 5, 7, 24, 36, 200]),
    st.integers(0, 99),
)
def test_any_groups(impl, count, most, size, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(most, (count,), generator=generator) * 1_000_003
    keys = torch.randint(3 * count, (2, count), generator=generator)
    found = balanced_sets(groups, keys, size=size, impl=impl)
    for sets, order in zip(found, keys, strict=True):
        indices, repeated = expected(groups.tolist(), order.tolist(), size)
        assert sets.indices.tolist() == indices and sets.repeated.tolist() == repeated
        sets.validate()  # every token in one slot, repeats next to each other


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_a_set_never_begins_with_a_repeat(count, size):
    """In integers, also where the products do not fit float32: what the masks rely on."""
    sets = -(-count // size)
    for j in range(max(1, sets - 3), sets):
        place = j * size
        assert place * count // (sets * size) > (place - 1) * count // (sets * size)


def test_numbers_beyond_32_bits_sort(impl):
    groups = torch.tensor([2**40, 5, 2**40, 5])
    keys = torch.tensor([[2**20, 3, 0, 2**21]])
    (sets,) = balanced_sets(groups, keys, size=2, impl=impl)
    assert sets.indices.tolist() == [[1, 3], [2, 0]]


def test_nothing_around_the_tensors_is_touched(isa, guarded):
    from gossamer.kernels import backend

    groups = torch.randint(7, (50,), generator=torch.Generator().manual_seed(0))
    keys = torch.arange(100).reshape(2, 50)
    wanted = balanced_sets(groups, keys, size=4, impl="reference")
    groups, keys = guarded(groups), guarded(keys)
    count = backend.launch("balanced_sets", groups, keys, 100, 4, None, None)
    assert count == len(wanted[0].indices)
    indices = guarded(torch.zeros(2, count, 4, dtype=torch.int64))
    repeated = guarded(torch.zeros(2, count, 4, dtype=torch.bool))
    backend.launch("balanced_sets", groups, keys, 100, 4, indices, repeated)
    for row, sets in enumerate(wanted):
        assert torch.equal(indices[row], sets.indices)
        assert torch.equal(repeated[row], sets.repeated)


def test_no_tokens_make_no_sets(impl):
    nothing = torch.zeros(0, dtype=torch.int64)
    (sets,) = balanced_sets(nothing, nothing[None], size=3, impl=impl)
    assert sets.indices.shape == (0, 3)


@pytest.mark.parametrize("name", IMPLS)
def test_operator_is_registered_for_tracing(name):
    groups, keys = torch.tensor([0, 0, 1]), torch.tensor([[0, 1, 2]])
    torch.library.opcheck(
        torch.ops.gossamer.balanced_sets.default,
        (groups, keys, 2, name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


GOOD: dict[str, Any] = {"groups": torch.zeros(2).long(), "keys": torch.zeros(1, 2).long()}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"keys": torch.zeros(2).long()}, ValueError, r"keys \[orders, N\], got \[2\] and \[2\]"),
    ({"keys": torch.zeros(1, 3).long()}, ValueError, r"got \[2\] and \[1, 3\]"),
    ({"groups": torch.zeros(2).int()}, TypeError, "groups to be int64, got torch.int32"),
    ({"keys": torch.zeros(1, 2)}, TypeError, "keys to be int64, got torch.float32"),
    ({"size": 0}, ValueError, "size >= 1, got 0"),
    ({"groups": torch.tensor([0, -1])}, ValueError, r"groups in -1\.\.0"),
    ({"groups": torch.tensor([0, 2**62])}, ValueError, r"at most 2\*\*62"),
    ({"impl": "triton"}, ValueError, "auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    good = GOOD | {"size": 2}
    assert isinstance(balanced_sets(**good)[0], TokenSets)
    with pytest.raises(error, match=message):
        balanced_sets(**(good | changes))
