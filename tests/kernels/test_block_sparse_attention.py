"""Every implementation and instruction set against dense float64 attention."""

import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gossamer.kernels import (
    AttentionOutput,
    block_sparse_attention,
    block_sparse_state,
    instruction_sets,
)
from gossamer.patterns import BlockPattern, Window
from gossamer.testing import (
    LAYOUTS,
    SHAPES,
    VALUES,
    AttentionShape,
    attention_inputs,
    budget,
    check_attention,
    check_close,
    dense_attention,
    random_mask,
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


def attend(inputs: Sequence[Tensor], pattern: BlockPattern | None = None, **options):
    """The kernel's output and log-sum-exp."""
    query, key, value = inputs
    found = block_sparse_attention(query, key, value, pattern, return_lse=True, **options)
    assert isinstance(found, AttentionOutput)
    return found


def judge(found: AttentionOutput, inputs: Sequence[Tensor], pattern=None, scale=None, **options):
    """Compare with the oracle under the bounds of the inputs' dtype."""
    query, key, value = inputs
    mask = visible_keys(pattern, query, key, **options)
    exact = dense_attention(query, key, value, mask, scale=scale)
    plain = dense_attention(query, key, value, mask, scale=scale, dtype=query.dtype)
    check_attention(found, exact, value, plain)


def same(found: AttentionOutput, expected: AttentionOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def pattern_for(
    shape: AttentionShape,
    block: int = 64,
    heads: int | None = None,
    density: float = 0.5,
    seed: int = 7,
) -> BlockPattern:
    mask = random_mask(shape.tiles(block, block, heads), density=density, seed=seed)
    return BlockPattern.from_mask(mask, block=block)


@cache
def table_row(index: int, dtype: torch.dtype):
    """A row of the shape table with its oracle, shared by all implementations."""
    shape = SHAPES[index]
    heads = (1, shape.kv_heads, shape.heads)[index % 3]
    query, key, value = attention_inputs(shape, dtype=dtype, seed=index)
    pattern = pattern_for(shape, (16, 32, 48, 64, 128)[index % 5], heads, seed=index)
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
def problems(draw):
    causal = draw(st.booleans())
    kv_heads, ratio = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 3), (1, 8)]))
    heads = kv_heads * ratio
    k_len = draw(st.integers(1, 150))
    few = st.integers(1, min(3, k_len))
    q_len = draw(few | st.integers(1, k_len if causal else 150))
    shape = AttentionShape(
        draw(st.integers(1, 3)),
        heads,
        kv_heads,
        q_len,
        k_len,
        draw(st.sampled_from([1, 8, 33, 64, 80, 128])),
    )
    lists = [n for n in (1, kv_heads, heads) if draw(st.booleans())] or [heads]
    pattern = pattern_for(
        shape,
        draw(st.sampled_from([16, 32, 48, 64, 128, 256])),
        lists[0],
        draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])),
        draw(st.integers(0, 999)),
    )
    window = Window(draw(st.integers(0, 80)), draw(st.integers(1, 80)))
    start = st.lists(st.integers(0, k_len), min_size=shape.batch, max_size=shape.batch)
    options = {
        "causal": causal,
        "window": draw(st.sampled_from([None, window])),
        "key_start": draw(st.none() | start.map(torch.tensor)),
    }
    scale = draw(st.sampled_from([None, 0.05]))
    return shape, draw(st.sampled_from([None, pattern])), options, scale, draw(st.integers(0, 999))


@cases
@given(problems(), st.sampled_from(DTYPES))
def test_any_problem(impl, problem, dtype):
    shape, pattern, options, scale, seed = problem
    inputs = query, key, value = attention_inputs(shape, dtype=dtype, seed=seed)
    options = options | {"scale": scale}
    found = attend(inputs, pattern, **options, impl=impl)
    judge(found, inputs, pattern, **options)
    alone = block_sparse_attention(query, key, value, pattern, **options, impl=impl)
    assert isinstance(alone, Tensor) and torch.equal(alone, found.output)
    state = block_sparse_state(query, key, value, pattern, **options, impl=impl)
    judge(AttentionOutput(state.output(dtype), state.lse()), inputs, pattern, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_a_full_pattern_is_pytorchs_attention(impl, dtype, shape):
    inputs = query, key, value = attention_inputs(shape, dtype=dtype)
    mask = visible_keys(None, query, key)
    theirs = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    exact = dense_attention(query, key, value, mask).output
    plain = dense_attention(query, key, value, mask, dtype=dtype).output
    bound = 1e-5 * float(value.abs().max()) if dtype == torch.float32 else budget(plain, exact)
    for pattern in (None, BlockPattern.full(shape.q_len, shape.k_len, batch=2, heads=6)):
        check_close(attend(inputs, pattern, impl=impl).output, theirs.double(), bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, Window(5, 600), Window(1030, 100)])
