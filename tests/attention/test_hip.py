from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attention import HiPAttention, LayerState, Meter, hip, use
from gossamer.measure import causal_pairs
from gossamer.patterns import TokenPattern
from gossamer.testing import (
    AttentionShape,
    TreeOracle,
    attention_inputs,
    check_close,
    check_key_lists,
    dense_attention,
    tree_search,
    visible_keys,
)
from gossamer.testing.attention import prompt, tiny_llama

METHOD = HiPAttention(k=16, window=16, block_q=16, dense_layers=0, refresh_interval=4)
SETTINGS = [
    METHOD,
    replace(METHOD, block_k=4, query_stride=1, representative="first"),
    replace(METHOD, k=6, block_k=1, block_q=32, query_stride=5, sink=0),
    replace(METHOD, k=10, sparq_dim=5, sink=20, window=4),
]


def oracle(method: HiPAttention, query: Tensor, key: Tensor, state: LayerState) -> TreeOracle:
    decode = query.shape[2] == 1
    representative = method.representative
    assert representative != "random"
    return tree_search(
        query,
        key,
        tokens=method.k,
        block_q=1 if decode else method.block_q,
        block_k=method.block_k,
        window=method.window,
        sink=method.sink,
        query_stride=1 if decode else method.query_stride,
        representative=representative,
        shared_by_group=decode,
        channels=method.sparq_dim,
        key_start=state.key_start,
    )


def lists(method: HiPAttention, query: Tensor, key: Tensor, state: LayerState) -> TokenPattern:
    pattern = method.select(query, key, state).pattern
    assert isinstance(pattern, TokenPattern)
    return pattern


