"""Tree search: its rules on any input, and exact agreement where products are exact."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.kernels import TreeSearch, instruction_set, instruction_sets, tree_search
from gossamer.kernels.tree_search import REPRESENTATIVES
from gossamer.patterns import TokenPattern
from gossamer.testing import (
    LAYOUTS,
    AttentionShape,
    attention_inputs,
    check_key_lists,
)
from gossamer.testing import tree_search as tree_oracle
from gossamer.testing.inputs import Values

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
SHAPE = AttentionShape(2, 6, 2, 100, 333, 40)
cases = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inputs(shape: AttentionShape, dtype=torch.float32, values: Values = "integers", seed=0):
    return attention_inputs(shape, dtype=dtype, values=values, seed=seed)[:2]


def equal(found: TreeSearch, expected: TreeSearch) -> bool:
    return torch.equal(found.pattern.indices, expected.pattern.indices) and torch.equal(
        found.scored, expected.scored
    )


@st.composite
def problems(draw):
    kv_heads, ratio = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3), (1, 8)]))
    k_len = draw(st.integers(1, 300))
    q_len = draw(st.just(1) | st.integers(1, min(k_len, 100)))
    dim = draw(st.sampled_from([1, 8, 33, 64, 80]))
    shape = AttentionShape(draw(st.integers(1, 2)), kv_heads * ratio, kv_heads, q_len, k_len, dim)
    block_k = draw(st.sampled_from([1, 2, 4, 8]))
    start = st.lists(st.integers(0, k_len), min_size=shape.batch, max_size=shape.batch)
    options = {
        "tokens": block_k * draw(st.integers(1, 12)),
        "block_q": draw(st.sampled_from([1, 7, 32, 200])),
        "block_k": block_k,
        "window": draw(st.integers(1, 50)),
        "sink": draw(st.integers(0, 6)),
        "query_stride": draw(st.sampled_from([1, 2, 3, 9])),
        "shared_by_group": draw(st.booleans()),
        "channels": draw(st.none() | st.integers(1, dim)),
        "key_start": draw(st.none() | start.map(torch.tensor)),
    }
    return shape, options, draw(st.integers(0, 999))


@cases
@given(problems(), st.sampled_from(["first", "mid", "random"]), st.sampled_from(DTYPES))
def test_any_problem(impl, problem, representative, dtype):
    """On integers every product is exact, so every implementation selects the same keys."""
    shape, options, seed = problem
    query, key = inputs(shape, dtype, seed=seed)
    options = options | {"representative": representative}
    found = tree_search(query, key, **options, seed=seed, impl=impl)
    check_key_lists(
        found.pattern,
        shape.q_len,
        window=options["window"],
        sink=options["sink"],
        key_start=options["key_start"],
    )
    if representative == "random":
        assert equal(found, tree_search(query, key, **options, seed=seed, impl="reference"))
        return
    expected = tree_oracle(query, key, **options)
    assert torch.equal(found.pattern.to_mask(), expected.selected)
    assert torch.equal(found.scored, expected.scored)


@pytest.mark.parametrize("representative", ["first", "mid", "random"])
@pytest.mark.parametrize("query_stride", [1, 2, 5])
@pytest.mark.parametrize("channels", [None, 7])
@pytest.mark.parametrize("shared_by_group", [False, True])
@pytest.mark.parametrize("block_k", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_selects_what_the_reference_selects(
    representative, query_stride, channels, shared_by_group, block_k, dtype
):
    query, key = inputs(AttentionShape(2, 4, 2, 100, 401, 40), dtype)
    options = {
        "tokens": 24,
        "block_q": 64,
        "window": 37,
        "representative": representative,
        "query_stride": query_stride,
        "channels": channels,
        "shared_by_group": shared_by_group,
        "block_k": block_k,
        "key_start": torch.tensor([0, 101]),
        "seed": 2**63 - 1,
    }
    expected = tree_search(query, key, **options, impl="reference")
    for name in instruction_sets():
        with instruction_set(name):
            assert equal(tree_search(query, key, **options, impl="cpu"), expected), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_scores_select_what_float64_selects(impl, dtype):
    """Continuous scores have no ties; float32 sums order them as float64 does."""
    query, key = inputs(SHAPE, dtype, values="normal")
    found = tree_search(query, key, tokens=32, window=20, impl=impl)
    expected = tree_oracle(query, key, tokens=32, window=20)
    assert torch.equal(found.pattern.to_mask(), expected.selected)


def test_scores_at_most_two_nodes_a_round(impl):
    """scored <= 2 K ceil(log2(B / K)), with equality when B / K is a power of two."""
    for blocks in (1, 8, 9, 16, 63, 64, 65, 128):
        shape = AttentionShape(1, 1, 1, 1, 2 * blocks + 1, 8)
        query, key = inputs(shape)
        options: dict[str, Any] = {"tokens": 16, "block_q": 1, "window": 1, "sink": 0}
        scored = int(tree_search(query, key, **options, impl=impl).scored)
        rounds = 0
        while 8 << rounds < blocks:
            rounds += 1
        assert scored <= 2 * 8 * rounds
        if blocks in (8, 16, 64, 128):
            assert scored == 2 * 8 * rounds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("representative", ["first", "mid"])
def test_reads_no_key_but_those_it_scores(impl, dtype, representative):
    """NaN in every key that no round scores, and in another sequence's keys."""
    shape = AttentionShape(2, 4, 2, 16, 600, 33)
    options: dict[str, Any] = {
        "tokens": 16,
        "block_q": 16,
        "window": 40,
        "representative": representative,
    }
    query, key = inputs(shape, dtype)
    expected = tree_search(query, key, **options, impl=impl)
    read = tree_oracle(query, key, **options).read
    assert 0.1 < read.float().mean() < 0.6
    poisoned = torch.where(read[..., None], key, torch.nan)
    assert equal(tree_search(query, poisoned, **options, impl=impl), expected)
    read[1] = False
    poisoned = torch.where(read[..., None], key, torch.nan)
    found = tree_search(query, poisoned, **options, impl=impl)
    assert torch.equal(found.pattern.indices[0], expected.pattern.indices[0])


