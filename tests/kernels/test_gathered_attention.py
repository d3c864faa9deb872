"""Gathered attention against dense float64 attention, and its composition with blocks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import (
    AttentionOutput,
    AttentionState,
    block_sparse_state,
    gathered_attention,
    instruction_sets,
)
from gossamer.patterns import StripePattern, TokenPattern, Window
from gossamer.testing import (
    LAYOUTS,
    SHAPES,
    VALUES,
    AttentionShape,
    attention_inputs,
    check_attention,
    dense_attention,
    random_mask,
    ranked_attention,
    rotary_tables,
    visible_keys,
)

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
DECODE = AttentionShape(2, 6, 2, 1, 200, 40)
CHUNK = DECODE._replace(q_len=5)
PREFILL = AttentionShape(2, 6, 2, 150, 200, 40)
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Lists = TokenPattern | StripePattern


def attend(inputs: Sequence[Tensor], pattern: Lists, **options: Any) -> AttentionOutput:
    """The kernel's output and log-sum-exp."""
    query, key, value = inputs
    found = gathered_attention(query, key, value, pattern, return_lse=True, **options)
    assert isinstance(found, AttentionOutput)
    return found


def judge(
    found: AttentionOutput, inputs: Sequence[Tensor], pattern: Lists, scale=None, **options: Any
) -> None:
    """Compare with the oracle under the bounds of the inputs' dtype."""
    query, key, value = inputs
    mask = visible_keys(pattern, query, key, **options)
    exact = dense_attention(query, key, value, mask, scale=scale)
    plain = dense_attention(query, key, value, mask, scale=scale, dtype=query.dtype)
    check_attention(found, exact, value, plain)


def same(found: AttentionOutput, expected: AttentionOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def lists_for(
    shape: AttentionShape,
    group: int = 32,
    heads: int | None = None,
    density: float = 0.5,
    seed: int = 7,
    kind: type[TokenPattern] | type[StripePattern] = StripePattern,
) -> Lists:
    mask = random_mask(shape.tiles(group, 1, heads), density=density, seed=seed)
    return kind.from_mask(mask, group=group)


@cache
def table_row(index: int, dtype: torch.dtype):
    """A row of the shape table with its oracle, shared by all implementations."""
    shape = SHAPES[index]
    group = (1, 7, 64, 100, 1025)[index % 5]
    heads = (1, shape.kv_heads, shape.heads)[index % 3]
    kind = (TokenPattern, StripePattern)[index % 2]
    query, key, value = attention_inputs(shape, dtype=dtype, seed=index)
    pattern = lists_for(shape, group, heads, seed=index, kind=kind)
    mask = visible_keys(pattern, query, key)
    exact = dense_attention(query, key, value, mask)
    plain = dense_attention(query, key, value, mask, dtype=dtype)
    return (query, key, value), pattern, exact, plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_shape_table(impl, dtype, index):
    inputs, pattern, exact, plain = table_row(index, dtype)
    before = [x.clone() for x in inputs]
    found = attend(inputs, pattern, impl=impl)
    assert found.output.dtype == dtype and found.lse.dtype == torch.float32
    check_attention(found, exact, inputs[2], plain)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@st.composite
def problems(draw, longest=100):
    causal = draw(st.booleans())
    kv_heads, ratio = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3), (1, 8)]))
    heads = kv_heads * ratio
    k_len = draw(st.integers(1, longest))
    few = st.integers(1, min(3, k_len))
    q_len = draw(few | st.integers(1, k_len if causal else longest))
    shape = AttentionShape(
        draw(st.integers(1, 3)),
        heads,
        kv_heads,
        q_len,
        k_len,
        draw(st.sampled_from([2, 8, 34, 64, 80, 128])),
    )
    pattern = lists_for(
        shape,
        draw(st.integers(1, q_len) | st.just(500)),
        draw(st.sampled_from([1, kv_heads, heads])),
        draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])),
        draw(st.integers(0, 999)),
        draw(st.sampled_from([TokenPattern, StripePattern])),
    )
    start = st.lists(st.integers(0, k_len), min_size=shape.batch, max_size=shape.batch)
    options = {"causal": causal, "key_start": draw(st.none() | start.map(torch.tensor))}
    return shape, pattern, options, draw(st.sampled_from([None, 0.05])), draw(st.integers(0, 999))


