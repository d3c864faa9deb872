"""The oracles against PyTorch and against definitions spelled out element by element."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window
from gossamer.testing import (
    AttentionShape,
    attention_inputs,
    dense_attention,
    random_mask,
    ranked_attention,
    rotary_tables,
    tree_search,
    visible_keys,
)

SHAPE = AttentionShape(2, 6, 2, 20, 37, 4)


def test_dense_attention_is_pytorchs_in_float64():
    query, key, value = (x.double() for x in attention_inputs(SHAPE))
    mask = visible_keys(None, query, key)
    exact = dense_attention(query, key, value, mask, scale=0.3)
    expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(exact.output, expected, rtol=1e-12, atol=1e-12)
    row = [0.3 * float(query[1, 5, 7] @ key[1, 1, j]) for j in range(25)]
    assert float(exact.lse[1, 5, 7]) == pytest.approx(math.log(sum(map(math.exp, row))), rel=1e-12)


def test_a_row_without_keys_is_zero_and_minus_infinity():
    query, key, value = attention_inputs(SHAPE)
    mask = torch.zeros(2, 6, 20, 37, dtype=torch.bool)
    mask[0, 0, 1] = True
    found = dense_attention(query, key, value, mask)
    assert not found.output[0, 0, 0].any() and (found.lse[1] == -torch.inf).all()
    assert found.output.isfinite().all() and found.lse[0, 0, 1].isfinite()


@pytest.mark.parametrize("kind", ["block", "token", "stripe", "none"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, Window(3, 5)])
@pytest.mark.parametrize("key_start", [None, torch.tensor([0, 11])])
def test_visible_keys_follow_the_definitions(kind, causal, window, key_start):
    query, key, _ = attention_inputs(SHAPE)
    tile, width = {"block": (16, 16), "none": (1, 1)}.get(kind, (3, 1))
    mask = random_mask(SHAPE.tiles(tile, width, heads=3), seed=5)
    pattern = {
        "block": lambda: BlockPattern.from_mask(mask, block=16),
        "token": lambda: TokenPattern.from_mask(mask, group=3),
        "stripe": lambda: StripePattern.from_mask(mask, group=3),
        "none": lambda: None,
    }[kind]()
    found = visible_keys(pattern, query, key, causal=causal, window=window, key_start=key_start)
    assert found.shape == (2, 6, 20, 37)
    for b, h, i, j in random_mask(found.shape, density=0.05, seed=1).nonzero().tolist():
        back = i + 37 - 20 - j
        expected = kind == "none" or bool(mask[b, h // 2, i // tile, j // width])
        expected &= not causal or back >= 0
        start = 0 if key_start is None else int(key_start[b])
        expected &= j >= start and (window is None or j < start + 3 or back < 5)
        assert bool(found[b, h, i, j]) == expected


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_ranked_attention_rotates_each_key_by_its_place_in_the_list(heads):
    query, key, value = (x.double() for x in attention_inputs(SHAPE))
    pattern = StripePattern.from_mask(random_mask(SHAPE.tiles(3, 1, heads), seed=2), group=3)
    cosine, sine = rotary_tables(37, 4, base=10.0)
    found = ranked_attention(query, key, value, pattern, (cosine, sine), scale=0.7)
    masks = pattern.to_mask()
    for b, h, i in [(0, 0, 0), (1, 3, 10), (1, 5, 19), (0, 2, 8)]:
        listed = masks[b, h * heads // 6, i // 3].nonzero().flatten().tolist()
        scores, values = [], []
        for rank, j in enumerate(listed):
            x = key[b, h // 3, j]
            turned = [
                x[d] * math.cos(rank / 10 ** (d / 2)) - x[d + 2] * math.sin(rank / 10 ** (d / 2))
                for d in range(2)
            ] + [
                x[d + 2] * math.cos(rank / 10 ** (d / 2)) + x[d] * math.sin(rank / 10 ** (d / 2))
                for d in range(2)
            ]
            if j <= i + 17:
                scores.append(0.7 * float(query[b, h, i] @ torch.stack(turned)))
                values.append(value[b, h // 3, j])
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        expected = weights @ torch.stack(values)
        torch.testing.assert_close(found.output[b, h, i], expected, rtol=1e-5, atol=1e-6)


def test_ranked_attention_without_rotation_is_dense_attention():
    query, key, value = attention_inputs(SHAPE)
    pattern = TokenPattern.from_mask(random_mask(SHAPE.tiles(4, 1)), group=4)
    start = torch.tensor([0, 9])
    still = (torch.ones(37, 2), torch.zeros(37, 2))
    found = ranked_attention(query, key, value, pattern, still, key_start=start, causal=False)
    mask = visible_keys(pattern, query, key, causal=False, key_start=start)
    expected = dense_attention(query, key, value, mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_tree_search_climbs_a_single_peak():
    """Scores that fall away from one key: every level keeps the nodes around it."""
    key = -(torch.arange(256) - 77.0).abs()[None, None, :, None]
    found = tree_search(
        torch.ones(1, 1, 1, 1), key, tokens=8, block_q=1, block_k=2, window=1, sink=0
    )
    assert found.selected[0, 0, 0, 76:78].all() and int(found.selected.sum()) == 8 + 1
    assert int(found.scored) == 8 * 5  # 128 blocks, 4 nodes: 5 rounds of 8
    assert int(found.read.sum()) <= 2 * 8 * 5
