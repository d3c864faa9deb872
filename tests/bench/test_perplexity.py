"""Windows that do not overlap, and perplexity against the model's own loss."""

import pytest
import torch

from gossamer.bench import perplexity as module
from gossamer.bench.perplexity import perplexity, token_windows
from gossamer.testing.attention import prompt, tiny_llama


class Counted:
    """A tokenizer: one token a word, numbered in order."""

    input_ids: torch.Tensor

    def __call__(self, text: str, **options: object) -> "Counted":
        self.input_ids = torch.arange(len(text.split()))[None]
        return self


def test_windows_are_disjoint_and_longer_draws_begin_with_shorter_ones():
    text = "word " * 103
    windows = token_windows(Counted(), text, count=10, tokens=10, seed=3)
    assert sorted(windows.flatten().tolist()) == list(range(100))
    assert torch.equal(token_windows(Counted(), text, count=4, tokens=10, seed=3), windows[:4])
    assert not torch.equal(token_windows(Counted(), text, count=10, tokens=10, seed=4), windows)


@pytest.mark.parametrize(
    ("count", "tokens", "message"),
    [(11, 10, "at least 110 tokens"), (0, 10, "count >= 1"), (1, 1, "tokens >= 2")],
)
def test_bad_windows_are_refused(count, tokens, message):
    with pytest.raises(ValueError, match=message):
        token_windows(Counted(), "word " * 103, count=count, tokens=tokens)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 64), (45, 7), (1024, 1)])
def test_perplexity_is_that_of_the_models_own_loss(monkeypatch, tokens, rows):
    monkeypatch.setattr(module, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(module, "ROWS", rows)
    model, windows = tiny_llama(), prompt(3, 20)
    with torch.no_grad():
        losses = [model(ids[None], labels=ids[None]).loss for ids in windows]
        expected = float(torch.stack(losses).mean().exp())
    passes = []
    model.register_forward_pre_hook(
        lambda _, args, options: passes.append(len(options["input_ids"])), with_kwargs=True
    )
    assert perplexity(model, windows) == pytest.approx(expected)
    assert passes == {1: [1, 1, 1], 45: [2, 1], 1024: [3]}[tokens]
