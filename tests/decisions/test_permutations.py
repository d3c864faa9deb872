"""Gumbel-Sinkhorn balances matrices with the right gradient, and rounding finds the best order."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.decisions import gumbel_sinkhorn, straight_through_permutation
from gossamer.decisions.permutations import gumbel_noise


def in_logarithms(scores, temperature, iterations):
    """The definition, normalising logarithms."""
    logs = scores.double() / temperature
    for _ in range(iterations):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


@pytest.mark.parametrize("temperature", [0.05, 1.0, 10.0])
def test_equals_normalising_in_logarithms(temperature):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 6, 6, generator=generator)
    noise = gumbel_noise((5, 6, 6), scores, generator)
    soft = gumbel_sinkhorn(scores, noise=noise, temperature=temperature, iterations=7)
    exact = in_logarithms(scores + noise, temperature, 7)
    assert torch.allclose(soft.double(), exact, atol=1e-6)
    assert torch.allclose(soft.sum(-2), torch.ones(5, 6), atol=1e-5)


def test_many_iterations_make_rows_and_columns_sum_to_one():
    soft = gumbel_sinkhorn(torch.randn(3, 5, 5), iterations=200)
    assert torch.allclose(soft.sum(-1), torch.ones(3, 5), atol=1e-4)


def test_gradient_is_that_of_every_iteration():
    scores = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gumbel_sinkhorn(x, iterations=3), scores)
    loss = torch.randn(2, 4, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad((gumbel_sinkhorn(scores) * loss).sum(), scores)
    (exact,) = torch.autograd.grad((in_logarithms(scores, 1.0, 20) * loss).sum(), scores)
    assert torch.allclose(ours, exact, atol=1e-12)


def test_huge_scores_stay_finite():
    scores = torch.tensor([[1e4, 0.0], [1e4, -1e4]], requires_grad=True)
    soft = gumbel_sinkhorn(scores, temperature=1e-3)
    soft.sum().backward()
    assert bool(soft.isfinite().all()) and scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_rounding_is_the_best_of_all_permutations(n, seed):
    soft = torch.rand(3, n, n, generator=torch.Generator().manual_seed(seed))
    hard = straight_through_permutation(soft)
    for one, rounded in zip(soft, hard, strict=True):
        best = max(
            sum(one[i, j].item() for i, j in enumerate(order)) for order in permutations(range(n))
        )
        assert (one * rounded).sum().item() == pytest.approx(best, rel=1e-5)
        assert set(rounded.flatten().tolist()) <= {0.0, 1.0}
        assert rounded.sum(0).tolist() == rounded.sum(1).tolist() == [1.0] * n


def test_rounding_passes_the_gradient_through():
    soft = torch.rand(2, 3, 3, requires_grad=True)
    weight = torch.randn(2, 3, 3)
    (straight_through_permutation(soft) * weight).sum().backward()
    assert soft.grad is not None and torch.equal(soft.grad, weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gumbel_sinkhorn(torch.zeros(2, 3)), r"scores: expected \[..., n, n\], got \(2, 3"),
        (lambda: gumbel_sinkhorn(torch.zeros(2, 2), temperature=0.0), "temperature: .* got 0"),
        (lambda: gumbel_sinkhorn(torch.zeros(2, 2), iterations=0), "iterations: .* got 0"),
        (lambda: straight_through_permutation(torch.zeros(4)), r"soft: expected .* got \(4,\)"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
