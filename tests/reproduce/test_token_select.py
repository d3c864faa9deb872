"""TokenSelect's evidence: its baselines spend one budget, and its quick claims hold."""

from dataclasses import replace

import pytest
import torch

from gossamer.attention import TokenSelect
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


def test_a_masked_dense_product_is_noticed(monkeypatch):
    method = SIZES["quick"].method
    assert [claim.holds for claim in token_select._exactness(step(), method)] == [True, True]

    def masked(self, query, key, value, selection, state):
        kept = selection.pattern.to_mask()
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=kept, scale=state.scale, enable_gqa=True
        )

    monkeypatch.setattr(TokenSelect, "attend", masked)
    assert [claim.holds for claim in token_select._exactness(step(), method)] == [True, False]


def test_a_selection_of_everything_is_noticed(monkeypatch):
    select = TokenSelect.select

    def everything(self, query, key, state):
        return select(replace(self, top_k=key.shape[2]), query, key, state)

    monkeypatch.setattr(TokenSelect, "select", everything)
    claims = token_select._exactness(step(), SIZES["quick"].method)
    assert [claim.holds for claim in claims] == [True, False]


@pytest.mark.parametrize(("soft", "holds"), [(0.9, [True, True]), (0.7, [False, False])])
def test_votes_and_granularity_follow_the_recalls(soft, holds):
    recall = {"soft": soft, "head": 0.8, "sum": 0.7, "blocks": 0.65, "oracle": 0.95}
    recall |= {f"{vote} compact": recall[vote] for vote in ("soft", "head", "sum")}
    for claims in (token_select._votes, token_select._granularity):
        assert [claim.holds for claim in claims(recall, "")] == holds


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("token-select", scale="quick", seed=0)
    assert evidence.holds
    exact, unread, blocks, oracle = evidence.claims
    assert 0 < exact.ours <= 1e-5 and unread.ours == 128
    assert blocks.ours >= blocks.baseline + 0.10
    assert 0.9 * oracle.baseline <= oracle.ours <= oracle.baseline < 1