@cases
@given(problems(), st.sampled_from(DTYPES))
def test_any_problem(impl, problem, dtype):
    shape, pattern, options, scale, seed = problem
    inputs = query, key, value = attention_inputs(shape, dtype=dtype, seed=seed)
    options = options | {"scale": scale}
    found = attend(inputs, pattern, **options, impl=impl)
    judge(found, inputs, pattern, **options)
    alone = gathered_attention(query, key, value, pattern, **options, impl=impl)
    assert isinstance(alone, Tensor) and torch.equal(alone, found.output)


@settings(parent=cases, max_examples=20)
@given(problems(40), st.sampled_from(DTYPES))
def test_rotary_turns_each_key_by_its_rank(impl, problem, dtype):
    shape, pattern, options, scale, seed = problem
    query, key, value = attention_inputs(shape, dtype=dtype, seed=seed)
    rotary = rotary_tables(shape.k_len + 2, shape.dim)
    options = options | {"scale": scale}
    found = attend((query, key, value), pattern, **options, rotary=rotary, impl=impl)
    exact = ranked_attention(query, key, value, pattern, rotary, **options)
    plain = ranked_attention(query, key, value, pattern, rotary, **options, dtype=dtype)
    lse = found.lse
    if dtype == torch.bfloat16:  # rotated keys may be rounded, which the exact scores are not
        torch.testing.assert_close(lse.double(), exact.lse, rtol=0.0, atol=0.05)
        lse = exact.lse
    check_attention(AttentionOutput(found.output, lse), exact, value, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("rotary", [False, True])
def test_a_long_list_meets_every_split(impl, dtype, q_len, rotary):
    shape = AttentionShape(1, 2, 1, q_len, 2300, 40)
    query, key, value = inputs = attention_inputs(shape, dtype=dtype)
    pattern = lists_for(shape, q_len, 1, density=0.95)
    start = torch.tensor([300])
    if not rotary:
        judge(attend(inputs, pattern, key_start=start, impl=impl), inputs, pattern, key_start=start)
        return
    tables = rotary_tables(2300, 40)
    found = attend(inputs, pattern, key_start=start, rotary=tables, impl=impl)
    exact = ranked_attention(query, key, value, pattern, tables, key_start=start)
    plain = ranked_attention(query, key, value, pattern, tables, key_start=start, dtype=dtype)
    lse = found.lse if dtype == torch.float32 else exact.lse
    check_attention(AttentionOutput(found.output, lse), exact, value, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [600, 1100])
def test_a_long_group_meets_every_piece(isa, dtype, group):
    shape = AttentionShape(1, 2, 1, 1030, 1030, 16)
    inputs = attention_inputs(shape, dtype=dtype)
    pattern = lists_for(shape, group, density=0.4)
    judge(attend(inputs, pattern, impl="cpu"), inputs, pattern)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [AttentionShape(2, 3, 1, 60, 200, 40), CHUNK, DECODE])
@pytest.mark.parametrize("scale", [None, 0.05])
def test_window_and_the_rest_compose_to_dense_attention(impl, dtype, shape, scale):
    """Blocks of a window first, then every other key as stripes of single queries."""
    inputs = query, key, value = attention_inputs(shape, dtype=dtype)
    window, start = Window(sink=3, local=40), torch.tensor([0, 33])
    near = visible_keys(None, query, key, window=window, key_start=start)
    rest = StripePattern.from_mask(~near, group=1)
    options: dict[str, Any] = {"key_start": start, "scale": scale, "impl": impl}
    state = block_sparse_state(query, key, value, window=window, **options)
    before = [part.clone() for part in (state.max, state.sum, state.acc)]
    found = attend(inputs, rest, state=state, **options)
    after = (state.max, state.sum, state.acc)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    everything = StripePattern.from_mask(torch.ones_like(near), group=1)
    judge(found, inputs, everything, key_start=start, scale=scale)
    again = gathered_attention(query, key, value, rest, state=state, **options)
    assert isinstance(again, Tensor) and torch.equal(again, found.output)


