"""Every baseline against the same rule written as plain loops."""

import pytest
import torch

from gossamer.attention import LayerState, Selection
from gossamer.bench.selection_baselines import (
    RuleAttention,
    block_top_p,
    oracle_tokens,
    quest_page_scores,
    quest_tokens,
    random_tokens,
    vertical_slash,
    voted_blocks,
)
from gossamer.patterns import Window
from gossamer.scores import similarity
from gossamer.testing.bounds import check_key_lists
from gossamer.testing.oracles import visible_keys

TILE = {"k": 9, "block_q": 8, "window": 12, "sink": 3}


def vectors(q_len=60, k_len=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, 4, q_len, 8, generator=generator),
        torch.randn(1, 2, k_len, 8, generator=generator),
    )


def dense(query, key, scale=1.0):
    hidden = ~visible_keys(None, query, key)
    return similarity(query, key, scale=scale).masked_fill(hidden, -torch.inf).softmax(-1)


def split(found, head, first, end):
    """Of one list: the keys always kept, and those chosen between sinks and window."""
    group = first // TILE["block_q"]
    kept = found.to_mask()[0, head, group].nonzero()[:, 0].tolist()
    always = set(range(min(3, end))) | set(range(max(0, end - 12), end))
    assert always <= set(kept)
    return sorted(set(kept) - always)


@pytest.mark.parametrize("q_len", [60, 29])
def test_the_oracle_keeps_the_keys_with_the_most_mass(q_len):
    query, key = vectors(q_len)
    found = oracle_tokens(query, key, scale=0.7, **TILE)
    check_key_lists(found, q_len)
    weights = dense(query, key, 0.7)
    for head in range(4):
        for first in range(0, q_len, 8):
            end = min(first + 8, q_len) + 60 - q_len
            mass = weights[0, head, first : first + 8].sum(0)
            free = range(3, max(3, end - 12))
            best = sorted(sorted(free, key=lambda j, mass=mass: -mass[j])[:9])
            assert split(found, head, first, end) == best


def test_random_keys_are_k_between_sinks_and_window_and_follow_the_generator():
    query, key = vectors()
    found = [
        random_tokens(query, key, generator=torch.Generator().manual_seed(seed), **TILE)
        for seed in (0, 0, 1)
    ]
    check_key_lists(found[0], 60)
    assert torch.equal(found[0].indices, found[1].indices)
    assert not torch.equal(found[0].indices, found[2].indices)
    for first in range(0, 60, 8):
        end = min(first + 8, 60)
        chosen = [split(found[0], head, first, end) for head in range(4)]
        assert all(len(each) == min(9, max(0, end - 12 - 3)) for each in chosen)
    assert len({tuple(each) for each in chosen}) == 4  # each head draws its own


