"""A decoder block in two native calls, against the same formulas in float64."""

import copy
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import pack, pack_lossless
from gossamer.kernels.backend import instruction_sets
from gossamer.kernels.decoder_block import LINEARS, DecoderBlock
from gossamer.testing import random_mask

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="native kernels are not built")

EPS = 1e-5
STORED = [pack, partial(pack, dtype=torch.bfloat16), pack_lossless]


def weights(
    width: int, heads: int, kv_heads: int, head: int, inner: int, density: float
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width + heads)
    query, narrow = heads * head, kv_heads * head
    shapes = (
        *((query, width), (narrow, width), (narrow, width), (width, query)),
        *((inner, width), (inner, width), (width, inner)),
    )
    return {
        name: (
            torch.randn(*shape, generator=generator)
            * random_mask(shape, density=density, seed=place)
            / math.sqrt(max(1.0, density * shape[1]))
        )
        .bfloat16()
        .float()
        for place, (name, shape) in enumerate(zip(LINEARS, shapes, strict=True))
    }


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos[:, None, None] + torch.cat([-high, low], -1) * sin[:, None, None]


def before(dense: dict[str, Tensor], head: int, x: Tensor, norm: Tensor, cos: Tensor, sin: Tensor):
    normed = rms_norm(x.double(), norm.double())
    query, key, value = (
        (normed @ dense[name].double().T).view(len(x), -1, 1, head)
        for name in ("query", "key", "value")
    )
    angles = cos.double(), sin.double()
    return rotated(query, *angles), rotated(key, *angles), value


def after(dense: dict[str, Tensor], attended: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    d = {name: weight.double() for name, weight in dense.items()}
    y = x.double() + attended.double() @ d["out"].T
    normed = rms_norm(y, norm.double())
    return y + (F.silu(normed @ d["gate"].T) * (normed @ d["up"].T)) @ d["down"].T


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([1, 8, 31, 64, 130]),
    st.sampled_from([(1, 1, 2), (4, 2, 8), (3, 1, 16), (2, 2, 34)]),
    st.sampled_from([1, 15, 17, 96]),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(STORED),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_both_sides_match_their_formulas(
    width, heads, inner, tokens, density, stored, shared, threads
):
    heads, kv_heads, head = heads
    dense = weights(width, heads, kv_heads, head, inner, density)
    block = DecoderBlock({name: stored(w) for name, w in dense.items()}, head)
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, width, generator=generator)
    norms = 1 + torch.randn(2, width, generator=generator) / 4
    angles = torch.randn(1 if shared else tokens, head, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = block.before(x, norms[0], EPS, cos, sin)
        attended = torch.randn(tokens, heads * head, generator=generator)
        result = block.after(attended, x, norms[1], EPS)
    finally:
        torch.set_num_threads(threads_before)
    for ours, exact in zip(found, before(dense, head, x, norms[0], cos, sin), strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    exact = after(dense, attended, x, norms[1])
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", [-200.0, -88.0, -1e-3, 0.0, 1e-3, 88.0, 200.0])
def test_the_gate_saturates_as_silu_does(gate):
    one = torch.ones(1, 1)
    dense = {name: one for name in LINEARS}
    dense["query"] = dense["key"] = dense["value"] = torch.ones(2, 1)
    dense |= {"out": torch.zeros(1, 2), "gate": gate * one}
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 2)
    found = block.after(torch.zeros(1, 2), one, torch.ones(1), 0.0)
    expected = 1 + F.silu(torch.tensor(gate, dtype=torch.float64))
    torch.testing.assert_close(found.double().squeeze(), expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_a_number_is_not_hidden():
    dense = weights(8, 2, 1, 4, 6, 1.0)
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)
    x = torch.ones(2, 8)
    x[1, 3] = math.nan
    result = block.after(torch.ones(2, 8), x, torch.ones(8), EPS)
    assert bool(result[0].isfinite().all())
    assert bool(result[1].isnan().any())


def test_nothing_that_is_read_changes():
    dense = weights(8, 2, 1, 4, 6, 0.5)
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)
    operands = [torch.randn(3, 8), torch.rand(8), torch.rand(3, 4), torch.rand(3, 4)]
    kept = copy.deepcopy(operands)
    x, norm, cos, sin = operands
    block.before(x, norm, EPS, cos, sin)
    block.after(x, x, norm, EPS)
    assert all(torch.equal(a, b) for a, b in zip(operands, kept, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_a_copy_computes_the_same(duplicate):
    dense = weights(8, 2, 1, 4, 6, 0.5)
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)
    x = torch.randn(1, 8)
    arguments = (x, x, torch.ones(8), EPS)
    assert torch.equal(duplicate(block).after(*arguments), block.after(*arguments))


BAD_WEIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"key": torch.ones(5, 8)}, r"value: expected \(5, 8\), got \(4, 8\)"),
    ({"value": torch.ones(8, 8)}, r"value: expected \(4, 8\), got \(8, 8\)"),
    ({"gate": torch.ones(7, 8)}, r"gate: expected \(6, 8\), got \(7, 8\)"),
    ({"down": torch.ones(8, 7)}, r"down: expected \(8, 6\), got \(8, 7\)"),
    ({"query": torch.ones(8, 9)}, r"query: expected \(8, 8\), got \(8, 9\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_named(changes, message):
    dense = weights(8, 2, 1, 4, 6, 1.0) | changes
    with pytest.raises(ValueError, match=message):
        DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)


@pytest.mark.parametrize("head", [0, 1, 3, 8, -2])
def test_a_head_that_does_not_fit_is_refused(head):
    dense = weights(8, 2, 1, 4, 6, 1.0)
    with pytest.raises(ValueError, match="an even head that divides 8 and 4"):
        DecoderBlock({name: pack(weight) for name, weight in dense.items()}, head)


GOOD: dict[str, Any] = {
    "x": torch.ones(2, 8),
    "norm": torch.ones(8),
    "eps": EPS,
    "cos": torch.ones(2, 4),
    "sin": torch.ones(2, 4),
}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.ones(2, 7)}, ValueError, r"x of \[n, 8\]"),
    ({"x": torch.ones(2, 1, 8)}, ValueError, r"x of \[n, 8\]"),
    ({"norm": torch.ones(7)}, ValueError, r"norm of \[8\]"),
    ({"x": torch.ones(0, 8)}, ValueError, r"1..16 tokens, got 0"),
    ({"x": torch.ones(17, 8)}, ValueError, r"1..16 tokens, got 17"),
    ({"x": torch.ones(2, 8).double()}, TypeError, r"x to be contiguous float32 .*float64"),
    ({"x": torch.ones(8, 2).T}, TypeError, r"x to be contiguous"),
    ({"norm": torch.ones(8).bfloat16()}, TypeError, r"norm to be contiguous float32"),
    ({"cos": torch.ones(3, 4)}, ValueError, r"\[2 or 1, 4\], got \[3, 4\] and \[2, 4\]"),
    ({"sin": torch.ones(2, 4).half()}, TypeError, r"sin to be contiguous float32"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    dense = weights(8, 2, 1, 4, 6, 1.0)
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)
    block.before(**GOOD)
    with pytest.raises(error, match=message):
        block.before(**(GOOD | changes))


def test_what_attention_returned_is_checked():
    dense = weights(8, 2, 1, 4, 6, 1.0)
    block = DecoderBlock({name: pack(weight) for name, weight in dense.items()}, 4)
    with pytest.raises(ValueError, match=r"attended of \[2, 8\], got \[2, 4\]"):
        block.after(torch.ones(2, 4), torch.ones(2, 8), torch.ones(8), EPS)
