"""What is captured is what the model attended with, and recall is what a dense map would say."""

import math

import pytest
import torch

from gossamer.attention import Selection
from gossamer.bench.attention_capture import (
    Captured,
    Kept,
    RecallCurve,
    capture,
    first_tokens,
    mass_recall,
    mean_kept,
    row_mask,
    widened,
)
from gossamer.measure import recall
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window
from gossamer.scores import similarity
from gossamer.testing.attention import prompt, tiny_llama
from gossamer.testing.inputs import rotary_tables
from gossamer.testing.oracles import visible_keys


def tables(n):
    return rotary_tables(n, 16)


def layer(q_len=70, k_len=70, heads=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, h, n, 16, generator=generator)
        for h, n in ((heads, q_len), (2, k_len), (2, k_len))
    )
    return Captured(query, key, value, 0.5, tables)


def logits_of(captured):
    return similarity(captured.query, captured.key, scale=captured.scale)


def causal_softmax(captured):
    hidden = ~visible_keys(None, captured.query, captured.key)
    return logits_of(captured).masked_fill(hidden, -torch.inf).softmax(-1)


def test_captured_layers_attend_as_the_model_did():
    model, ids = tiny_llama(layers=3), prompt(2)
    found = capture(model, ids, [2, 0])
    assert list(found) == [0, 2]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    for index, captured in found.items():
        torch.testing.assert_close(causal_softmax(captured), weights[index])
        assert captured.value.shape == captured.key.shape


def test_capture_stops_after_the_last_layer_wanted_and_restores_the_model():
    model, calls = tiny_llama(layers=3), []
    for index, part in enumerate(model.model.layers):
        part.register_forward_hook(lambda *_, index=index: calls.append(index))
    before = model(prompt()).logits
    calls.clear()
    capture(model, prompt(), [1])
    assert calls == [0]  # layer 1 ends in the middle of its attention
    assert torch.equal(model(prompt()).logits, before)


@pytest.mark.parametrize("layers", [[2], [-1], [0, 5]])
def test_capture_refuses_layers_the_model_lacks(layers):
    with pytest.raises(ValueError, match=r"expected layers of the model, got \["):
        capture(tiny_llama(), prompt(), layers)


def test_heads_each_bring_the_key_head_they_read():
    whole = layer()
    part = whole.heads([3, 0])
    assert torch.equal(logits_of(part), logits_of(whole)[:, [3, 0]])
    assert torch.equal(part.value, whole.value[:, [1, 0]])


def test_upto_is_one_decode_step():
    whole = layer(q_len=50)
    step = whole.upto(33)  # query 13 of 50 sits at position 33
    torch.testing.assert_close(logits_of(step), logits_of(whole)[:, :, 13:14, :34])


def test_raw_keys_lose_their_position():
    key = torch.randn(1, 2, 1, 16).expand(-1, -1, 9, -1)
    cosine, sine = tables(9)
    first, second = key.chunk(2, -1)
    encoded = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    raw = Captured(key, encoded, key, 1.0, tables).with_raw_keys().key
    torch.testing.assert_close(raw, key, rtol=1e-5, atol=1e-6)


