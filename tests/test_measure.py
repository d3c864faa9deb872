import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.measure import (
    attention_density,
    attention_flops,
    causal_pairs,
    density,
    kl_divergence,
    mask_divergence,
    mask_overlap,
    perplexity,
    recall,
    recall_from_lse,
    top1_agreement,
)
from gossamer.patterns import BlockPattern, Window

cases = settings(max_examples=200, deadline=None)
lengths = st.integers(0, 30)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cases
@given(lengths, lengths)
def test_causal_pairs_counts_by_definition(q_len, k_len):
    expected = sum(j <= i + k_len - q_len for i in range(q_len) for j in range(k_len))
    assert causal_pairs(q_len, k_len) == expected


@cases
@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 2), st.integers(1, 2))
def test_attention_density_of_full_and_windowed_attention(q_len, past, heads, batch):
    k_len = q_len + past
    full = BlockPattern.full(q_len, k_len, batch=batch, heads=heads, block=16)
    pairs = full.pairs(q_len, k_len)
    assert attention_density(pairs, q_len, k_len, heads=heads, batch=batch) == 1
    window = Window(2, 5)
    assert attention_density(window.pairs(q_len, k_len), q_len, k_len) == window.density(
        q_len, k_len
    )


def test_attention_flops_are_those_of_the_two_products():
    q_len, k_len, dim = 5, 7, 3
    assert attention_flops(q_len * k_len, dim) == 2 * (2 * q_len * k_len * dim)


@cases
@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, math.inf])))
def test_density_is_the_share_of_non_zeros(values):
    found = density(torch.tensor(values))
    if values:
        assert found == sum(value != 0 for value in values) / len(values)
        assert density(torch.tensor(values) != 0) == found
    else:
        assert math.isnan(found)


@cases
@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_mask_overlap_is_the_jaccard_index(pairs):
    a, b = ({i for i, pair in enumerate(pairs) if pair[side]} for side in (0, 1))
    masks = torch.tensor(pairs, dtype=torch.bool).reshape(-1, 2)
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert mask_overlap(masks[:, 0], masks[:, 1]) == expected
    assert mask_overlap(masks[:, 1], masks[:, 0]) == expected


@cases
@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 6))
def test_kl_divergence_by_definition(seed, positions, vocabulary):
    p, q = normal(seed, positions, vocabulary), normal(seed + 1, positions, vocabulary)
    total = 0.0
    for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
        p_sum, q_sum = (math.fsum(map(math.exp, row)) for row in (p_row, q_row))
        for a, b in zip(p_row, q_row, strict=True):
            share = math.exp(a) / p_sum
            total += share * (math.log(share) - math.log(math.exp(b) / q_sum))
    assert kl_divergence(p, q) == pytest.approx(total / positions, abs=1e-12)


def test_kl_divergence_of_impossible_tokens():
    sure, even = torch.tensor([0.0, -torch.inf]), torch.zeros(2)
    assert kl_divergence(sure, sure) == 0
    assert kl_divergence(sure, even) == pytest.approx(math.log(2))
    assert kl_divergence(even, sure) == math.inf
    assert math.isnan(kl_divergence(even * torch.nan, even))


def test_half_precision_logits_are_widened_first():
    p = (normal(0, 8, 500) * 5).bfloat16()
    q = (normal(1, 8, 500) * 5).bfloat16()
    expected = kl_divergence(p.double(), q.double())
    assert kl_divergence(p, q) == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(p.float(), q.float()) == pytest.approx(expected, rel=1e-5)
    assert kl_divergence(p.double(), p.double() + 3) == pytest.approx(0, abs=1e-12)