def test_an_empty_state_changes_nothing(impl):
    inputs = attention_inputs(PREFILL)
    pattern = lists_for(PREFILL)
    resumed = attend(inputs, pattern, state=AttentionState.empty(inputs[0]), impl=impl)
    assert same(resumed, attend(inputs, pattern, impl=impl))


@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_empty_lists_return_the_state(impl, shape):
    inputs = query, key, value = attention_inputs(shape)
    state = block_sparse_state(query, key, value, impl=impl)
    nothing = lists_for(shape, density=0.0)
    found = attend(inputs, nothing, state=state, impl=impl)
    torch.testing.assert_close(found.output, state.output(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.lse, state.lse(), rtol=1e-6, atol=1e-6)
    found = attend(inputs, nothing, impl=impl)
    assert not found.output.any() and (found.lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", [AttentionShape(1, 3, 1, 70, 130, 40), DECODE])
def test_awkward_values_stay_finite_and_exact(impl, dtype, values, shape):
    inputs = attention_inputs(shape, dtype=dtype, values=values)
    pattern = lists_for(shape, density=0.7)
    found = attend(inputs, pattern, impl=impl)
    assert found.output.isfinite().all()
    judge(found, inputs, pattern)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(impl, dtype, shape, layout):
    inputs = attention_inputs(shape, dtype=dtype)
    pattern = lists_for(shape)
    found = attend([LAYOUTS[layout](x) for x in inputs], pattern, impl=impl)
    if impl == "reference":  # whose products choose their order of summation by strides
        judge(found, inputs, pattern)
    else:
        assert same(found, attend(inputs, pattern, impl=impl))


def test_pattern_state_and_tables_may_be_strided(impl):
    inputs = query, key, value = attention_inputs(PREFILL)
    pattern = lists_for(PREFILL, kind=TokenPattern)
    assert isinstance(pattern, TokenPattern)
    spread = torch.stack([pattern.indices, pattern.indices], -1)[..., 0]
    strided = TokenPattern(spread, pattern.group, pattern.k_len)
    state = block_sparse_state(query, key, value, window=Window(0, 1), impl=impl)
    parts = [torch.stack([x, x], -1)[..., 0] for x in (state.max, state.sum, state.acc)]
    tables = rotary_tables(200, 40)
    loose = tuple(torch.stack([x, x], -1)[..., 0] for x in tables)
    expected = attend(inputs, pattern, state=state, rotary=tables, impl=impl)
    found = attend(inputs, strided, state=AttentionState(*parts), rotary=loose, impl=impl)
    assert same(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, CHUNK, DECODE])
@pytest.mark.parametrize("rotary", [None, rotary_tables(200, 40)])
def test_keys_outside_the_lists_do_not_touch_the_result(impl, dtype, shape, rotary):
    """One list for all heads and queries; the keys it does not name hold NaN."""
    inputs = query, key, value = attention_inputs(shape, dtype=dtype)
    mask = random_mask((2, 1, 1, 200), density=0.4)
    pattern = TokenPattern.from_mask(mask, group=shape.q_len)
    named = mask[:, 0, 0, :, None][:, None]
    poisoned = [query, *(torch.where(named, x, torch.nan) for x in (key, value))]
    assert poisoned[1].isnan().any()
    found = attend(poisoned, pattern, rotary=rotary, impl=impl)
    assert same(found, attend(inputs, pattern, rotary=rotary, impl=impl))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_nan_inputs_give_nan_rows(impl, dtype, shape):
    row = shape.q_len // 2
    pattern = lists_for(shape, density=1.0)
    inputs = attention_inputs(shape, dtype=dtype)
    inputs[0][1, 1, row] = torch.nan
    found = attend(inputs, pattern, impl=impl)
    assert found.output[1, 1, row].isnan().all() and found.lse[1, 1, row].isnan()
    assert int(found.output.isnan().any(-1).sum()) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_runs_and_thread_counts_agree_bitwise(isa, dtype, shape):
    inputs = attention_inputs(shape, dtype=dtype)
    pattern = lists_for(shape)
    expected = attend(inputs, pattern, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same(attend(inputs, pattern, impl="cpu"), expected), threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL._replace(batch=3), DECODE._replace(batch=3)])