def test_a_long_decode_meets_every_split(impl, dtype, window):
    shape = AttentionShape(2, 4, 2, 3, 2100, 40)
    inputs = attention_inputs(shape, dtype=dtype)
    options = {"window": window, "key_start": torch.tensor([1500, 3])}
    for pattern in (None, pattern_for(shape, 64, density=0.9)):
        judge(attend(inputs, pattern, **options, impl=impl), inputs, pattern, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("shape", [AttentionShape(1, 3, 1, 70, 130, 40), DECODE])
def test_awkward_values_stay_finite_and_exact(impl, dtype, values, shape):
    inputs = attention_inputs(shape, dtype=dtype, values=values)
    pattern = pattern_for(shape, 32, density=0.7)
    found = attend(inputs, pattern, impl=impl)
    assert found.output.isfinite().all()
    judge(found, inputs, pattern)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(impl, dtype, shape, layout):
    inputs = attention_inputs(shape, dtype=dtype)
    pattern = pattern_for(shape, 48)
    found = attend([LAYOUTS[layout](x) for x in inputs], pattern, impl=impl)
    if impl == "reference":  # whose products choose their order of summation by strides
        judge(found, inputs, pattern)
    else:
        assert same(found, attend(inputs, pattern, impl=impl))


@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_expanded_views_give_the_same_bits(impl, shape):
    views = [x[:1, :1].expand(2, x.shape[1], -1, -1) for x in attention_inputs(shape)]
    assert same(attend(views, impl=impl), attend([x.contiguous() for x in views], impl=impl))


def test_pattern_tensors_may_be_strided(impl):
    inputs = attention_inputs(PREFILL)
    pattern = pattern_for(PREFILL, 32)
    offsets, indices = (
        torch.stack([x, torch.zeros_like(x)], -1).flatten()[::2]
        for x in (pattern.offsets, pattern.indices)
    )
    strided = BlockPattern(offsets, indices, pattern.shape, pattern.block)
    assert same(attend(inputs, strided, impl=impl), attend(inputs, pattern, impl=impl))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_rows_without_keys_are_zero_and_minus_infinity(impl, dtype, shape):
    inputs = query, key, _ = attention_inputs(shape, dtype=dtype)
    mask = random_mask(shape.tiles(32, 32), density=0.7)
    mask[:, 1] = False
    mask[1, :, -1] = False
    pattern = BlockPattern.from_mask(mask, block=32)
    found = attend(inputs, pattern, impl=impl)
    blind = ~visible_keys(pattern, query, key).any(-1)
    assert blind[:, 1].all() and blind[1, :, -1].all()
    assert not found.output[blind].any() and (found.lse[blind] == -torch.inf).all()
    assert found.lse[~blind].isfinite().all() and found.output.isfinite().all()
    no_keys = [query, *(x[:, :, :0] for x in inputs[1:])]
    for found in (
        attend(inputs, key_start=torch.full((2,), shape.k_len), impl=impl),
        attend(no_keys, causal=False, impl=impl),
    ):
        assert not found.output.any() and (found.lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE, CHUNK])
@pytest.mark.parametrize("block", [16, 64])
def test_blocks_outside_the_pattern_do_not_touch_the_result(impl, dtype, shape, block):
    """One list for all heads; the blocks it never names hold NaN."""
    inputs = query, key, value = attention_inputs(shape, dtype=dtype)
    mask = random_mask(shape.tiles(block, block, heads=1), density=0.4)
    mask[..., 1] = False
    pattern = BlockPattern.from_mask(mask, block=block)
    named = mask.any((1, 2)).repeat_interleave(block, -1)[:, None, : shape.k_len, None]
    poisoned = [query, *(torch.where(named, x, torch.nan) for x in (key, value))]
    assert poisoned[1].isnan().any()
    assert same(attend(poisoned, pattern, impl=impl), attend(inputs, pattern, impl=impl))


