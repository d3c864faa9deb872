from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attention import AttentionMethod, LayerState, Meter, Selection, use
from gossamer.kernels import block_sparse_state
from gossamer.measure import causal_pairs
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window
from gossamer.testing import (
    AttentionShape,
    attention_inputs,
    check_close,
    dense_attention,
    random_mask,
    ranked_attention,
    rotary_tables,
    visible_keys,
)

SHAPE = AttentionShape(2, 4, 2, 70, 100, 16)
DECODE = AttentionShape(2, 4, 2, 1, 100, 16)
STARTS = torch.tensor([0, 37])


@dataclass(frozen=True, eq=False)
class Chosen(AttentionMethod):
    """Attends to whatever selection it is given."""

    selection: Selection

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        assert state.value is not None
        return self.selection


def patterns(shape: AttentionShape) -> list[tuple[Any, Window | None]]:
    """One pattern of each kind, with the heads of the query, of the keys, and alone."""
    tokens, stripes, blocks = (
        random_mask(shape.tiles(height, width, heads), density=0.3, seed=heads)
        for height, width, heads in ((10, 1, 1), (30, 1, 2), (16, 16, 4))
    )
    return [
        (None, None),
        (None, Window(3, 10)),
        (TokenPattern.from_mask(tokens, group=10), None),
        (StripePattern.from_mask(stripes, group=30), None),
        (BlockPattern.from_mask(blocks, block=16), None),
        (BlockPattern.from_mask(blocks, block=16), Window(3, 40)),
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", range(6))
def test_attends_to_its_selection(case: int, padded: bool) -> None:
    query, key, value = attention_inputs(SHAPE)
    pattern, window = patterns(SHAPE)[case]
    start = STARTS if padded else None
    state = LayerState(scale=0.3, key_start=start)
    found = Chosen(Selection(pattern, window))(query, key, value, state)
    mask = visible_keys(pattern, query, key, window=window, key_start=start)
    exact = dense_attention(query, key, value, mask, scale=0.3).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))
    assert state.value is None


def test_resumes_and_ranks() -> None:
    query, key, value = attention_inputs(SHAPE)
    state = LayerState(scale=0.25)
    window = Window(0, 20)
    seen = visible_keys(None, query, key, window=window)
    rest = StripePattern.from_mask(torch.zeros(2, 1, 1, 100, dtype=torch.bool), group=70)
    rest = StripePattern.from_mask(rest.to_mask().index_fill(3, torch.arange(5), True), group=70)
    resumed = block_sparse_state(query, key, value, window=window, scale=0.25)
    found = Chosen(Selection(rest, resumed=resumed))(query, key, value, state)
    exact = dense_attention(query, key, value, seen | (torch.arange(100) < 5), scale=0.25).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))

    lists = patterns(SHAPE)[2][0]
    rotary, turned = rotary_tables(100, 16), torch.randn_like(query)
    found = Chosen(Selection(lists, query=turned, rotary=rotary))(query, key, value, state)
    exact = ranked_attention(turned, key, value, lists, rotary, scale=0.25).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))


@pytest.mark.parametrize("shape", [SHAPE, DECODE], ids=["prompt", "decode"])
@pytest.mark.parametrize("case", range(6))
def test_meter_counts_every_pair(case: int, shape: AttentionShape) -> None:
    query, key, _ = attention_inputs(shape, dtype=torch.bfloat16)
    pattern, window = patterns(shape)[case]
    meter = Meter()
    selection = Selection(pattern, window, resumed_pairs=11, searched=70, bytes_read=5)
    meter.add(selection, tuple(query.shape), key)
    visible = visible_keys(pattern, query, key, window=window)
    causal = int(visible_keys(None, query, key).sum())
    assert causal == 8 * causal_pairs(shape.q_len, 100)
    assert round(meter.density * causal) == int(visible.sum()) + 11
    assert round(meter.selection_share * causal) == 70
    listed = visible_keys(pattern, query, key, causal=shape.q_len > 1, window=window)
    # Query heads that share both a list and a key head read its keys once.
    read = 0
    for b in range(2):
        for kv_head in range(2):
            group = [tuple(listed[b, h, -1].tolist()) for h in (2 * kv_head, 2 * kv_head + 1)]
            separate = pattern is not None and pattern.shape[1] == 4
            read += sum(map(sum, group if separate else group[:1]))
    assert meter.bytes_read == (2 * read * 16 * 2 + 5 if shape.q_len == 1 else 0)


def test_meter_adds_calls_up() -> None:
    query, key, _ = attention_inputs(AttentionShape(1, 4, 2, 10, 10, 8))
    meter = Meter()
    assert (meter.density, meter.selection_share, meter.bytes_read) == (0.0, 0.0, 0)
    meter.add(Selection(), tuple(query.shape), key)
    assert meter.density == 1.0
    meter.add(Selection(window=Window(0, 1), searched=110), tuple(query.shape), key)
    assert meter.density == (55 + 10) / 110
    assert meter.selection_share == 110 / 440


def test_meter_keeps_lists_as_they_were() -> None:
    """A method may extend the list of its last step in place."""
    query, key, _ = attention_inputs(DECODE)
    meter, tokens = Meter(), torch.full((2, 1, 1, 5), -1, dtype=torch.int32)
    tokens[..., 0] = 7
    meter.add(Selection(TokenPattern(tokens, group=1, k_len=100)), tuple(query.shape), key)
    tokens[..., 1] = 8
    assert meter.density == 1 / 100


def test_metered_state_counts_the_call() -> None:
    query, key, value = attention_inputs(SHAPE)
    meter = Meter()
    Chosen(Selection(window=Window(0, 1)))(query, key, value, LayerState(meter=meter))
    assert meter.density == 70 / causal_pairs(70, 100)


def test_training_fails_loudly() -> None:
    query, key, value = (t.requires_grad_() for t in attention_inputs(SHAPE))
    output = AttentionMethod()(query, key, value, LayerState())
    with pytest.raises(ValueError, match=r"backward pass.*try torch\.no_grad"):
        output.sum().backward()
    assert query.grad is None
    with torch.no_grad():
        again = AttentionMethod()(query, key, value, LayerState())
    assert not again.requires_grad
    assert torch.equal(again, output)


def test_use_attaches_on_entering_only() -> None:
    from gossamer.testing.attention import tiny_llama

    model = tiny_llama()
    context = use(model, AttentionMethod())
    assert model.config._attn_implementation != "gossamer"
    with context as attachment:
        assert attachment.method == AttentionMethod()
        assert model.config._attn_implementation == "gossamer"