@cases
@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 5))
def test_top1_agreement_counts_equal_choices(seed, positions, vocabulary):
    p, q = normal(seed, positions, vocabulary), normal(seed + 1, positions, vocabulary)
    same = [
        max(range(vocabulary), key=a.__getitem__) == max(range(vocabulary), key=b.__getitem__)
        for a, b in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert top1_agreement(p, q) == sum(same) / positions
    assert top1_agreement(p, p) == 1


def test_perplexity_is_the_exponential_of_the_mean():
    assert perplexity(torch.tensor([1.0, 3.0]).log()) == pytest.approx(math.sqrt(3))
    assert perplexity(torch.full((2, 3), 4.0, dtype=torch.bfloat16)) == pytest.approx(math.e**4)
    assert perplexity(torch.tensor([1e4])) == math.inf


@cases
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36 - 1))
def test_recall_is_the_kept_share_of_the_mass(seed, q_len, k_len, drawn):
    logits = normal(seed, 2, q_len, k_len)
    mask = torch.tensor([drawn >> place & 1 for place in range(q_len * k_len)]) > 0
    mask = mask.reshape(q_len, k_len)
    rows = []
    for row, kept in zip(logits.reshape(-1, k_len).tolist(), mask.tolist() * 2, strict=True):
        mass = [math.exp(value) for value in row]
        rows.append(math.fsum(m for m, k in zip(mass, kept, strict=True) if k) / math.fsum(mass))
    assert recall(logits, mask) == pytest.approx(math.fsum(rows) / len(rows), abs=1e-12)
    assert recall(logits, torch.ones_like(mask)) == 1
    assert recall(logits + 5, mask) == pytest.approx(recall(logits, mask))


def test_recall_leaves_out_queries_that_see_nothing():
    logits = torch.tensor([[-torch.inf, -torch.inf], [0.0, 0.0]])
    assert recall(logits, torch.tensor([True, False])) == 0.5
    assert recall_from_lse(torch.tensor([-torch.inf, 0.0]), torch.tensor([-torch.inf, 0.0])) == 1


ONES = torch.ones(2, 3)
BAD_CALLS = {
    "negative length": (lambda: causal_pairs(-1, 3), ValueError, "q_len=-1 and k_len=3"),
    "too many pairs": (lambda: attention_density(7, 3, 3), ValueError, r"\[0, 6\], got 7"),
    "negative pairs": (lambda: attention_density(-1, 3, 3), ValueError, "got -1"),
    "float masks": (lambda: mask_overlap(ONES, ONES > 0), TypeError, "float32 and torch.bool"),
    "mask shapes": (lambda: mask_overlap(ONES > 0, ONES[0] > 0), ValueError, "masks of one shape"),
    "KL shapes": (lambda: kl_divergence(ONES, ONES[0]), ValueError, r"\(2, 3\) and \(3,\)"),
    "top-1 shapes": (lambda: top1_agreement(ONES, ONES[:1]), ValueError, "logits of one shape"),
    "recall mask": (lambda: recall(ONES, ONES), TypeError, "mask to be bool, got torch.float32"),
    "lse shapes": (lambda: recall_from_lse(ONES, ONES[0]), ValueError, "log-sum-exps of one"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_no_pairs_have_no_density():
    assert math.isnan(attention_density(0, 0, 4))


def test_mask_divergence_counts_flips_by_layer():
    first = {"a": torch.tensor([True, False, True]), "b": torch.tensor([[False]])}
    second = {"b": torch.tensor([[True]]), "a": torch.tensor([True, True, False])}
    found = mask_divergence(first, second)
    assert (found.by_layer, found.flips, found.size) == ({"a": 2, "b": 1}, 3, 4)
    assert found.share == 0.75
    assert mask_divergence(first, first).flips == 0
    assert math.isnan(mask_divergence({}, {}).share)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ({"b": torch.tensor([True])}, ValueError, r"same layers, got \['a'\] and \['b'\]"),
        ({"a": torch.tensor([1.0])}, TypeError, "bool masks of 'a', got torch.bool, torch.float32"),
        ({"a": torch.tensor([True, False])}, ValueError, r"masks of 'a' of one shape, got \(1,\)"),
    ],
)
def test_mask_divergence_refuses(other, error, message):
    with pytest.raises(error, match=message):
        mask_divergence({"a": torch.tensor([True])}, other)