@pytest.mark.parametrize("shape", [PREFILL, DECODE, CHUNK])
def test_listed_blocks_that_the_window_hides_do_not_touch_the_result(impl, shape):
    inputs = query, key, value = attention_inputs(shape)
    every = BlockPattern.from_mask(random_mask(shape.tiles(16, 16, 1), density=1.0), block=16)
    window = Window(sink=16, local=8)
    hidden = torch.zeros(shape.k_len, 1, dtype=torch.bool)
    first = shape.k_len - shape.q_len  # position of the first query, the furthest back
    hidden[16 : (first - window.local + 1) // 16 * 16] = True
    assert hidden.any()
    poisoned = [query, *(x.masked_fill(hidden, torch.nan) for x in (key, value))]
    found = attend(poisoned, every, window=window, impl=impl)
    assert same(found, attend(inputs, every, window=window, impl=impl))


@pytest.mark.parametrize("shape", [PREFILL, DECODE, CHUNK])
@pytest.mark.parametrize("listed", [True, False])
def test_sinks_are_the_first_real_keys_of_a_padded_sequence(impl, shape, listed):
    """The second sequence begins at key 48, as if the keys before were not there."""
    query, key, value = attention_inputs(shape)
    window, start = Window(sink=5, local=30), torch.tensor([0, 48])
    key[1, :, :48], value[1, :, :48] = 9.0, 1e4  # must not matter
    pattern = BlockPattern.from_mask(random_mask(shape.tiles(16, 16), density=1.0), block=16)
    options = {"window": window, "impl": impl}
    found = attend((query, key, value), pattern if listed else None, key_start=start, **options)
    first = max(0, 48 - shape.k_len + shape.q_len)  # queries before it have no key
    real = query[1:, :, first:], key[1:, :, 48:], value[1:, :, 48:]
    expected = attend(real, **options)
    check_close(found.output[1:, :, first:], expected.output.double(), 1e-6)
    assert not found.output[1, :, :first].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000 - 2**32, 0x7FC00001])
def test_nan_inputs_give_nan_rows(impl, dtype, shape, bits):
    """Any NaN, whatever its sign and payload."""
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32).to(dtype)
    row = shape.q_len // 2
    inputs = attention_inputs(shape, dtype=dtype)
    inputs[0][1, 1, row] = nan
    found = attend(inputs, impl=impl)
    assert found.output[1, 1, row].isnan().all() and found.lse[1, 1, row].isnan()
    assert int(found.output.isnan().any(-1).sum()) == 1
    for which in (1, 2):
        inputs = attention_inputs(shape, dtype=dtype)
        inputs[which][1, 1, 40] = nan  # which every row sees
        found = attend(inputs, impl=impl)
        assert found.output[1, 3:].isnan().all()
        assert found.output[:, :3].isfinite().all() and found.output[0].isfinite().all()
        assert which == 2 or found.lse[1, 3:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL, DECODE])
def test_runs_and_thread_counts_agree_bitwise(isa, dtype, shape):
    inputs = attention_inputs(shape, dtype=dtype)
    pattern = pattern_for(shape, 16)
    expected = attend(inputs, pattern, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same(attend(inputs, pattern, impl="cpu"), expected), threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PREFILL._replace(batch=3), DECODE._replace(batch=3)])
def test_a_sequence_alone_is_the_same_sequence_among_others(impl, dtype, shape):
    inputs = attention_inputs(shape, dtype=dtype)
    mask = random_mask(shape.tiles(32, 32))
    pattern, start = BlockPattern.from_mask(mask, block=32), torch.tensor([0, 20, 7])
    together = attend(inputs, pattern, key_start=start, impl=impl)
    for b in range(3):
        one = slice(b, b + 1)
        pattern = BlockPattern.from_mask(mask[one], block=32)
        alone = attend([x[one] for x in inputs], pattern, key_start=start[one], impl=impl)
        assert same(alone, AttentionOutput(*(x[one] for x in together)))


