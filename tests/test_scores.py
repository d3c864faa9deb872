import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.scores import (
    activation_weighted,
    block_mean,
    gradient,
    magnitude,
    pooled_similarity,
    sensitivity,
    similarity,
)

cases = settings(max_examples=200, deadline=None)


def draw(seed: int, *shape: int) -> torch.Tensor:
    """Small integers as float64: products and sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).double()


@cases
@given(st.integers(0, 99), st.integers(0, 5), st.integers(0, 5))
def test_weight_scores_match_their_formulas(seed, rows, columns):
    weight, grad, norm = draw(seed, rows, columns), draw(seed + 1, rows, columns), draw(2, columns)
    pairs = list(zip(weight.flatten().tolist(), grad.flatten().tolist(), strict=True))
    assert magnitude(weight).flatten().tolist() == [abs(w) for w, _ in pairs]
    assert gradient(grad).flatten().tolist() == [abs(g) for _, g in pairs]
    assert sensitivity(weight, grad).flatten().tolist() == [abs(w * g) for w, g in pairs]
    assert activation_weighted(weight, norm.abs()).tolist() == [
        [abs(w) * n for w, n in zip(row, norm.abs().tolist(), strict=True)]
        for row in weight.tolist()
    ]


@cases
@given(
    st.integers(0, 99),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_similarity_is_the_dot_product_under_grouped_heads(seed, batch, kv, share, q_len, k_len):
    heads, dim = kv * share, 3
    query, key = draw(seed, batch, heads, q_len, dim), draw(seed + 1, batch, kv, k_len, dim)
    found = similarity(query, key, scale=0.5)
    assert found.shape == (batch, heads, q_len, k_len)
    for b in range(batch):
        for h in range(heads):
            for i in range(q_len):
                for j in range(k_len):
                    expected = 0.5 * (query[b, h, i] * key[b, h * kv // heads, j]).sum()
                    assert found[b, h, i, j] == expected


@cases
@given(st.integers(0, 99), st.integers(0, 20), st.sampled_from([1, 2, 4, 8]))
def test_block_mean_averages_the_tokens_there_are(seed, tokens, block):
    x = draw(seed, 2, tokens, 3)
    found = block_mean(x, block)
    expected = [x[:, start : start + block].mean(1) for start in range(0, tokens, block)]
    assert found.shape == (2, len(expected), 3)
    for place, mean in enumerate(expected):
        torch.testing.assert_close(found[:, place], mean)


def test_pooled_similarity_scores_block_means():
    query, key = draw(0, 1, 4, 10, 3), draw(1, 1, 2, 7, 3)
    found = pooled_similarity(query, key, block=4, scale=2.0)
    assert found.shape == (1, 4, 3, 2)
    for h in range(4):
        q, k = query[0, h, 8:10].mean(0), key[0, h // 2, 4:7].mean(0)
        torch.testing.assert_close(found[0, h, 2, 1], 2 * (q @ k))


def test_similarity_takes_strided_views_and_permutes_with_heads():
    query, key = draw(0, 2, 5, 4, 3).transpose(1, 2), draw(1, 2, 6, 2, 3).transpose(1, 2)
    found = similarity(query, key)
    assert torch.equal(found, similarity(query.contiguous(), key.contiguous()))
    order = [2, 3, 0, 1]  # whole groups, so that each query head keeps its key head
    assert torch.equal(similarity(query[:, order], key[:, [1, 0]]), found[:, order])


Q, K = torch.ones(1, 4, 2, 3), torch.ones(1, 2, 5, 3)
BAD_CALLS = {
    "gradient shape": (lambda: sensitivity(Q, K), r"\(1, 4, 2, 3\), got \(1, 2, 5, 3\)"),
    "norm shape": (lambda: activation_weighted(Q, torch.ones(4)), r"\(3,\).* got \(4,\)"),
    "heads": (lambda: similarity(K[:, [0, 1, 0]], K), "Hkv dividing H"),
    "no key head": (lambda: similarity(Q, K[:, :0]), "Hkv dividing H"),
    "head dim": (lambda: similarity(Q, K[..., :2]), r"\(1, 2, 5, 2\)"),
    "batch": (lambda: similarity(Q.expand(2, -1, -1, -1), K), r"\(2, 4, 2, 3\)"),
    "rank": (lambda: similarity(Q[0], K), r"\(4, 2, 3\)"),
    "block": (lambda: block_mean(Q, 0), "block .* got 0"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()
