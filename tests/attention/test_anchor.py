"""AnchorAttention against its algorithm written out in float64, row by row."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import pytest
import torch
from torch import Tensor

from gossamer.attention import AnchorAttention, LayerState, Meter
from gossamer.patterns import StripePattern
from gossamer.testing import (
    AttentionShape,
    attention_inputs,
    check_close,
    dense_attention,
    visible_keys,
)

METHOD = AnchorAttention(theta=2.2, block=16, step=2, dense_layers=0)
SCALE = 0.5
LONG = AttentionShape(2, 4, 2, 300, 300, 8)  # not a multiple of a block or group
CHUNK = AttentionShape(2, 4, 2, 260, 331, 8)  # a cache whose length is none either


@dataclass
class Expected:
    near: Tensor  # [B, 1, q_len, k_len] bool: sinks and local part
    stripes: Tensor  # [B, lists, groups, k_len] bool
    margin: float  # distance of the closest score to its threshold
    searched: int


def expected(
    method: AnchorAttention, query: Tensor, key: Tensor, starts: list[int] | None
) -> Expected:
    """The three steps of the method with loops."""
    (batch, heads, q_len, _), (kv_heads, k_len) = query.shape, key.shape[1:3]
    b, step, offset = method.block, method.step_for(q_len), k_len - q_len
    group = b * step
    groups = -(-q_len // group)
    lists = heads if method.share == "head" else kv_heads
    near = torch.zeros(batch, 1, q_len, k_len, dtype=torch.bool)
    stripes = torch.zeros(batch, lists, groups, k_len, dtype=torch.bool)
    margin, searched = inf, 0
    for n in range(batch):
        start = 0 if starts is None else starts[n]
        sink = (-(-start // b) + method.sink_blocks) * b
        for g in range(groups):
            first = g * group + offset
            local = max(sink, (first // b - method.local_blocks) * b)
            for i in range(g * group, min(q_len, (g + 1) * group)):
                near[n, 0, i, start : min(sink, i + offset + 1)] = True
                near[n, 0, i, local : i + offset + 1] = True
            for h in range(heads):
                keys = key[n, h * kv_heads // heads].double()
                for top in range(g * group, min(q_len, (g + 1) * group), b):
                    rows = [
                        i for i in range(top, min(q_len, top + b)) if i + offset >= start
                    ]  # the last block is short, padding has no say
                    if not rows:
                        continue
                    searched += local - sink
                    logits = query[n, h, rows].double() @ keys.T * SCALE
                    anchor = logits.masked_fill(~near[n, 0, rows], -inf).amax(1).mean()
                    pooled = query[n, h, rows].double().mean(0) @ keys.T * SCALE
                    hit = pooled[sink:local] + method.theta >= anchor
                    stripes[n, h * lists // heads, g, sink:local] |= hit
                    gaps = (pooled[sink:local] + method.theta - anchor).abs()
                    margin = min([margin, *gaps.tolist()])
    return Expected(near, stripes, margin, searched)


def spread(stripes: Tensor, heads: int, group: int, q_len: int) -> Tensor:
    """Stripes of the lists as a mask [B, heads, q_len, k_len]."""
    mask = stripes.repeat_interleave(heads // stripes.shape[1], 1)
    return mask.repeat_interleave(group, 2)[:, :, :q_len]


@pytest.mark.parametrize("starts", [None, [0, 45]], ids=["full", "padded"])
@pytest.mark.parametrize("shape", [LONG, CHUNK], ids=["prompt", "chunk"])
@pytest.mark.parametrize(
    "method",
    [
        METHOD,
        replace(METHOD, step=1, local_blocks=0, theta=2.75),
        replace(METHOD, step=3, share="group", sink_blocks=2),
        replace(METHOD, step=16, local_blocks=3),
        replace(METHOD, theta=1.7),
    ],
    ids=str,
)
def test_follows_the_algorithm(
    method: AnchorAttention, shape: AttentionShape, starts: list[int] | None
) -> None:
    query, key, value = attention_inputs(shape)
    state = LayerState(
        scale=SCALE,
        key_start=None if starts is None else torch.tensor(starts),
        value=value,
        meter=Meter(),
    )
    right = expected(method, query, key, starts)
    assert right.margin > 1e-5  # no score so close that rounding decides
    assert bool(right.stripes.any())
    assert not bool(right.stripes.all())
    selection = method.select(query, key, state)
    pattern = selection.pattern
    assert isinstance(pattern, StripePattern)
    assert torch.equal(pattern.validate().to_mask(), right.stripes)
    group = method.block * method.step_for(shape.q_len)
    far = spread(right.stripes, shape.heads, group, shape.q_len)
    assert not bool((far & right.near).any())
    check_close(
        method(query, key, value, state),
        dense_attention(query, key, value, far | right.near, scale=SCALE).output,
        5e-6 * float(value.abs().max()),
    )
    if starts is None:
        assert selection.searched == right.searched
        causal = visible_keys(None, query, key)
        assert state.meter is not None
        assert state.meter.density == pytest.approx(
            float((far | right.near).sum() / causal.sum()), rel=1e-6
        )


@pytest.mark.parametrize("starts", [None, [0, 45]], ids=["full", "padded"])
@pytest.mark.parametrize("shape", [LONG, CHUNK], ids=["prompt", "chunk"])
@pytest.mark.parametrize(("step", "sinks", "locals_"), [(1, 1, 0), (2, 3, 1), (5, 1, 40)])
def test_tiles_the_causal_area(
    shape: AttentionShape, starts: list[int] | None, step: int, sinks: int, locals_: int
) -> None:
    """Sinks, stripes and local part do not overlap; with theta = inf nothing is missing."""
    method = replace(METHOD, step=step, sink_blocks=sinks, local_blocks=locals_)
    query, key, value = attention_inputs(shape)
    start = None if starts is None else torch.tensor(starts)
    causal = visible_keys(None, query, key, key_start=start)
    bound = 5e-6 * float(value.abs().max())
    state = LayerState(scale=SCALE, key_start=start, value=value)

    everything = replace(method, theta=inf)
    pattern = everything.select(query, key, state).pattern
    assert isinstance(pattern, StripePattern)
    near = expected(method, query, key, starts).near
    far = spread(pattern.to_mask(), 4, method.block * method.step_for(shape.q_len), shape.q_len)
    assert not bool((far & near).any())
    real = causal.any(-1)  # rows that are not padding
    assert torch.equal((far | near)[real] & causal[real], causal[real])
    exact = dense_attention(query, key, value, causal, scale=SCALE).output
    check_close(everything(query, key, value, state), exact, bound)

    nothing = replace(method, theta=-inf)
    state = LayerState(scale=SCALE, key_start=start, value=value)
    pattern = nothing.select(query, key, state).pattern
    assert isinstance(pattern, StripePattern)
    assert pattern.density() == 0.0
    exact = dense_attention(query, key, value, near, scale=SCALE).output
    check_close(nothing(query, key, value, state), exact, bound)


def test_a_stripe_may_exceed_the_anchor() -> None:
    """The softmax goes on truly online: a far key with the largest logit of all takes all."""
    query, key, value = attention_inputs(LONG)
    query, key[:, :, 100] = query.abs(), 40.0
    state = LayerState(scale=SCALE, value=value)
    pattern = METHOD.select(query, key, state).pattern
    assert isinstance(pattern, StripePattern)
    found = METHOD(query, key, value, state)
    assert bool(pattern.to_mask()[:, :, 5:, 100].all())
    expected = value[:, :, 100:101].repeat_interleave(2, 1).expand(-1, -1, 140, -1)
    check_close(found[:, :, 160:], expected.double(), 1e-4)


def test_a_group_shares_what_any_of_its_heads_hits() -> None:
    query, key, value = attention_inputs(LONG)
    state = LayerState(scale=SCALE, value=value)
    each = METHOD.select(query, key, state).pattern
    shared = replace(METHOD, share="group").select(query, key, state).pattern
    assert isinstance(each, StripePattern)
    assert isinstance(shared, StripePattern)
    assert torch.equal(shared.to_mask(), each.to_mask().unflatten(1, (2, 2)).any(2))


def test_theta_orders_the_stripes() -> None:
    query, key, value = attention_inputs(LONG)
    masks = []
    for theta in (1.7, 2.0, 2.3, 3.0, 12.0):
        state = LayerState(scale=SCALE, value=value)
        pattern = replace(METHOD, theta=theta).select(query, key, state).pattern
        assert isinstance(pattern, StripePattern)
        masks.append(pattern.to_mask())
    for fewer, more in pairwise(masks):
        assert bool((more | ~fewer).all())
        assert int(more.sum()) > int(fewer.sum())


def test_stays_dense_where_told() -> None:
    query, key, value = attention_inputs(LONG)
    method = replace(METHOD, dense_layers=2)
    first, third = (LayerState(layer=layer, scale=SCALE, value=value) for layer in (1, 2))
    assert method.select(query, key, first).pattern is None
    assert method.select(query, key, third).pattern is not None
    decode = METHOD.select(query[:, :, :1], key, LayerState(scale=SCALE, value=value))
    assert decode.pattern is None


@pytest.mark.parametrize(
    ("q_len", "step"), [(1, 1), (255, 1), (512, 2), (1023, 3), (2047, 7), (2048, 16), (10**6, 16)]
)
def test_short_prompts_take_shorter_groups(q_len: int, step: int) -> None:
    """From 8 groups on the step is kept; below, at least 16 groups are left."""
    assert AnchorAttention(block=16, step=16).step_for(q_len) == step
    assert AnchorAttention(block=16, step=1).step_for(q_len) == 1