@pytest.mark.parametrize("sizes", [(1, 0, 7), (1, 0, 0), (0, 5, 5)])
def test_empty_inputs_give_empty_results(impl, sizes):
    batch, q_len, k_len = sizes
    inputs = attention_inputs(AttentionShape(batch, 4, 2, q_len, k_len, 8))
    for pattern in (None, BlockPattern.full(q_len, k_len, batch=batch, heads=4)):
        found = attend(inputs, pattern, impl=impl)
        assert found.output.shape == (batch, 4, q_len, 8) and found.lse.shape == (batch, 4, q_len)
        state = block_sparse_state(*inputs, pattern, impl=impl)
        assert state.acc.shape == (batch, 4, q_len, 8) and state.max.shape == (batch, 4, q_len)


def test_addresses_are_64_bit(isa):
    """Head and token strides that reach past 2^31 elements; untouched pages cost nothing."""
    inputs = attention_inputs(AttentionShape(1, 2, 2, 3, 3, 8), dtype=torch.bfloat16)
    expected = attend(inputs, impl="cpu")
    torch.use_deterministic_algorithms(False)  # which would fill all of it
    far = torch.empty(2**31 + 2**20, dtype=torch.bfloat16)
    for strides in [(8, 2**31, 64, 1), (8, 64, 2**30, 1)]:
        for which in range(3):
            views = list(inputs)
            views[which] = far.as_strided(inputs[which].shape, strides).copy_(inputs[which])
            assert same(attend(views, impl="cpu"), expected)


@pytest.mark.parametrize("impl_name", IMPLS)
@pytest.mark.parametrize("mode", ["attention", "state", "dense"])
def test_operator_is_registered_for_tracing(impl_name, mode):
    shape = AttentionShape(1, 4, 2, 40, 50, 8)
    lists = (None, None, None) if mode == "dense" else pattern_for(shape, 16).rows
    options = (4, 16, True, 0.3, 2, 9, None, mode == "state", impl_name)
    torch.library.opcheck(
        torch.ops.gossamer.block_sparse_attention.default,
        (*attention_inputs(shape), *lists, *options),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_torch_compile_traces_the_whole_call():
    query, key, value = attention_inputs(PREFILL)
    pattern, start = pattern_for(PREFILL), torch.tensor([3, 0])

    def double(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 2 * attend((query, key + 1, value), pattern, key_start=start).output

    traced = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(traced(query, key, value), double(query, key, value))


MEMORY = """
import torch
from pathlib import Path
from gossamer.kernels import block_sparse_attention
from gossamer.patterns import BlockPattern
from gossamer.testing import random_mask

def kib(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])

torch.set_num_threads(2)
tokens = {tokens}
query, key, value = torch.randn(3, 1, 1, tokens, 64).unbind()
mask = random_mask((1, 1, tokens // 64, tokens // 64), density=0.1)
mask |= torch.eye(tokens // 64, dtype=torch.bool)
pattern = BlockPattern.from_mask(mask.tril(), block=64)
block_sparse_attention(*(x[:, :, :128] for x in (query, key, value)), impl="{impl}")
before = kib("VmRSS")
output = block_sparse_attention(query, key, value, pattern, impl="{impl}")
ceiling = output.nbytes + pattern.offsets.nbytes + pattern.indices.nbytes + (32 << 20)
assert torch.isfinite(output).all()
print((kib("VmHWM") - before) * 1024, ceiling)
"""


@pytest.mark.parametrize("impl_name", IMPLS)
def test_no_buffer_of_all_pairs_ever_exists(impl_name):
    """Its scores would be 1 GiB (64 MiB for the reference); outputs + pattern + 32 MiB may be."""
    script = MEMORY.format(tokens=16384 if impl_name == "cpu" else 4096, impl=impl_name)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    growth, ceiling = map(int, found.stdout.split())
    assert growth <= ceiling


def test_no_gradient_is_needed_where_none_is_recorded(impl):
    inputs = attention_inputs(DECODE)
    expected = attend(inputs, impl=impl)
    inputs[0].requires_grad_()
    with torch.no_grad():
        assert same(attend(inputs, impl=impl), expected)
    with torch.inference_mode():
        assert same(attend(inputs, impl=impl), expected)