@pytest.mark.parametrize("starts", [None, [0, 77]], ids=["full", "padded"])
@pytest.mark.parametrize("q_len", [150, 37, 1])
@pytest.mark.parametrize("method", SETTINGS, ids=str)
def test_selects_what_the_tree_finds(
    method: HiPAttention, q_len: int, starts: list[int] | None
) -> None:
    query, key, value = attention_inputs(AttentionShape(2, 4, 2, q_len, 150, 8))
    state = LayerState(
        scale=0.4, key_start=None if starts is None else torch.tensor(starts), meter=Meter()
    )
    expected = oracle(method, query, key, state)
    pattern = lists(method, query, key, state)
    assert torch.equal(pattern.to_mask(), expected.selected)
    check_key_lists(
        pattern, q_len, window=method.window, sink=method.sink, key_start=state.key_start
    )
    state.memory = None
    found = method(query, key, value, state)
    mask = visible_keys(pattern, query, key, key_start=state.key_start)
    exact = dense_attention(query, key, value, mask, scale=0.4).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))
    # What it cost: every scored block against the sampled rows of its own query block.
    heads, group = pattern.shape[1], pattern.group
    searched = 0
    for g in range(pattern.shape[2]):
        rows = min(group, q_len - g * group)
        stride = 1 if q_len == 1 else method.query_stride
        sampled = len(range(stride // 2, rows, stride)) or 1
        searched += int(expected.scored[:, :, g].sum()) * sampled * 4 // heads
    causal = 8 * causal_pairs(q_len, 150)
    assert state.meter is not None
    assert round(state.meter.selection_share * causal) == searched * method.block_k
    assert state.meter.density == pytest.approx(
        float(visible_keys(pattern, query, key).sum()) / causal
    )
    if q_len == 1:
        listed, scored = int(pattern.counts.sum()), int(expected.scored.sum())
        assert state.meter.bytes_read == (2 * listed + scored * method.block_k) * 8 * 4


@pytest.mark.parametrize("length", [200, 777, 4096])
def test_scores_grow_with_the_logarithm(length: int) -> None:
    query, key, value = attention_inputs(AttentionShape(1, 4, 2, 1, length, 8))
    state = LayerState(meter=Meter())
    METHOD(query, key, value, state)
    nodes, blocks = METHOD.k // METHOD.block_k, ceil((length - METHOD.window) / METHOD.block_k)
    most = 2 * nodes * ceil(log2(blocks / nodes)) * METHOD.block_k
    assert state.meter is not None
    searched = round(state.meter.selection_share * length * 4)
    assert 0 < searched <= most * 4
    assert state.meter.bytes_read <= (most + 2 * (16 + 16 + 4)) * 2 * 8 * 4
    assert state.meter.density <= (16 + 16 + 4) / length


@pytest.mark.parametrize("q_len", [32, 1])
def test_never_reads_the_other_keys(q_len: int) -> None:
    """Keys that no search scores and no list holds are poison, and do not matter."""
    query, key, value = attention_inputs(AttentionShape(1, 4, 2, q_len, 900, 8))
    state = LayerState(scale=0.4)
    found = oracle(METHOD, query, key, state)
    listed = found.selected.any(2).unflatten(1, (2, -1)).any(2)  # [B, H_kv, k_len]
    scored_or_listed = found.read | listed
    before = METHOD(query, key, value, state)
    assert scored_or_listed.float().mean() < 0.75
    key[~scored_or_listed] = torch.nan
    value[~listed] = torch.nan
    after = METHOD(query, key, value, LayerState(scale=0.4))
    assert torch.equal(after, before)


@pytest.mark.parametrize("peak", [1, 620, 2000])
def test_climbs_to_the_peak_of_a_hill(peak: int) -> None:
    """The search assumes that neighbours score alike; where they do, it finds the best keys."""
    query, _, _ = attention_inputs(AttentionShape(1, 4, 2, 1, 1, 8))
    height = 1 - (torch.arange(2048) - peak).abs() / 2048
    key = query.unflatten(1, (2, 2)).mean(2) * height[:, None]
    found = lists(METHOD, query, key, LayerState()).to_mask()[0, :, 0]
    assert bool(found[:, max(0, peak - 6) : peak + 6].all())


class Decoder:
    """Decodes token after token, noting each list and each search."""

    def __init__(self, method: HiPAttention, monkeypatch: pytest.MonkeyPatch) -> None:
        self.method, self.searches = method, 0
        self.query, self.key, self.value = attention_inputs(AttentionShape(2, 4, 2, 200, 200, 8))
        self.state = LayerState(scale=0.4)
        search: Callable[..., Any] = hip.tree_search

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.searches += 1
            return search(*args, **kwargs)

        monkeypatch.setattr(hip, "tree_search", counted)

    def step(self, k_len: int) -> Tensor:
        """Return the mask [B, H_kv, k_len] of the list with `k_len` keys in the cache."""
        query = self.query[:, :, k_len - 1 : k_len]
        return lists(self.method, query, self.key[:, :, :k_len], self.state).to_mask()[:, :, 0]


def test_searches_every_few_steps_and_keeps_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(METHOD, monkeypatch)
    for step in range(13):
        k_len = 150 + step
        mask = decoder.step(k_len)
        assert decoder.searches == 1 + step // METHOD.refresh_interval
        if step % METHOD.refresh_interval == 0:
            searched, at = mask, k_len
        assert mask.shape == (2, 2, k_len)  # one list for the query heads of a key head
        assert torch.equal(mask[..., :at], searched)
        assert bool(mask[..., at:].all())
        assert bool(mask[..., :4].all())
        assert bool(mask[..., -METHOD.window :].all())
        assert int(mask.sum(-1).max()) <= 16 + 16 + 4 + step % METHOD.refresh_interval
        memory = decoder.state.memory
        held = TokenPattern(memory.indices, group=1, k_len=k_len).validate()  # no duplicate
        assert torch.equal(held.counts[..., None], memory.counts)


def test_a_jump_in_length_or_a_prompt_searches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(METHOD, monkeypatch)
    decoder.step(150)
    decoder.step(152)
    assert decoder.searches == 2
    decoder.step(153)
    assert decoder.searches == 2
    METHOD.select(decoder.query[:, :, :150], decoder.key[:, :, :150], decoder.state)
    assert decoder.searches == 3
    decoder.step(154)
    assert decoder.searches == 4


def test_rollback_searches_again() -> None:
    model = tiny_llama()
    with torch.no_grad(), use(model, METHOD) as attachment:
        cache: Any = attachment.new_cache()
        model(prompt(), past_key_values=cache)
        mark = cache.mark()
        model(prompt(1, 1), past_key_values=cache)
        assert all(layer.state.memory is not None for layer in cache.layers)
        branch = cache.fork()
        assert all(layer.state.memory is None for layer in branch.layers)
        cache.rollback(mark)
        assert all(layer.state.memory is None for layer in cache.layers)


def test_stays_dense_where_told() -> None:
    query, key, _ = attention_inputs(AttentionShape(1, 4, 2, 60, 60, 8))
    method = replace(METHOD, dense_layers=2)
    assert method.select(query, key, LayerState(layer=1)).pattern is None
    assert method.select(query, key, LayerState(layer=2)).pattern is not None
    short = key[:, :, : METHOD.k + METHOD.window]
    assert METHOD.select(query[:, :, :32], short, LayerState()).pattern is None


def test_random_representatives_follow_the_seed() -> None:
    query, key, _ = attention_inputs(AttentionShape(1, 4, 2, 64, 300, 8))
    masks = [
        lists(replace(METHOD, representative="random", seed=seed), query, key, LayerState())
        for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0].indices, masks[1].indices)
    assert not torch.equal(masks[0].indices, masks[2].indices)
    check_key_lists(masks[2], 64, window=16, sink=4)


def test_later_blocks_change_nothing() -> None:
    query, key, value = attention_inputs(AttentionShape(1, 4, 2, 160, 200, 8))
    before = METHOD(query, key, value, LayerState(scale=0.4))[:, :, :96]
    key[:, :, 136:], value[:, :, 136:], query[:, :, 96:] = torch.nan, torch.nan, torch.nan
    assert torch.equal(METHOD(query, key, value, LayerState(scale=0.4))[:, :, :96], before)
