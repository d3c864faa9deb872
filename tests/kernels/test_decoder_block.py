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

from gossamer.kernels import (
    Vote,
    VoteMemory,
    block_sparse_attention,
    gathered_attention,
    pack,
    pack_lossless,
    vote_step,
)
from gossamer.kernels.backend import instruction_sets
from gossamer.kernels.decoder_block import LINEARS, DecoderBlock
from gossamer.kernels.decoder_block.steps import block_step, run_steps
from gossamer.patterns import TokenPattern, Window
from gossamer.testing import random_mask, rotary_tables

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="native kernels are not built")

EPS = 1e-5
CPU = torch.device("cpu")
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


HEADS = {"width": 31, "heads": 4, "kv_heads": 2, "head": 8, "inner": 17, "density": 0.5}


def caches(sequences: int, k_len: int, guarded=lambda part: part) -> tuple[Tensor, Tensor]:
    """Keys and values [n, 2, k_len, 8] that lie apart in memory, as those of a growing cache."""
    room = torch.randn(2, sequences, 2, k_len + 3, 8, generator=torch.Generator().manual_seed(9))
    key, value = (guarded(part) for part in room)
    return key[:, :, :k_len], value[:, :, :k_len]


@pytest.mark.parametrize("rotate_keys", [True, False])
@pytest.mark.parametrize("sequences", [1, 3])
def test_keys_and_values_go_to_the_end_of_a_cache(sequences, rotate_keys, guarded):
    dense = weights(**HEADS)
    block = DecoderBlock({name: pack(w) for name, w in dense.items()}, 8)
    x, norm = torch.randn(sequences, 31), torch.ones(31)
    angles = torch.randn(sequences, 8)
    angles = angles.cos(), angles.sin()
    into = caches(sequences, 20, guarded)
    past = [part[:, :, :-1].clone() for part in into]
    found = block.before(x, norm, EPS, *angles, into=into, rotate_keys=rotate_keys)
    assert found[1] is into[0] and found[2] is into[1]
    query, key, value = before(dense, 8, x, norm, *angles)
    if not rotate_keys:
        key = before(dense, 8, x, norm, torch.ones(1, 8), torch.zeros(1, 8))[1]
    torch.testing.assert_close(found[0].double(), query, rtol=1e-4, atol=1e-4)
    for part, new, old in zip(into, (key, value), past, strict=True):
        torch.testing.assert_close(part[:, :, -1:].double(), new, rtol=1e-4, atol=1e-4)
        assert torch.equal(part[:, :, :-1], old)


LISTS = torch.tensor([[[[0, 3, 4, 19]], [[1, 2, -1, -1]]], [[[5, 19, -1, -1]], [[-1] * 4]]]).int()


CHOICES: list[dict[str, Any]] = [
    {},
    {"key_start": torch.tensor([0, 7])},
    {"window": Window(sink=2, local=5)},
    {"pattern": TokenPattern(LISTS, group=1, k_len=20)},
    {"pattern": TokenPattern(LISTS[:, :1].contiguous(), group=1, k_len=20)},
    {"pattern": TokenPattern(LISTS[:, :, :, :0].contiguous(), group=1, k_len=20)},
    {"pattern": TokenPattern(LISTS, group=1, k_len=20), "rotary": rotary_tables(6, 8)},
]


@pytest.mark.parametrize("options", CHOICES)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_and_what_follows_it_are_one_call(options, threads, guarded):
    dense = weights(**HEADS)
    block = DecoderBlock({name: pack(w) for name, w in dense.items()}, 8)
    x, norm, query = torch.randn(2, 31), 1 + torch.randn(31) / 4, torch.randn(2, 4, 1, 8)
    key, value = caches(2, 20, guarded)
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        strided = torch.stack([query, query], -1)[..., 0]  # as a method may return it
        found = block.attend(strided, key, value, x, norm, EPS, scale=0.3, **options)
    finally:
        torch.set_num_threads(before_threads)
    kernel = gathered_attention if "pattern" in options else block_sparse_attention
    attended = kernel(query, key, value, scale=0.3, impl="reference", **options)
    exact = after(dense, attended.reshape(2, -1), x, norm)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def chain(blocks: int, sequences: int, **options):
    """Blocks, their caches and norms, and the steps of a token through them."""
    built, parts, steps = [], [], []
    for place in range(blocks):
        dense = weights(31, 4, 2, 8, 17, 0.9 - place / 8)
        built.append(DecoderBlock({name: pack(w) for name, w in dense.items()}, 8))
        generator = torch.Generator().manual_seed(place)
        norms = tuple(1 + torch.randn(2, 31, generator=generator) / 4)
        key, value = (part + place for part in caches(sequences, 20))
        parts.append((key, value, norms))
        steps.append(block_step(built[-1], key, value, norms, (EPS, 2 * EPS), scale=0.3, **options))
    return built, parts, steps


