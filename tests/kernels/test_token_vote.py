"""TokenSelect's decode step: every implementation keeps and casts the same votes."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import (
    Vote,
    VoteMemory,
    instruction_sets,
    paged_dot,
    rotate,
    soft_votes,
    top_indices,
    vote_step,
)
from gossamer.kernels.backend import Impl
from gossamer.testing import AttentionShape, attention_inputs, rotary_tables

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
CPU = torch.device("cpu")
SINK, K, LOCAL = 3, 20, 9


def memory(starts: list[int], dim: int, *, placed: bool = True, copies: bool = False) -> VoteMemory:
    cosine, sine = rotary_tables(SINK + K + LOCAL, dim)
    place = (cosine[[LOCAL, -1]], sine[[LOCAL, -1]]) if placed else None
    return VoteMemory.empty(
        starts, sink=SINK, k=K, local=LOCAL, device=CPU, place=place, copies=copies
    )


def cast(
    own: VoteMemory, query: Tensor, key: Tensor, *, impl: Impl = "auto", **how: Any
) -> tuple[Tensor, int]:
    return vote_step(Vote(own, **how), query, key, impl=impl)


def towards(shape: AttentionShape, degrees: list[float]) -> Tensor:
    """Queries [B, H, 1, D] whose sequences point at an angle in one plane."""
    generator = torch.Generator().manual_seed(1)
    size = shape.heads * shape.dim
    axes = torch.linalg.qr(torch.randn(size, 2, generator=generator)).Q.T
    angle = torch.tensor(degrees).deg2rad()[:, None]
    return 9 * (angle.cos() * axes[0] + angle.sin() * axes[1]).reshape(
        -1, shape.heads, 1, shape.dim
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from([(1, 1), (2, 6), (1, 4)]),
    st.integers(1, 3),
    st.integers(SINK + K + LOCAL + 4, 300),
    st.sampled_from([2, 8, 40, 64]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_the_step_is_its_formula(impl, heads, batch, k_len, dim, placed, encoded, data):
    shape = AttentionShape(batch, heads[1], heads[0], 1, k_len, dim)
    query, key, _ = attention_inputs(shape)
    room = k_len - SINK - K - LOCAL
    starts = [data.draw(st.integers(0, room - 1)) for _ in range(batch)]
    own = memory(starts, dim, placed=placed)
    angle = torch.randn(data.draw(st.sampled_from([1, batch])), 1, dim // 2)
    undo = (angle.cos(), angle.sin()) if encoded else None
    attends, scored = cast(own, query, key, threshold=0.9, undo=undo, scale=0.3, impl=impl)
    raw = query if undo is None else rotate(query, *(table[:, None] for table in undo))
    voter = raw
    if own.place is not None:
        cosine, sine = own.place
        voter, raw = rotate(raw, cosine[0], sine[0]), rotate(raw, cosine[1], sine[1])
    torch.testing.assert_close(attends, raw, rtol=1e-5, atol=1e-5)
    begin = torch.tensor(starts) + SINK
    scores = paged_dot(voter, key, begin=begin, end=k_len - LOCAL, scale=0.3)
    votes = soft_votes(scores)
    assert scored == sum(k_len - LOCAL - SINK - start for start in starts)
    for b, start in enumerate(starts):
        tokens = own.tokens[b].tolist()
        assert tokens[:SINK] == list(range(start, start + SINK))
        assert tokens[-LOCAL:] == list(range(k_len - LOCAL, k_len))
        voted = tokens[SINK:-LOCAL]
        assert (
            voted == sorted(set(voted)) and start + SINK <= voted[0] <= voted[-1] < tokens[-LOCAL]
        )
        exact = top_indices(votes[b : b + 1], K)[0].long()
        got = votes[b, torch.tensor(voted)].sort().values  # rounding may swap what all but ties
        torch.testing.assert_close(got, votes[b, exact].sort().values, rtol=1e-4, atol=1e-7)


def test_each_sequence_reuses_on_its_own(impl):
    shape = AttentionShape(2, 4, 2, 1, 120, 16)
    key = attention_inputs(shape)[1]
    own = memory([0, 7], 16, placed=False)

    def step(degrees: list[float], k_len: int) -> tuple[list[list[int]], int]:
        _, scored = cast(own, towards(shape, degrees), key[:, :, :k_len], threshold=0.7, impl=impl)
        return own.tokens[:, SINK:-LOCAL].tolist(), scored

    first, scored = step([0, 0], 118)
    assert scored == 2 * (118 - SINK - LOCAL) - 7 and (own.hits, own.asked) == (0, 0)
    second, scored = step([40, 90], 119)
    assert scored == 119 - SINK - LOCAL - 7 and (own.hits, own.asked) == (1, 2)
    assert second[0] == first[0] and second[1] != first[1]
    third, scored = step([80, 50], 120)  # of 40 and 90; but what counts is who voted: 0 and 90
    assert scored == 120 - SINK - LOCAL and (own.hits, own.asked) == (2, 4)
    assert third[0] != first[0] and third[1] == second[1]
    assert own.tokens[:, -LOCAL:].tolist() == [list(range(120 - LOCAL, 120))] * 2


@pytest.mark.parametrize(("threshold", "hits"), [(1.1, 0), (-1.0, 5)])
def test_thresholds_that_always_or_never_hold(impl, threshold, hits):
    shape = AttentionShape(1, 2, 1, 1, 90, 8)
    query, key, _ = attention_inputs(shape)
    own = memory([0], 8)
    for step in range(6):
        cast(own, query * (-1) ** step, key, threshold=threshold, impl=impl)
    assert (own.hits, own.asked) == (hits, 5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_a_query_without_a_direction_votes(impl, value):
    shape = AttentionShape(1, 2, 1, 1, 90, 8)
    query, key, _ = attention_inputs(shape)
    own = memory([0], 8, placed=False)
    cast(own, query, key, threshold=0.5, impl=impl)
    assert cast(own, torch.full_like(query, value), key, threshold=0.5, impl=impl)[1] > 0


def test_a_query_may_lie_apart_in_memory(impl):
    """A strided one used to be copied, and the copy freed before it was read."""
    shape = AttentionShape(2, 6, 2, 1, 150, 40)
    query, key, _ = attention_inputs(shape)
    apart = torch.full((2, 6, 1, 80), torch.nan)
    apart[..., ::2] = query
    own, exact = memory([0, 5], 40), memory([0, 5], 40)
    found = cast(own, apart[..., ::2], key, threshold=0.9, impl=impl)
    expected = cast(exact, query, key, threshold=0.9, impl=impl)
    assert torch.equal(found[0], expected[0]) and torch.equal(own.tokens, exact.tokens)
    assert own.query is not None and own.query.is_contiguous()


@pytest.mark.parametrize("dim", [8, 40, 32, 64, 96, 128, 160])
@pytest.mark.parametrize("heads", [2, 6, 10, 12])  # of two key heads
def test_a_copy_is_scored_in_place_of_the_keys(impl, dim, heads, guarded):
    shape = AttentionShape(2, heads, 2, 1, 150, dim)
    key = attention_inputs(shape)[1]
    own, exact = memory([0, 5], dim, copies=True), memory([0, 5], dim)
    generator = torch.Generator().manual_seed(2)
    for k_len in (100, 101, 130, 150):  # the last one has no room left
        query = 3 * torch.randn(2, heads, 1, dim, generator=generator)
        present = key[:, :, :k_len].clone()
        present[:, :, : own.copied] = torch.nan  # what has been copied is not read again
        present[:, :, k_len - LOCAL :] = torch.nan
        found = cast(own, query, guarded(present), threshold=1.1, impl=impl)
        rounded = key[:, :, :k_len].bfloat16().float()
        expected = cast(exact, query, rounded, threshold=1.1, impl="reference")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(own.tokens, exact.tokens)
        assert own.copied == k_len - LOCAL and own.nbytes == 2 * 2 * own.copied * dim * 2
        copy = own.copy
        assert copy is not None and copy.dtype is torch.bfloat16
        assert torch.equal(copy[:, :, : own.copied].float(), rounded[:, :, : own.copied])
    cast(own, query, torch.full_like(key, torch.nan), threshold=-1.0, impl=impl)  # reuses
    assert own.copied == 150 - LOCAL
    assert exact.nbytes == 0 and exact.copy is None


def test_a_copy_grows_with_its_cache(impl):
    shape = AttentionShape(1, 2, 1, 1, 300, 16)
    query, key, _ = attention_inputs(shape)
    own, exact = memory([0], 16, copies=True), memory([0], 16)
    for k_len in (40, 79, 81, 300):
        cast(own, query, key[:, :, :k_len], threshold=1.1, impl=impl)
        rounded = key[:, :, :k_len].bfloat16().float()
        cast(exact, query, rounded, threshold=1.1, impl="reference")
        assert torch.equal(own.tokens, exact.tokens) and own.copied == k_len - LOCAL


def test_keys_that_are_half_as_wide_already_are_not_copied():
    shape = AttentionShape(1, 2, 1, 1, 90, 8)
    query, key, _ = attention_inputs(shape, dtype=torch.bfloat16)
    own = memory([0], 8, copies=True)
    cast(own, query, key, threshold=0.9)
    assert own.copy is None and own.nbytes == 0


def test_reads_the_candidates_alone_and_nothing_when_it_reuses(isa, guarded):
    shape = AttentionShape(2, 6, 2, 1, 150, 40)
    query, key, _ = attention_inputs(shape)
    own, apart = memory([0, 5], 40), memory([0, 5], 40)
    cast(own, query, key, threshold=0.9)
    poisoned = key.clone()
    poisoned[:, :, -LOCAL:] = torch.nan
    poisoned[0, :, :SINK] = torch.nan
    poisoned[1, :, : 5 + SINK] = torch.nan
    cast(apart, guarded(query), guarded(poisoned), threshold=0.9)
    assert torch.equal(own.tokens, apart.tokens)
    cast(apart, query, torch.full_like(key, torch.nan), threshold=0.9)
    assert torch.equal(own.tokens, apart.tokens) and apart.hits == 2


def test_every_instruction_set_votes_alike(isa):
    shape = AttentionShape(2, 9, 3, 1, 2100, 64)
    query, key, _ = attention_inputs(shape)
    own, exact = memory([0, 700], 64), memory([0, 700], 64)
    found = cast(own, query, key, threshold=0.9, impl="cpu")
    expected = cast(exact, query, key, threshold=0.9, impl="reference")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    same = (own.tokens == exact.tokens).float().mean()
    assert float(same) > 0.9  # rounding may swap neighbours at the edge


def test_other_types_and_other_votes_fall_back():
    shape = AttentionShape(1, 2, 1, 1, 90, 8)
    query, key, _ = attention_inputs(shape, dtype=torch.bfloat16)
    own = memory([0], 8)
    assert cast(own, query, key, threshold=0.9)[0].dtype == torch.bfloat16
    last = VoteMemory.empty([0], sink=SINK, k=K, local=LOCAL, device=CPU)
    places = torch.arange(90.0)[None]
    cast(last, query.float(), key.float(), threshold=0.9, count=lambda _: places)
    assert last.tokens[0, SINK:-LOCAL].tolist() == list(range(90 - K, 90))
    for change in ({"count": soft_votes}, {"query": query, "key": key}):
        given = {"query": query.float(), "key": key.float()} | change
        with pytest.raises(TypeError, match="impl='cpu'"):
            cast(own, **given, threshold=0.9, impl="cpu")


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"query": torch.randn(1, 2, 2, 8)}, ValueError, "one query"),
        (
            {"query": torch.randn(2, 2, 1, 8), "key": torch.randn(2, 1, 90, 8)},
            ValueError,
            "expected 1 sequences",
        ),
        ({"key": torch.randn(1, 1, SINK + K + LOCAL - 1, 8)}, ValueError, "keys or more"),
        ({"undo": rotary_tables(1, 8)}, ValueError, "undo"),
        ({"undo": tuple(torch.ones(1, 1, 4).double() for _ in "cs")}, ValueError, "undo"),
        ({"undo": tuple(torch.ones(2, 1, 4) for _ in "cs")}, ValueError, "undo"),
        ({"scale": 0.0}, ValueError, "scale"),
        ({"impl": "triton"}, ValueError, "impl"),
    ],
)
def test_refuses_what_does_not_fit(change, error, named):
    given = {"query": torch.randn(1, 2, 1, 8), "key": torch.randn(1, 1, 90, 8), "threshold": 0.9}
    own = memory([0], 8)
    before = own.tokens[:, :SINK].clone()
    with pytest.raises(error, match=named):
        cast(own, **(given | change))
    assert own.query is None and torch.equal(own.tokens[:, :SINK], before)
