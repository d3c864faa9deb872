"""AnchorAttention's evidence: the regions it assumes tile the causal area; quick claims hold."""

from dataclasses import replace
from math import inf

import pytest
import torch

from gossamer.attention import AnchorAttention
from gossamer.bench.attention_capture import Captured, mass_recall, row_mask
from gossamer.reproduce import anchor_attention, run
from gossamer.reproduce._attention_layers import block_mask, equal_recall_p, kept_by, near
from gossamer.reproduce.anchor_attention import _limits
from gossamer.testing.inputs import rotary_tables

METHOD = AnchorAttention(theta=3.0, block=16, step=2)


def layer(tokens=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, 2, tokens, 8, generator=generator).unbind()
    key[:, :, 0] = 3 * query.mean(2)  # a sink
    return Captured(query, key, value, 0.5, lambda n: rotary_tables(n, 8))


def visible(captured, *patterns):
    tokens = captured.key.shape[2]
    return row_mask(captured, *patterns)(0, tokens).tril()


def test_sinks_stripes_and_local_part_tile_the_causal_area():
    captured = layer()
    for theta in (3.0, inf):
        method = replace(METHOD, theta=theta)
        stripes = method.select(captured.query, captured.key, captured.state()).pattern
        parts = visible(captured, near(captured, method)), visible(captured, stripes)
        assert bool(parts[1].any()) and not bool((parts[0] & parts[1]).any())
        assert torch.equal(parts[0] | parts[1], kept_by(captured, method)(0, 600).tril())
        assert bool((parts[0] | parts[1]).eq(visible(captured, None)).all()) == (theta == inf)


def test_the_near_part_is_the_definition():
    found = visible(layer(), near(layer(), METHOD))[0, 0]
    for i in (0, 15, 16, 31, 32, 33, 95, 96, 300, 599):
        local_start = max(16, i // 32 * 32 - 16)
        expected = [j < 16 or j >= local_start for j in range(i + 1)]
        assert found[i, : i + 1].tolist() == expected


def test_equal_recall_is_equal():
    captured = layer()
    p = equal_recall_p(captured, METHOD)
    masks = {"anchor": kept_by(captured, METHOD), "blocks": block_mask(captured, p, block=16)}
    kept = mass_recall(captured, masks, start=150)
    assert kept["blocks"].recall == pytest.approx(kept["anchor"].recall, abs=0.02)


def test_limits_notice_an_output_that_is_off(monkeypatch):
    assert [claim.holds for claim in _limits(layer(1100))] == [True, True, True]
    exact = AnchorAttention.__call__

    def off(self, *args):
        return exact(self, *args) + 1e-3

    monkeypatch.setattr(AnchorAttention, "__call__", off)
    assert [claim.holds for claim in _limits(layer(1100))] == [False, False, False]


@pytest.mark.slow
def test_quick_claims_hold(monkeypatch, capture_once):
    monkeypatch.setattr(anchor_attention, "capture", capture_once)
    evidence = run("anchor-attention", scale="quick", seed=0)
    assert [claim.holds for claim in evidence.claims] == [True] * 6
    dense, middle, streaming, blocks, window, area = evidence.claims
    assert 0 < max(dense.ours, middle.ours) <= 1e-5 and streaming.ours == "bit-identical"
    assert blocks.baseline >= 1.8 * blocks.ours > 0
    assert window.ours >= window.baseline + 0.08
    assert area.baseline < area.ours < 1