@pytest.mark.parametrize("options", CHOICES)
@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("rotate_keys", [True, False])
def test_steps_are_their_blocks_one_by_one(blocks, options, rotate_keys):
    built, parts, steps = chain(blocks, 2, rotate_keys=rotate_keys, **options)
    x, angles = torch.randn(2, 1, 31), torch.randn(2, 1, 8)
    angles = angles.cos(), angles.sin()
    exact, mine = x, x
    kept = [(key.clone(), value.clone()) for key, value, _ in parts]
    for block, (key, value), (_, _, norms) in zip(built, kept, parts, strict=True):
        query, *_ = block.before(
            exact, norms[0], EPS, *angles, into=(key, value), rotate_keys=rotate_keys
        )
        exact = block.attend(query, key, value, exact, norms[1], 2 * EPS, scale=0.3, **options)
    mine, scored = run_steps(steps, x, *angles)
    assert torch.equal(mine, exact) and scored == [0] * blocks
    for (key, value, _), cache in zip(parts, kept, strict=True):
        assert torch.equal(key, cache[0]) and torch.equal(value, cache[1])


@pytest.mark.parametrize("rotate_keys", [True, False])
def test_a_vote_is_cast_between_the_halves_of_a_block(rotate_keys):
    votes = [VoteMemory.empty([0, 3], sink=2, k=4, local=5, device=CPU) for _ in range(2)]
    angles = torch.randn(1, 4).repeat(1, 2)
    angles = angles.cos(), angles.sin()
    undo = tuple(part[:, None, :4] * sign for part, sign in zip(angles, (1, -1), strict=True))
    dense = weights(31, 4, 2, 8, 17, 0.9)
    block = DecoderBlock({name: pack(w) for name, w in dense.items()}, 8)
    norms, room = (torch.ones(31), torch.ones(31)), caches(2, 24)
    caches_of = [[part.clone() for part in room] for _ in range(2)]
    step = None
    for k_len in (21, 22, 24):
        (key, value), (own_key, own_value) = (
            [part[:, :, :k_len] for part in cache] for cache in caches_of
        )
        own = Vote(votes[0], 0.5 if k_len < 24 else 1.1)
        x = torch.randn(2, 31)
        pattern = TokenPattern(votes[0].tokens[:, None, None], group=1, k_len=k_len)
        if step is None or k_len == 24 or not step.follow(own_key, own_value):
            step = block_step(
                block, own_key, own_value, norms, (EPS, EPS), scale=0.3, rotate_keys=rotate_keys,
                pattern=pattern, vote=own,
            )  # fmt: skip
        found, (scored,) = run_steps([step], x, *angles)
        query, *_ = block.before(
            x, norms[0], EPS, *angles, into=(key, value), rotate_keys=rotate_keys
        )
        vote = Vote(votes[1], own.threshold, None if rotate_keys else undo)
        query, expected = vote_step(vote, query, key)
        tokens = votes[1].tokens[:, None, None]
        pattern = TokenPattern(tokens, group=1, k_len=k_len)
        exact = block.attend(query, key, value, x, norms[1], EPS, scale=0.3, pattern=pattern)
        assert scored == expected
        assert torch.equal(votes[0].tokens, votes[1].tokens)
        assert (votes[0].hits, votes[0].asked) == (votes[1].hits, votes[1].asked)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_a_step_follows_its_cache_alone():
    _, parts, (step,) = chain(1, 2)
    key, value, _ = parts[0]
    assert step.follow(key[:, :, :12], value[:, :, :12]) and step.key.shape[2] == 12
    assert not step.follow(key.clone(), value) and not step.follow(key, value.clone())
    memory = VoteMemory.empty([0, 0], sink=2, k=4, local=5, device=CPU)
    pattern = TokenPattern(memory.tokens[:, None, None], group=1, k_len=20)
    _, parts, (step,) = chain(1, 2, pattern=pattern, vote=Vote(memory, 0.9))
    memory.query = torch.ones(2, 4, 1, 8)  # another step voted first
    assert not step.follow(*parts[0][:2])


