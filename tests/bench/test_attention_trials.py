"""Reading, asking, checking and timing: each against what plain transformers or PyTorch give."""

import pytest
import torch

from gossamer.attention import DenseAttention, HiPAttention, StreamingAttention, use
from gossamer.bench import attention_trials
from gossamer.bench.attention_capture import capture, row_mask
from gossamer.bench.attention_trials import (
    continued,
    error_under,
    layer_times,
    passkeys_found,
    read,
)
from gossamer.data.passkey import Haystack, Key
from gossamer.patterns import Window
from gossamer.testing.attention import prompt, tiny_llama


@pytest.mark.parametrize("start", [1, 40, 127])
def test_reading_gives_the_models_own_perplexity(start):
    model, ids = tiny_llama(), prompt()
    with torch.no_grad():
        logits = model(ids).logits[0, start - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, start:]).exp()
    reading = read(model, ids, DenseAttention(), start=start, rows=50)
    assert reading.perplexity == pytest.approx(float(expected), rel=1e-4)
    assert reading.density == 1.0


def test_reading_with_less_is_less_dense_and_differs():
    model, ids = tiny_llama(), prompt()
    dense = read(model, ids, DenseAttention(), start=1)
    sparse = read(model, ids, StreamingAttention(sink=2, local=8), start=1)
    assert sparse.density == pytest.approx(Window(2, 8).density(128, 128))
    assert sparse.perplexity != pytest.approx(dense.perplexity, rel=1e-3)


def test_continued_writes_what_generate_writes():
    model, ids = tiny_llama(), prompt()
    expected = model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None)
    with torch.no_grad(), use(model, DenseAttention()) as attachment:
        cache = attachment.new_cache()
        model(ids[:, :-1], past_key_values=cache)
        assert continued(model, cache, ids[:, -1:], 6) == expected[0, 128:].tolist()


def test_every_passkey_is_asked_after_the_same_prefill(monkeypatch):
    keys = tuple(Key(label, value, 0.5) for label, value in (("a", "11111"), ("b", "22222")))
    questions = {"a": torch.tensor([[5]]), "b": torch.tensor([[6]])}
    hidden = Haystack(prompt(), keys, questions)
    asked = []

    def answer(model, cache, tokens, count):
        asked.append((cache.get_seq_length(), tokens.tolist(), count))
        return [11111]

    monkeypatch.setattr(attention_trials, "continued", answer)
    tokenizer = type("Tokenizer", (), {"decode": staticmethod(lambda ids: f" {ids[0]}.")})
    assert passkeys_found(tiny_llama(), tokenizer, DenseAttention(), hidden) == 1
    assert asked == [(128, [[5]], 8), (128, [[6]], 8)]


def test_errors_are_seen_and_exact_outputs_pass():
    layer = capture(tiny_llama(), prompt(2), [1])[1]
    query, key, value, state = layer.query, layer.key, layer.value, layer.state()
    method = HiPAttention(k=16, block_q=8, window=16)
    selection = method.select(query, key, state)
    output = method.attend(query, key, value, selection, state)
    mask = row_mask(layer, selection.pattern)
    assert error_under(layer, output, mask, rows=24) < 1e-6
    assert error_under(layer, output, row_mask(layer, None)) > 1e-3  # it did skip keys
    wrong = output.clone()
    wrong[1, 2, 77, 3] += 0.25
    expected = 0.25 / float(value.abs().max())
    assert error_under(layer, wrong, mask) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("queries", [128, 1])
def test_three_times_are_taken_of_a_layer(queries):
    layer = capture(tiny_llama(), prompt(), [0])[0]
    layer = layer if queries == 128 else layer.upto(127)
    times = layer_times(layer, HiPAttention(k=16, window=16), repeats=2)
    assert list(times) == ["dense", "select", "attend"]
    assert all(len(samples.values) == 2 for samples in times.values())
