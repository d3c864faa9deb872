"""Stripe search: exact agreement with brute force where products are exact."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import instruction_sets, stripe_search
from gossamer.patterns import StripePattern
from gossamer.testing import LAYOUTS, AttentionShape, attention_inputs

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
SHAPE = AttentionShape(2, 6, 2, 5, 333, 40)  # five pooled rows
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def problem(
    shape: AttentionShape, step: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """Arguments whose products are exact: integers."""
    pooled, key, _ = attention_inputs(shape, dtype=dtype, values="integers", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    groups = -(-shape.q_len // step)
    bounds = torch.randint(0, shape.k_len + 1, (2, shape.batch, groups), generator=generator)
    threshold = torch.randint(0, 20, (shape.batch, shape.heads, shape.q_len), generator=generator)
    return {
        "pooled": pooled,
        "key": key,
        "threshold": threshold.float(),
        "step": step,
        "group": 16,
        "begin": bounds[0] // 2,
        "end": bounds[1],
    }


def brute_force(
    pooled: Tensor, key: Tensor, threshold: Tensor, step: int, begin: Tensor, end: Tensor,
    list_heads: int | None = None, **rest: Any
) -> Tensor:  # fmt: skip
    """Which keys to keep, bool [B, lists, groups, k_len], one group at a time."""
    batch, heads = pooled.shape[:2]
    lists = list_heads or heads
    shared = key.double().repeat_interleave(heads // key.shape[1], 1)
    hits = pooled.double() @ shared.mT >= threshold[..., None].double()
    kept = torch.zeros(batch, lists, begin.shape[1], key.shape[2], dtype=torch.bool)
    place = torch.arange(key.shape[2])
    for b in range(batch):
        for h in range(heads):
            for g in range(begin.shape[1]):
                searched = (place >= begin[b, g]) & (place < end[b, g])
                found = hits[b, h, g * step : (g + 1) * step].any(0) & searched
                kept[b, h * lists // heads, g] |= found
    return kept


def check(found: StripePattern, expected: Tensor) -> None:
    exact = StripePattern.from_mask(expected, group=found.group)
    assert found.shape == exact.shape
    assert torch.equal(found.offsets, exact.offsets) and torch.equal(found.indices, exact.indices)
    found.validate()


@cases
@given(
    st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 6), (1, 8)]),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 300),
    st.sampled_from([1, 8, 33, 64, 80]),
    st.integers(1, 5),
    st.sampled_from(DTYPES),
    st.integers(0, 999),
)
def test_any_problem(impl, heads, batch, rows, k_len, dim, step, dtype, seed):
    shape = AttentionShape(batch, heads[1], heads[0], rows, k_len, dim)
    arguments = problem(shape, step, dtype, seed)
    lists = (None, 1, heads[0])[seed % 3]
    found = stripe_search(**arguments, list_heads=lists, impl=impl)
    check(found, brute_force(**arguments, list_heads=lists))


@pytest.mark.parametrize("dtype", DTYPES)
def test_native_finds_what_the_reference_finds(isa, dtype):
    for step in (1, 2, 4):
        arguments = problem(SHAPE, step, dtype, seed=step)
        found = stripe_search(**arguments, impl="cpu")
        expected = stripe_search(**arguments, impl="reference")
        assert torch.equal(found.offsets, expected.offsets)
        assert torch.equal(found.indices, expected.indices) and len(found.indices) > 20


def test_a_product_equal_to_its_threshold_is_kept_and_infinity_keeps_nothing(impl):
    arguments = problem(SHAPE, 1)
    arguments["threshold"] = (arguments["pooled"] @ arguments["key"][:, :1, 7, :, None])[..., 0]
    arguments |= {"begin": torch.full((2, 5), 7), "end": torch.full((2, 5), 8)}
    found = stripe_search(**arguments, impl=impl)
    assert found.to_mask()[:, :3, :, 7].all()
    arguments["threshold"] = torch.full((2, 6, 5), torch.inf)
    assert len(stripe_search(**arguments, impl=impl).indices) == 0


def test_ranges_are_cut_to_the_keys(impl):
    arguments = problem(SHAPE, 2)
    arguments |= {"begin": torch.full((2, 3), -9), "end": torch.full((2, 3), 999)}
    check(stripe_search(**arguments, impl=impl), brute_force(**arguments))
    arguments |= {"begin": torch.full((2, 3), 200), "end": torch.full((2, 3), 100)}
    assert len(stripe_search(**arguments, impl=impl).indices) == 0


def test_keys_outside_the_ranges_do_not_touch_the_result(impl):
    arguments = problem(SHAPE, 5)
    arguments |= {"begin": torch.tensor([[10], [100]]), "end": torch.tensor([[320], [301]])}
    expected = brute_force(**arguments)
    place = torch.arange(333)
    outside = (place < arguments["begin"]) | (place >= arguments["end"])
    arguments["key"] = arguments["key"].masked_fill(outside[:, None, :, None], torch.nan)
    check(stripe_search(**arguments, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_find_the_same(impl, dtype, layout):
    arguments = problem(SHAPE, 2, dtype)
    expected = brute_force(**arguments)
    arguments |= {name: LAYOUTS[layout](arguments[name]) for name in ("pooled", "key")}
    for name in ("threshold", "begin", "end"):
        arguments[name] = torch.stack([arguments[name]] * 2, -1)[..., 0]
    check(stripe_search(**arguments, impl=impl), expected)


def test_runs_and_thread_counts_agree(isa):
    arguments = problem(SHAPE, 2)
    expected = brute_force(**arguments)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        check(stripe_search(**arguments, impl="cpu"), expected)


def test_key_heads_that_share_a_list_lose_no_hit(isa):
    """Every key head finds its own keys of one word of the list; two threads write it."""
    heads = 16
    key = torch.full((1, heads, 64, 8), -1.0)
    for h in range(heads):
        key[0, h, 4 * h : 4 * h + 4] = 1.0
    arguments: dict[str, Any] = {
        "pooled": torch.ones(1, heads, 1, 8),
        "key": key,
        "threshold": torch.zeros(1, heads, 1),
        "step": 1,
        "group": 4,
        "begin": torch.zeros(1, 1, dtype=torch.int64),
        "end": torch.full((1, 1), 64),
        "list_heads": 1,
    }
    torch.set_num_threads(2)
    for _ in range(200):
        assert len(stripe_search(**arguments, impl="cpu").indices) == 64


def test_a_sequence_alone_is_the_same_sequence_among_others(impl):
    arguments = problem(SHAPE, 2)
    together = stripe_search(**arguments, impl=impl).to_mask()
    for b in range(2):
        one: dict[str, Any] = {
            name: value[b : b + 1] if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        assert torch.equal(stripe_search(**one, impl=impl).to_mask()[0], together[b])


@pytest.mark.parametrize("sizes", [(1, 0, 7), (1, 3, 0), (0, 3, 5)])
def test_empty_inputs_find_nothing(impl, sizes):
    batch, rows, k_len = sizes
    found = stripe_search(**problem(AttentionShape(batch, 4, 2, rows, k_len, 8), 1), impl=impl)
    assert found.shape == (batch, 4, rows, k_len) and len(found.indices) == 0


def test_a_step_beyond_the_rows_is_one_group(impl):
    arguments = problem(SHAPE, 5)
    expected = brute_force(**arguments)
    arguments["step"] = 2**40
    check(stripe_search(**arguments, impl=impl), expected)


@pytest.mark.parametrize("impl_name", IMPLS)
def test_operator_is_registered_for_tracing(impl_name):
    arguments = problem(AttentionShape(1, 4, 2, 3, 40, 8), 2)
    names = ("pooled", "key", "threshold", "step", "begin", "end")
    torch.library.opcheck(
        torch.ops.gossamer.stripe_search.default,
        (*(arguments[name] for name in names), 4, impl_name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


GOOD = problem(SHAPE, 2)
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"pooled": torch.zeros(6, 5, 40)}, ValueError, r"\[batch, heads, tokens, dim\], got \[6, 5"),
    ({"pooled": torch.zeros(2, 5, 5, 40)}, ValueError, r"heads .* got 5 and 2"),
    ({"pooled": torch.zeros(2, 6, 5, 41)}, ValueError, r"share batch and dim"),
    ({"key": torch.zeros(2, 2, 333, 40).int()}, TypeError, r"key to be float32 .*int32"),
    ({"key": torch.zeros(2, 2, 333, 40).bfloat16()}, TypeError, r"one dtype"),
    ({"key": torch.zeros(2, 2, 333, 40, requires_grad=True)}, ValueError, r"key requires a grad"),
    ({"threshold": torch.zeros(2, 6, 4)}, ValueError, r"threshold to be float32 \[2, 6, 5\].* 4\]"),
    ({"threshold": torch.zeros(2, 6, 5).double()}, ValueError, r"threshold .* torch.float64"),
    ({"step": 0}, ValueError, r"step >= 1 and group >= 1, got 0 and 16"),
    ({"group": 0}, ValueError, r"step >= 1 and group >= 1, got 2 and 0"),
    ({"begin": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"begin to be int64 \[2, 3\]"),
    ({"end": torch.zeros(2, 3)}, ValueError, r"end to be int64 \[2, 3\], got torch.float32"),
    ({"list_heads": 4}, ValueError, r"divide 6 query heads and nest with 2 key heads, got 4"),
    ({"list_heads": 0}, ValueError, r"got 0"),
    ({"impl": "gpu"}, ValueError, r"one of auto, reference, cpu, triton, got 'gpu'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    stripe_search(**GOOD)
    with pytest.raises(error, match=message):
        stripe_search(**(GOOD | changes))