def test_steps_that_do_not_fit_are_refused():
    memory = VoteMemory.empty([0, 0], sink=2, k=4, local=5, device=CPU)
    tokens = memory.tokens[:, None, None]
    pattern = TokenPattern(tokens, group=1, k_len=20)
    other = TokenPattern(tokens.clone(), group=1, k_len=20)
    for options in (
        {"vote": Vote(memory, 0.9)},
        {"vote": Vote(memory, 0.9), "pattern": other},
        {"vote": Vote(memory, 0.9, count=torch.sum), "pattern": pattern},
    ):
        with pytest.raises(ValueError, match="a vote by softmax on the tokens"):
            chain(1, 2, **options)
    _, parts, steps = chain(1, 2)
    x, angles = torch.randn(3, 31), torch.ones(1, 8)
    before_step = [part.clone() for part in parts[0][:2]]
    with pytest.raises(ValueError, match="blocks for 3 tokens"):
        run_steps(steps, x, angles, angles)
    with pytest.raises(ValueError, match="cos and sin"):
        run_steps(steps, x[:2], angles[:, :4], angles)
    with pytest.raises(TypeError, match="x to be contiguous float32"):
        run_steps(steps, x[:2].double(), angles, angles)
    assert all(torch.equal(*pair) for pair in zip(parts[0][:2], before_step, strict=True))


def test_steps_read_no_more_than_they_name(guarded):
    built, parts, _ = chain(2, 2)
    x, angles = guarded(torch.randn(2, 31)), guarded(torch.ones(1, 8))
    steps = []
    for block, (_, _, norms) in zip(built, parts, strict=True):
        cache, norms = caches(2, 20, guarded), tuple(map(guarded, norms))
        steps.append(block_step(block, *cache, norms, (EPS, EPS), scale=0.3))
    assert bool(run_steps(steps, x, angles, angles)[0].isfinite().all())


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"query": torch.randn(2, 4, 2, 8)}, ValueError, "query"),
        ({"query": torch.randn(2, 4, 1, 8).double()}, TypeError, "query"),
        ({"key": torch.randn(2, 2, 19, 8)}, ValueError, "value"),
        ({"key": torch.randn(3, 2, 20, 8)}, ValueError, "key"),
        ({"value": torch.randn(2, 2, 20, 8).bfloat16()}, TypeError, "value"),
        ({"value": torch.randn(2, 2, 20, 16)[..., ::2]}, ValueError, "value"),
        ({"scale": -1.0}, ValueError, "scale"),
        ({"pattern": TokenPattern(LISTS, group=1, k_len=21)}, ValueError, "pattern"),
        ({"rotary": rotary_tables(3, 8)}, ValueError, "rows for lists of 4"),
        ({"key_start": torch.tensor([0, 99])}, ValueError, "key_start"),
    ],
)
def test_caches_that_do_not_fit_are_refused(change, error, named):
    block = DecoderBlock({name: pack(w) for name, w in weights(**HEADS).items()}, 8)
    key, value = caches(2, 20)
    given = {"query": torch.randn(2, 4, 1, 8), "key": key, "value": value, "scale": 1.0}
    given |= {"x": torch.randn(2, 31), "norm": torch.ones(31), "eps": EPS}
    given |= {"pattern": TokenPattern(LISTS, group=1, k_len=20)} | change
    with pytest.raises(error, match=named):
        block.attend(**given)


def test_tokens_may_come_as_a_model_holds_them():
    block = DecoderBlock({name: pack(w) for name, w in weights(**HEADS).items()}, 8)
    x, norm, angles = torch.randn(3, 31), torch.ones(31), torch.randn(3, 8)
    flat = block.before(x, norm, EPS, angles, angles)
    found = block.before(x[:, None], norm, EPS, angles[:, None], angles[:, None])
    assert all(torch.equal(*pair) for pair in zip(flat, found, strict=True))
    attended = torch.randn(3, 32)
    found = block.after(attended, x[:, None], norm, EPS)
    assert torch.equal(found, block.after(attended, x, norm, EPS)[:, None])


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
    ({"x": torch.ones(2, 2, 8)}, ValueError, r"x of \[n, 8\]"),
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
