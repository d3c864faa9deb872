"""TokenSelect's evidence: its baselines spend one budget, and its quick claims are as measured."""

import pytest
import torch

from gossamer.bench.attention_capture import Captured
from gossamer.models import LoadedModel
from gossamer.reproduce import run, token_select
from gossamer.reproduce.token_select import LONG, SIZES, _MostRecent, _passkeys, _patterns
from gossamer.testing.inputs import rotary_tables


def step(tokens=700):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 1, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, tokens, 8, generator=generator).unbind()
    return Captured(query, key, value, 0.5, lambda n: rotary_tables(n, 8))


@pytest.mark.parametrize(
    ("scale", "sink", "local", "budget"), [("full", 16, 64, 256), ("quick", 8, 32, 128)]
)
def test_every_rule_spends_the_same_budget(scale, sink, local, budget):
    captured, size = step(), SIZES[scale]
    patterns = _patterns(captured, captured.with_raw_keys(), size)
    window = patterns.pop("window")
    assert (window.sink, window.local) == (sink, local)
    for name, pattern in patterns.items():
        assert set(pattern.counts.flatten().tolist()) == {budget}, name
        kept = pattern.to_mask()
        assert kept[..., :sink].all() and kept[..., -local:].all()
    assert {name: each.shape[1] for name, each in patterns.items()} == {
        name: 4 if name in ("oracle", "quest") else 1 for name in patterns
    }


def test_the_latest_tokens_are_what_streaming_votes_for():
    captured = step(1400)
    method = _MostRecent(**vars(LONG))
    raw = captured.with_raw_keys()
    found = method.select(raw.query, raw.key, raw.state()).pattern
    kept = found.to_mask()[0, 0, 0].nonzero()[:, 0].tolist()
    assert kept == [*range(128), *range(1400 - 1024, 1400)]


@pytest.mark.parametrize(
    ("found", "holds"),
    [((4, 3, 0), [True] * 3), ((3, 3, 1), [False, True, True]), ((4, 2, 2), [False] * 3)],
)
def test_passkey_claims_follow_the_counts(monkeypatch, found, holds):
    counts = dict(zip(("DenseAttention", "TokenSelect", "_MostRecent"), found, strict=True))
    monkeypatch.setattr(
        token_select,
        "passkeys_found",
        lambda model, tokenizer, method, hidden: counts[type(method).__name__],
    )
    monkeypatch.setattr(token_select, "haystack", lambda *args, **options: None)
    loaded = LoadedModel(None, None, "tiny", "", "", 8192)
    claims = list(_passkeys(loaded, seed=0))
    assert [claim.holds for claim in claims] == holds
    assert [claim.baseline for claim in claims] == [found[0], found[0], found[2]]


@pytest.mark.slow
def test_quick_claims_are_as_measured():
    evidence = run("token-select", scale="quick", seed=0)
    votes, compact, blocks, oracle = evidence.claims
    assert votes.holds and blocks.holds and oracle.holds
    assert votes.ours >= votes.baseline - 0.002
    assert blocks.ours >= blocks.baseline + 0.10
    assert 0.9 * oracle.baseline <= oracle.ours <= oracle.baseline < 1
    assert "compacted" in compact.claim and compact.ours < votes.ours  # published either way