def test_queries_do_not_see_the_future(impl):
    """The first block of queries selects alike whatever follows its keys."""
    query, key = inputs(SHAPE)
    expected = tree_search(query, key, tokens=16, block_q=20, window=8, impl=impl)
    end = 20 + 333 - 100
    key[:, :, end:] = torch.nan
    query[:, :, 20:] = torch.nan
    found = tree_search(query, key, tokens=16, block_q=20, window=8, impl=impl)
    assert torch.equal(found.pattern.indices[:, :, 0], expected.pattern.indices[:, :, 0])


def test_enough_tokens_select_everything_unscored(impl):
    query, key = inputs(SHAPE)
    found = tree_search(query, key, tokens=2**40, block_q=2**40, window=1, impl=impl)
    assert not found.scored.any()
    assert found.pattern.indices[1, 5, 0].tolist() == list(range(333))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_select_the_same(impl, dtype, layout):
    query, key = inputs(SHAPE, dtype)
    expected = tree_search(query, key, tokens=16, window=8, impl=impl)
    view = LAYOUTS[layout]
    assert equal(tree_search(view(query), view(key), tokens=16, window=8, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_and_thread_counts_agree(isa, dtype):
    query, key = inputs(SHAPE, dtype, values="normal")
    expected = tree_search(query, key, tokens=16, window=8, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert equal(tree_search(query, key, tokens=16, window=8, impl="cpu"), expected)


@pytest.mark.parametrize("representative", REPRESENTATIVES)
def test_a_sequence_selects_the_same_wherever_it_sits(impl, representative):
    """Alone or among others, without its padding, or without the queries before a chunk."""
    query, key = inputs(SHAPE, values="normal")
    start = torch.tensor([0, 50])
    options: dict[str, Any] = {
        "tokens": 16,
        "window": 8,
        "representative": representative,
        "impl": impl,
    }
    together = tree_search(query, key, key_start=start, **options)
    assert bool((together.scored > 0).all())
    for b in range(2):
        one = slice(b, b + 1)
        expected = together.pattern.to_mask()[one]
        alone = tree_search(query[one], key[one], key_start=start[one], **options)
        assert torch.equal(alone.pattern.to_mask(), expected)
        real = tree_search(query[one], key[one, :, int(start[b]) :], **options)
        assert torch.equal(real.pattern.to_mask(), expected[..., int(start[b]) :])
        chunk = tree_search(query[one, :, 64:], key[one], key_start=start[one], **options)
        assert torch.equal(chunk.pattern.to_mask(), expected[:, :, 2:])


def test_seeds_draw_other_representatives(impl):
    query, key = inputs(SHAPE, values="normal")
    drawn = [
        tree_search(query, key, tokens=8, window=8, representative="random", seed=seed, impl=impl)
        for seed in (0, 0, 1)
    ]
    assert equal(drawn[0], drawn[1]) and not equal(drawn[0], drawn[2])


@pytest.mark.parametrize("sizes", [(1, 0, 7), (1, 0, 0), (0, 5, 5)])
def test_empty_inputs_find_nothing(impl, sizes):
    batch, q_len, k_len = sizes
    query, key = inputs(AttentionShape(batch, 4, 2, q_len, k_len, 8))
    found = tree_search(query, key, tokens=2, impl=impl)
    assert found.pattern.indices.numel() == 0 and found.scored.numel() == 0


@pytest.mark.parametrize("impl_name", IMPLS)
def test_operator_is_registered_for_tracing(impl_name):
    query, key = inputs(AttentionShape(1, 4, 2, 40, 90, 8))
    options = (4, 4, 16, 2, 20, 3, 2, 1, 8, 0, torch.tensor([5]), impl_name)
    torch.library.opcheck(
        torch.ops.gossamer.tree_search.default,
        (query, key, *options),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_the_result_is_a_token_pattern():
    query, key = inputs(SHAPE)
    found = tree_search(query, key, tokens=16, block_q=64, window=8, shared_by_group=True)
    assert isinstance(found.pattern, TokenPattern)
    assert found.pattern.shape == (2, 2, 2, 333) and found.pattern.group == 64
    assert found.scored.shape == (2, 2, 2)


GOOD: dict[str, Any] = {"query": inputs(SHAPE)[0], "key": inputs(SHAPE)[1], "tokens": 16}
BAD_INPUT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "key without a batch": ({"key": torch.zeros(2, 333, 40)}, ValueError, r"key to be \[batch"),
    "integer query": ({"query": torch.zeros(2, 6, 9, 40).int()}, TypeError, r"query .*int32"),
    "mixed dtypes": ({"key": torch.zeros(2, 2, 333, 40).bfloat16()}, TypeError, r"one dtype"),
    "mixed devices": (
        {"key": torch.zeros(2, 2, 333, 40, device="meta")},
        ValueError,
        r"key on meta",
    ),
    "heads that do not share": (
        {"query": torch.zeros(2, 5, 9, 40)},
        ValueError,
        r"heads .*got 5 and 2",
    ),
    "more queries than keys": (
        {"query": torch.zeros(2, 6, 334, 40)},
        ValueError,
        r"q_len <= k_len.*334 > 333",
    ),
    "a gradient": (
        {"query": torch.zeros(2, 6, 9, 40, requires_grad=True)},
        ValueError,
        r"query requires a gradient",
    ),
    "no queries a block": ({"block_q": 0}, ValueError, r"block_q >= 1 .*got 0 and 2"),
    "no keys a block": ({"block_k": 0}, ValueError, r"block_k .*got 32 and 0"),
    "block_k of 3": ({"block_k": 3}, ValueError, r"block_k to divide 64, got 32 and 3"),
    "no tokens": ({"tokens": 0}, ValueError, r"tokens to be a multiple of block_k 2, got 0"),
    "odd tokens": ({"tokens": 17}, ValueError, r"tokens .* got 17"),
    "negative tokens": ({"tokens": -2}, ValueError, r"tokens .* got -2"),
    "no window": ({"window": 0}, ValueError, r"window >= 1.*got 0, 4 and 2"),
    "negative sink": ({"sink": -1}, ValueError, r"sink >= 0 .*got 128, -1 and 2"),
    "no stride": ({"query_stride": 0}, ValueError, r"query_stride >= 1, got 128, 4 and 0"),
    "unknown representative": (
        {"representative": "last"},
        ValueError,
        r"representative to be one of first, mid, random, got 'last'",
    ),
    "no channels": ({"channels": 0}, ValueError, r"channels in 1..40, got 0"),
    "too many channels": ({"channels": 41}, ValueError, r"channels in 1..40, got 41"),
    "negative seed": ({"seed": -1}, ValueError, r"seed in 0..2\*\*63 - 1, got -1"),
    "key_start below 0": (
        {"key_start": torch.tensor([-1, 0])},
        ValueError,
        r"key_start in 0..333, got \[-1, 0\]",
    ),
    "key_start of another batch": (
        {"key_start": torch.tensor([0])},
        ValueError,
        r"key_start to be integer \[2\]",
    ),
    "unknown impl": (
        {"impl": "gpu"},
        ValueError,
        r"impl to be one of auto, reference, cpu, triton, got 'gpu'",
    ),
}


@pytest.mark.parametrize("row", BAD_INPUT)
def test_bad_input_is_named(row):
    changes, error, message = BAD_INPUT[row]
    tree_search(**GOOD)
    with pytest.raises(error, match=message):
        tree_search(**(GOOD | changes))
