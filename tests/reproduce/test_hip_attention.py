"""HiP's evidence: its counts notice a wrong count, and its quick claims hold."""

from dataclasses import replace

import pytest
import torch

from gossamer.attention import HiPAttention
from gossamer.bench.attention_capture import Captured
from gossamer.reproduce import hip_attention, run
from gossamer.testing.inputs import rotary_tables

METHOD = HiPAttention(k=32, block_q=16, window=16)


def layer(tokens=400):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, tokens, 8, generator=generator).unbind()
    return Captured(query, key, value, 0.5, lambda n: rotary_tables(n, 8))


@pytest.mark.parametrize("change", [0, 1, -1])
def test_the_search_cost_claim_notices_one_score_more_or_less(monkeypatch, change):
    search = hip_attention.tree_search

    def miscounted(*args, **options):
        found = search(*args, **options)
        return replace(found, scored=found.scored + change)

    monkeypatch.setattr(hip_attention, "tree_search", miscounted)
    claim = hip_attention._search_cost(layer(), METHOD)
    assert claim.holds == (change == 0)
    # 400 tokens: B / K is 1, 2, 4, 8, 16 for the blocks that end at 48, 80, 144, 272 and never.
    assert "equal in 8 of 8" in claim.ours or change


def test_the_exactness_claim_notices_a_key_that_was_lost(monkeypatch):
    assert hip_attention._exactness(layer(), METHOD).holds
    monkeypatch.setattr(hip_attention, "row_mask", lambda captured, pattern: lose_one(captured))
    assert not hip_attention._exactness(layer(), METHOD).holds


def lose_one(captured):
    return lambda first, end: torch.arange(end) != 5


@pytest.mark.slow
def test_quick_claims_hold(monkeypatch, capture_once):
    monkeypatch.setattr(hip_attention, "capture", capture_once)
    evidence = run("hip-attention", scale="quick", seed=0)
    streaming, chance, cost, exact = evidence.claims
    for claim, margin in ((streaming, 0.05), (chance, 0.08)):
        assert 0.5 < claim.baseline + margin <= claim.ours < 1
        assert "oracle" in claim.setting and claim.holds
    assert cost.holds and exact.holds and exact.ours > 0
