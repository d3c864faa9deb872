"""TokenSelect's three steps: products over a cache, votes of all heads, top positions."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import instruction_sets, paged_dot, soft_votes, top_indices
from gossamer.testing import (
    LAYOUTS,
    VALUES,
    AttentionShape,
    attention_inputs,
    check_close,
    random_mask,
)

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
SHAPE = AttentionShape(3, 6, 2, 1, 2100, 40)
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inputs(shape: AttentionShape, dtype=torch.float32, **options: Any) -> tuple[Tensor, Tensor]:
    return attention_inputs(shape, dtype=dtype, **options)[:2]


def products(query: Tensor, key: Tensor, begin: Tensor, end: int, scale: float) -> Tensor:
    """The scores in float64, -inf outside the range."""
    shared = query.shape[1] // key.shape[1]
    scores = (query.double() @ key.double().repeat_interleave(shared, 1).mT)[:, :, 0] * scale
    place = torch.arange(key.shape[2])
    outside = (place < begin[:, None]) | (place >= end)
    return scores.masked_fill(outside[:, None], -torch.inf)


def rounding(query: Tensor, key: Tensor, scale: float) -> float:
    """gamma_{d+2} sum |q||k|, the rigorous bound of a float32 dot product."""
    terms = (query.shape[3] + 2) * 2.0**-24
    sizes = query.double().abs() @ key.double().abs().amax(1, keepdim=True).mT
    return scale * terms / (1 - terms) * float(sizes.max()) if sizes.numel() else 0.0


@cases
@given(
    st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 6), (1, 8)]),
    st.integers(0, 3),
    st.integers(0, 1100),
    st.sampled_from([1, 8, 33, 64, 80, 128]),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_products_are_exact_to_rounding(impl, heads, batch, k_len, dim, dtype, data):
    shape = AttentionShape(batch, heads[1], heads[0], 1, k_len, dim)
    query, key = inputs(shape, dtype)
    ends = st.integers(0, k_len)
    begin = torch.tensor(data.draw(st.lists(ends, min_size=batch, max_size=batch))).long()
    end, scale = data.draw(ends), data.draw(st.sampled_from([1.0, 0.125]))
    found = paged_dot(query, key, begin=begin, end=end, scale=scale, impl=impl)
    assert found.dtype == torch.float32 and found.shape == (batch, heads[1], k_len)
    exact = products(query, key, begin, end, scale)
    check_close(found, exact, rounding(query, key, scale), "scores")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
def test_awkward_values(impl, dtype, values):
    query, key = inputs(SHAPE, dtype, values=values)
    begin = torch.tensor([0, 1000, 2100])
    found = paged_dot(query, key, begin=begin, end=2000, impl=impl)
    exact = products(query, key, begin, 2000, 1.0)
    tiny = torch.finfo(torch.float32).tiny
    check_close(found, exact, rounding(query, key, 1.0) + tiny, "scores")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(impl, dtype, layout):
    query, key = inputs(SHAPE, dtype)
    begin = torch.stack([torch.tensor([0, 7, 9])] * 2, -1)[:, 0]
    expected = paged_dot(query, key, begin=begin.clone(), end=2000, impl=impl)
    view = LAYOUTS[layout]
    found = paged_dot(view(query), view(key), begin=begin, end=2000, impl=impl)
    if impl == "reference":  # whose products choose their order of summation by strides
        exact = products(query, key, begin, 2000, 1.0)
        check_close(found, exact, rounding(query, key, 1.0), "scores")
    else:
        assert torch.equal(found, expected)


def test_keys_outside_the_range_are_not_read(impl):
    query, key = inputs(SHAPE)
    begin = torch.tensor([5, 1030, 2000])
    expected = paged_dot(query, key, begin=begin, end=2050, impl=impl)
    for b in range(3):
        key[b, :, : int(begin[b])] = torch.nan
        key[b, :, 2050:] = torch.nan
    assert torch.equal(paged_dot(query, key, begin=begin, end=2050, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_thread_counts_and_batches_agree_bitwise(isa, dtype):
    query, key = inputs(SHAPE, dtype)
    begin = torch.tensor([5, 1030, 0])

    def votes(rows: slice) -> tuple[Tensor, Tensor]:
        scores = paged_dot(query[rows], key[rows], begin=begin[rows], end=2050, impl="cpu")
        return scores, soft_votes(scores, impl="cpu")

    expected = votes(slice(None))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, votes(slice(None)), expected))
    for b in range(3):
        one = slice(b, b + 1)
        assert all(map(torch.equal, votes(one), (part[one] for part in expected)))


@cases
@given(st.integers(0, 3), st.integers(1, 6), st.integers(0, 1100), st.integers(0, 999))
def test_votes_are_the_sum_of_softmax(impl, batch, heads, k_len, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 10 * torch.randn(batch, heads, k_len, generator=generator)
    barred = random_mask((batch, k_len), density=(0.0, 0.3, 1.0)[seed % 3], seed=seed)
    scores = scores.masked_fill(barred[:, None], -torch.inf)
    before = scores.clone()
    exact = scores.double().softmax(-1).nan_to_num(0.0).sum(1).masked_fill(barred, -torch.inf)
    check_close(soft_votes(scores, impl=impl), exact, heads * 2e-6, "votes")
    assert torch.equal(scores, before)


def test_votes_of_extreme_scores(impl):
    scores = torch.zeros(1, 2, 100)
    scores[0, 0, 17] = 1e4
    scores[0, 1] = -3e38
    votes = soft_votes(scores, impl=impl)
    assert float(votes[0, 17]) == pytest.approx(1.01) and float(votes[0, 0]) == pytest.approx(0.01)


@cases
@given(st.integers(0, 3), st.integers(1, 300), st.data())
def test_top_indices_are_the_k_largest_ties_to_the_lower(impl, rows, n, data):
    values = st.sampled_from([-torch.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 3e38, torch.inf])
    table = [[data.draw(values) for _ in range(12)] for _ in range(rows)]
    drawn = torch.tensor(table).reshape(rows, 12).repeat(1, -(-n // 12))[:, :n]
    k = data.draw(st.integers(1, n))
    found = top_indices(drawn, k, impl=impl)
    assert found.dtype == torch.int32 and found.shape == (rows, k)
    for row, picked in zip(drawn.tolist(), found.tolist(), strict=True):
        best = sorted(range(n), key=lambda i: (-row[i], i))[:k]
        assert picked == sorted(best)


@pytest.mark.parametrize("k", [1, 9, 500, 999, 1000])
@pytest.mark.parametrize("order", ["random", "ascending", "descending", "equal", "saw"])
def test_top_indices_of_awkward_orders(impl, k, order):
    ramp = torch.arange(1000.0)
    values = {
        "random": torch.randn(1000, generator=torch.Generator().manual_seed(k)),
        "ascending": ramp,
        "descending": -ramp,
        "equal": torch.ones(1000),
        "saw": ramp % 7,
    }[order]
    expected = values.sort(descending=True, stable=True).indices[:k].sort().values
    strided = torch.stack([values, -values], -1)[None, :, 0]
    assert torch.equal(top_indices(strided, k, impl=impl)[0], expected.int())


SMALL = AttentionShape(2, 4, 2, 1, 50, 8)


@pytest.mark.parametrize("impl_name", IMPLS)
def test_operators_are_registered_for_tracing(impl_name):
    query, key = inputs(SMALL)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for name, arguments in {
        "paged_dot": (query, key, torch.tensor([0, 3]), 44, 0.5, impl_name),
        "soft_votes": (torch.randn(2, 4, 50), impl_name),
        "top_indices": (torch.randn(4, 50), 7, impl_name),
    }.items():
        operator = getattr(torch.ops.gossamer, name).default
        torch.library.opcheck(operator, arguments, test_utils=tests)


GOOD: dict[str, dict[str, Any]] = {
    "paged_dot": dict(
        zip(("query", "key"), inputs(SMALL), strict=True), begin=torch.tensor([0, 3]), end=44
    ),
    "soft_votes": {"scores": torch.zeros(2, 4, 50)},
    "top_indices": {"values": torch.zeros(2, 50), "k": 3},
}
FUNCTIONS = {"paged_dot": paged_dot, "soft_votes": soft_votes, "top_indices": top_indices}
BAD_INPUT: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("paged_dot", {"query": torch.zeros(2, 4, 8)}, ValueError, r"query to be \[batch, heads"),
    ("paged_dot", {"query": torch.zeros(2, 4, 2, 8)}, ValueError, r"one query a head, got 2"),
    ("paged_dot", {"query": torch.zeros(2, 3, 1, 8)}, ValueError, r"heads .* got 3 and 2"),
    ("paged_dot", {"query": torch.zeros(1, 4, 1, 8)}, ValueError, r"share batch and dim"),
    ("paged_dot", {"key": torch.zeros(2, 2, 50, 8).int()}, TypeError, r"key to be float32.*int32"),
    ("paged_dot", {"key": torch.zeros(2, 2, 50, 8).bfloat16()}, TypeError, r"one dtype"),
    ("paged_dot", {"begin": torch.tensor([1])}, ValueError, r"begin to be int64 \[2\].* \[1\]"),
    ("paged_dot", {"begin": torch.zeros(2)}, ValueError, r"begin .* got torch.float32 \[2\]"),
    ("paged_dot", {"end": -1}, ValueError, r"end in 0..50, got -1"),
    ("paged_dot", {"end": 51}, ValueError, r"end in 0..50, got 51"),
    ("paged_dot", {"scale": 0.0}, ValueError, r"scale to be positive and finite, got 0.0"),
    ("paged_dot", {"scale": float("nan")}, ValueError, r"scale .* got nan"),
    ("paged_dot", {"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
    ("soft_votes", {"scores": torch.zeros(4, 50)}, ValueError, r"scores .* got .* \[4, 50\]"),
    ("soft_votes", {"scores": torch.zeros(2, 0, 50)}, ValueError, r"H >= 1.* got .* \[2, 0, 50\]"),
    ("soft_votes", {"scores": torch.zeros(2, 4, 50).double()}, ValueError, r"got torch.float64"),
    ("soft_votes", {"impl": "gpu"}, ValueError, r"got 'gpu'"),
    ("top_indices", {"values": torch.zeros(50)}, ValueError, r"values .* got .* \[50\]"),
    ("top_indices", {"values": torch.zeros(2, 50).bfloat16()}, ValueError, r"got torch.bfloat16"),
    ("top_indices", {"k": 0}, ValueError, r"k in 1..50, got 0"),
    ("top_indices", {"k": 51}, ValueError, r"k in 1..50, got 51"),
    ("top_indices", {"impl": "triton"}, ValueError, r"got 'triton'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: f"{row[0]}-{'-'.join(row[1])}")
def test_bad_input_is_named(row):
    name, changes, error, message = row
    FUNCTIONS[name](**GOOD[name])
    with pytest.raises(error, match=message):
        FUNCTIONS[name](**(GOOD[name] | changes))