def test_tiling_repeats_content_at_new_positions():
    once, twice = layer(), layer().tiled(130)
    logits = logits_of(twice)
    torch.testing.assert_close(logits[..., :70, :70], logits_of(once), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[..., 70:, 70:], logits_of(once)[..., :60, :60],
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    assert torch.equal(twice.value[:, :, 70:], once.value[:, :, :60])


def test_tiling_moves_a_chunk_of_queries_to_the_end():
    once = layer(q_len=8)
    twice = once.tiled(140)
    assert twice.query.shape[2] == 8
    torch.testing.assert_close(logits_of(twice)[..., 70:], logits_of(once), rtol=1e-4, atol=1e-4)


def test_state_is_past_every_dense_layer_and_knows_the_positions():
    captured = layer(q_len=5)
    state = captured.state()
    assert state.layer >= 100 and state.scale == captured.scale
    assert torch.equal(state.rotary[0], tables(70)[0][65:][None])


def test_widened_heads_sum_the_logits_of_two():
    one, two = layer(seed=1), layer(seed=2)
    wide = widened([one, two], key_heads=2, ratio=3)
    assert (wide.query.shape, wide.key.shape) == ((2, 6, 70, 32), (2, 2, 70, 32))
    first, second = logits_of(one), logits_of(two)
    pairs = [(first[:, r % 2], first[:, 2 + (r + r // 2) % 2]) for r in range(3)]
    pairs += [(second[:, r % 2], second[:, 2 + (r + r // 2) % 2]) for r in range(3)]
    expected = torch.stack([a + b for a, b in pairs], 1) * 0.5**0.5
    torch.testing.assert_close(logits_of(wide), expected, rtol=1e-4, atol=1e-4)
    moved = logits_of(wide.tiled(140))[..., 70:, 70:]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [0, 11, 69])
@pytest.mark.parametrize("q_len", [70, 30])
def test_mass_recall_is_that_of_the_whole_map(q_len, start):
    captured = layer(q_len=q_len)
    start = min(start, q_len - 1)
    generator = torch.Generator().manual_seed(start)
    kept = torch.rand(2, 4, q_len, 70, generator=generator) < 0.3
    causal = visible_keys(None, captured.query, captured.key)
    kept |= causal & (torch.arange(70) == 0)
    found = mass_recall(
        captured,
        {"random": lambda a, b: kept[:, :, a:b, : b + 70 - q_len], "all": row_mask(captured, None)},
        start=start,
        rows=16,
    )
    logits = logits_of(captured).masked_fill(~causal, -torch.inf)[:, :, start:]
    assert found["random"].recall == pytest.approx(recall(logits, kept[:, :, start:]), rel=1e-5)
    visible = causal[:, :, start:]
    assert found["random"].density == pytest.approx(
        float((kept[:, :, start:] & visible).sum() / visible.sum())
    )
    assert found["all"] == Kept(pytest.approx(1.0), 1.0)


@pytest.mark.parametrize("q_len", [70, 30])
def test_row_masks_are_the_patterns(q_len):
    captured = layer(q_len=q_len)
    draw = torch.Generator().manual_seed(0)
    tokens, stripes = (
        torch.rand(2, heads, -(-q_len // group), 70, generator=draw) < 0.2
        for heads, group in ((4, 8), (2, 32))
    )
    blocks = torch.rand(2, 1, -(-q_len // 16), 5, generator=draw) < 0.4
    patterns = (
        TokenPattern.from_mask(tokens, group=8),
        StripePattern.from_mask(stripes, group=32),
        BlockPattern.from_mask(blocks, block=16),
    )
    window = Window(3, 9)
    one_by_one = [visible_keys(each, captured.query, captured.key) for each in patterns]
    one_by_one.append(visible_keys(None, captured.query, captured.key, window=window))
    causal = visible_keys(None, captured.query, captured.key)
    for first, end in ((0, 5), (7, 30), (q_len - 1, q_len)):
        keys = end + 70 - q_len

        def cut(whole, first=first, end=end, keys=keys):
            return whole[:, :, first:end, :keys]

        for pattern, expected in zip((*patterns, window), one_by_one, strict=True):
            found = row_mask(captured, pattern)(first, end)
            assert torch.equal(found & cut(causal), cut(expected))
        together = row_mask(captured, *patterns, window)(first, end)
        union = cut(torch.stack(one_by_one).any(0))
        assert torch.equal(together & cut(causal), union)


def test_mean_kept_averages_name_by_name():
    measured = [{"a": Kept(0.5, 0.1), "b": Kept(1.0, 1.0)}, {"a": Kept(0.7, 0.3), "b": Kept(0, 0)}]
    assert mean_kept(measured) == {"a": Kept(0.6, 0.2), "b": Kept(0.5, 0.5)}


def test_a_curve_is_read_between_its_points_and_nowhere_else():
    curve = RecallCurve(((3, Kept(0.9, 0.4)), (1, Kept(0.5, 0.2)), (2, Kept(0.8, 0.3))))
    assert curve.recall_at(0.25) == pytest.approx(0.65)
    assert curve.density_at(0.85) == pytest.approx(0.35)
    assert curve.setting_at(0.35) == pytest.approx(2.5)
    assert curve.mean_recall(0.2, 0.4) == pytest.approx(0.75, abs=1e-3)
    assert all(map(math.isnan, (curve.recall_at(0.1), curve.density_at(0.95), curve.setting_at(1))))


class Words:
    """A tokenizer of single letters."""

    def __call__(self, text, *, add_special_tokens, truncation, max_length):
        ids = [ord(letter) for letter in text]
        return type("Encoding", (), {"input_ids": ids[:max_length] if truncation else ids})


def test_first_tokens_are_as_many_as_asked_or_refused():
    assert first_tokens(Words(), "abcd", 3).tolist() == [[97, 98, 99]]
    with pytest.raises(ValueError, match="a text of at least 5 tokens, got 4"):
        first_tokens(Words(), "abcd", 5)


def test_selections_default_to_every_key():
    captured = layer()
    assert row_mask(captured, Selection().pattern)(0, 3).all()