def test_random_keys_are_uniform():
    query, key = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 60, 8)
    generator = torch.Generator().manual_seed(0)
    options = {"k": 9, "block_q": 1, "window": 12, "sink": 3, "generator": generator}
    drawn = sum(random_tokens(query, key, **options).to_mask().float() for _ in range(2000))
    share = drawn[0, 0, 0, 3:48] / 2000
    assert float((share - 9 / 45).abs().max()) < 0.05  # five standard deviations


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_block_top_p_keeps_the_fewest_blocks_of_the_pooled_softmax(p):
    query, key = vectors(100, 100)
    mask = block_top_p(query, key, p=p, block=16, scale=0.5).to_mask()[0]
    for head in range(4):
        for row in range(7):
            mean = query[0, head, row * 16 : row * 16 + 16].mean(0)
            pools = [key[0, head // 2, j * 16 : j * 16 + 16].mean(0) for j in range(row + 1)]
            weights = torch.stack([0.5 * mean @ pool for pool in pools]).softmax(0).double()
            expected, reached = {0, row}, 0.0
            for j in weights.argsort(descending=True).tolist():
                if reached >= p * float(weights.sum()) - 1e-9:
                    break
                expected.add(j)
                reached += float(weights[j])
            assert set(mask[head, row].nonzero()[:, 0].tolist()) == expected


def test_vertical_slash_keeps_the_best_columns_and_diagonals():
    query, key = vectors(40, 40)
    mask = vertical_slash(query, key, verticals=5, slashes=6, scale=0.5, last=10, forced=(2, 3))
    weights = dense(query, key, 0.5)[0]
    for head in range(4):
        columns, diagonals = torch.zeros(40), torch.zeros(40)
        for i in range(30, 40):
            for j in range(i + 1):
                columns[j] += weights[head, i, j]
                diagonals[i - j] += weights[head, i, j]
        columns[:2] = diagonals[:3] = torch.inf
        column, diagonal = columns.topk(5).indices.tolist(), diagonals.topk(6).indices.tolist()
        for first, end in ((0, 40), (13, 21)):
            found = mask(first, end)[0, head]
            for i in range(first, end):
                for j in range(i + 1):
                    assert bool(found[i - first, j]) == (j in column or i - j in diagonal)


def test_vertical_slash_takes_texts_shorter_than_its_budget():
    query, key = vectors(20, 20)
    mask = vertical_slash(query, key, verticals=30, slashes=50, scale=1.0)(0, 20)
    assert bool(mask.tril().eq(torch.ones(20, 20, dtype=torch.bool).tril()).all())


def test_quest_scores_bound_every_product_of_their_page():
    query, key = vectors(3, 50)
    scores = quest_page_scores(query, key, page=16)
    assert scores.shape == (1, 4, 3, 4)
    products = similarity(query, key)
    for page in range(4):
        block = key[0, :, page * 16 : page * 16 + 16]
        low, high = block.amin(1), block.amax(1)
        for head in range(4):
            sides = torch.maximum(
                query[0, head] * low[head // 2], query[0, head] * high[head // 2]
            ).sum(-1)
            torch.testing.assert_close(scores[0, head, :, page], sides)
        best = products[..., page * 16 : page * 16 + 16].amax(-1)
        assert bool((scores[..., page] >= best - 1e-5).all())


def pages_of(mask, page, sink, end):
    return [
        bool(mask[sink + j : min(sink + j + page, end)].all()) for j in range(0, end - sink, page)
    ]


def test_quest_keeps_each_heads_best_pages():
    query, key = vectors(1, 60)
    found = quest_tokens(query, key, pages=2, page=8, window=12, sink=3)
    check_key_lists(found, 1)
    scores = quest_page_scores(query, key[:, :, 3:48], page=8)[0, :, 0]
    for head in range(4):
        mask = found.to_mask()[0, head, 0]
        best = scores[head].topk(2).indices.tolist()
        assert mask[:3].all() and mask[48:].all()
        assert pages_of(mask, 8, 3, 48) == [page in best for page in range(6)]


def test_voted_blocks_are_shared_and_chosen_by_summed_softmax():
    query, key = vectors(1, 60)
    found = voted_blocks(query, key, blocks=2, block=8, window=12, sink=3)
    check_key_lists(found, 1)
    assert found.shape[1] == 1
    votes = torch.zeros(6)
    for head in range(4):
        pools = [key[0, head // 2, 3 + 8 * j : min(11 + 8 * j, 48)].mean(0) for j in range(6)]
        votes += torch.stack([query[0, head, 0] @ pool for pool in pools]).softmax(0)
    mask = found.to_mask()[0, 0, 0]
    assert mask[:3].all() and mask[48:].all()
    best = votes.topk(2).indices.tolist()
    assert pages_of(mask, 8, 3, 48) == [page in best for page in range(6)]


def test_rules_leave_the_first_layers_dense():
    window = Selection(window=Window(1, 4))
    method = RuleAttention(lambda query, key, state: window, 2)
    query, key = vectors(8, 8)
    chosen = [method.select(query, key, LayerState(layer=layer)) for layer in range(4)]
    assert [each.window for each in chosen] == [None, None, window.window, window.window]