def test_a_sequence_alone_is_the_same_sequence_among_others(impl, dtype, shape):
    inputs = attention_inputs(shape, dtype=dtype)
    mask = random_mask(shape.tiles(32, 1))
    mask[0, :, :, 90:] = False  # lists of other lengths beside it
    start = torch.tensor([0, 20, 7])
    pattern = StripePattern.from_mask(mask, group=32)
    together = attend(inputs, pattern, key_start=start, impl=impl)
    for b in range(3):
        one = slice(b, b + 1)
        pattern = StripePattern.from_mask(mask[one], group=32)
        alone = attend([x[one] for x in inputs], pattern, key_start=start[one], impl=impl)
        assert same(alone, AttentionOutput(*(x[one] for x in together)))


@pytest.mark.parametrize("sizes", [(1, 0, 7), (1, 0, 0), (0, 5, 5)])
def test_empty_inputs_give_empty_results(impl, sizes):
    batch, q_len, k_len = sizes
    shape = AttentionShape(batch, 4, 2, q_len, k_len, 8)
    found = attend(attention_inputs(shape), lists_for(shape), impl=impl)
    assert found.output.shape == (batch, 4, q_len, 8) and found.lse.shape == (batch, 4, q_len)


def test_addresses_are_64_bit(isa):
    """Head and token strides that reach past 2^31 elements; untouched pages cost nothing."""
    shape = AttentionShape(1, 2, 2, 3, 3, 8)
    inputs = attention_inputs(shape, dtype=torch.bfloat16)
    pattern = lists_for(shape, 3, density=1.0)
    expected = attend(inputs, pattern, impl="cpu")
    torch.use_deterministic_algorithms(False)  # which would fill all of it
    far = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    for strides in [(8, 2**31, 64, 1), (8, 64, 2**30, 1)]:
        for which in range(3):
            views = list(inputs)
            views[which] = far.as_strided(inputs[which].shape, strides).copy_(inputs[which])
            assert same(attend(views, pattern, impl="cpu"), expected)


@pytest.mark.parametrize("impl_name", IMPLS)
@pytest.mark.parametrize("everything", [False, True])
def test_operator_is_registered_for_tracing(impl_name, everything):
    shape = AttentionShape(1, 4, 2, 40, 50, 8)
    query, key, value = attention_inputs(shape)
    extra: tuple[Tensor | None, ...] = (None,) * 6
    if everything:
        state = block_sparse_state(query, key, value, window=Window(0, 1))
        extra = (torch.tensor([3]), *rotary_tables(50, 8), state.max, state.sum, state.acc)
    lists = lists_for(shape, 16).rows
    torch.library.opcheck(
        torch.ops.gossamer.gathered_attention.default,
        (query, key, value, *lists, 4, 16, True, 0.3, *extra, impl_name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_torch_compile_traces_the_whole_call():
    query, key, value = attention_inputs(PREFILL)
    pattern = lists_for(PREFILL)

    def double(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 2 * attend((query, key + 1, value), pattern).output

    traced = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(traced(query, key, value), double(query, key, value))
