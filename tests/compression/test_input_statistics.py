"""Input statistics against all tokens at once, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compression import InputStatistics


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(-1e4, 1e4), st.integers(0, 99)
)
def test_sequences_pool_to_the_moments_of_all_tokens(lengths, offset, seed):
    rng = np.random.default_rng(seed)
    sequences = [(offset + rng.normal(size=(n, 3))).astype(np.float32) for n in lengths]
    inputs = InputStatistics(gram=True)
    for x in sequences:
        inputs.update(torch.from_numpy(x)[None])
    every = np.concatenate(sequences).astype(np.float64)
    assert (inputs.sequences, inputs.tokens) == (len(lengths), len(every))
    np.testing.assert_allclose(inputs.mean, every.mean(0), rtol=1e-12)
    # Rounding to float32 is far coarser than the variance of E[x^2] - E[x]^2 could be here.
    np.testing.assert_allclose(inputs.variance, every.var(0), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(inputs.sum, every.sum(0) / len(lengths), rtol=1e-10)
    norm = np.sqrt((every**2).sum(0) / len(lengths))
    np.testing.assert_allclose(inputs.norm, norm, rtol=1e-10)
    np.testing.assert_allclose(inputs.gram, every.T @ every, rtol=1e-4, atol=1e-3)


def test_bfloat16_inputs_are_summed_wide():
    inputs = InputStatistics()
    for _ in range(3):
        inputs.update(torch.full((1, 1000, 1), 1.0, dtype=torch.bfloat16))
    assert float(inputs.sum) == 1000.0  # bfloat16 sums of ones stop at 256


def test_bfloat16_moments_are_good_to_float32_around_a_large_mean():
    rows = (300 + 3 * torch.randn(700, 5)).bfloat16()
    rows[0] = 2000.0  # a first token may be far from the others
    inputs = InputStatistics()
    for part in rows.split(400):
        inputs.update(part)
    every = rows.double()
    deviation = every.std(0, correction=0)
    # Deviations and their squares are rounded to 24 bits, and added in a tree of few levels.
    assert bool(((inputs.mean - every.mean(0)).abs() <= 2**-22 * deviation).all())
    torch.testing.assert_close(inputs.variance, deviation.square(), rtol=2**-21, atol=0)


def test_bfloat16_products_are_added_as_float32_and_the_setting_is_put_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    rows = torch.randn(700, 64).bfloat16()
    inputs = InputStatistics(gram=True)
    inputs.update(rows)
    exact = rows.double().mT @ rows.double()
    # 700 products are exact in float32; a result in bfloat16 would be wrong by 2e-3.
    assert float((inputs.gram - exact).abs().max() / exact.abs().max()) < 700 * 2**-24
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_factor_is_that_of_the_damped_inverse_and_kept():
    inputs = InputStatistics(gram=True)
    inputs.update(torch.randn(50, 6) * torch.tensor([1, 2, 3, 0, 1, 1.0]))
    gram = inputs.gram.double().numpy().copy()
    gram[3, 3] = 1  # a dead input
    gram += 0.1 * np.diag(gram).mean() * np.eye(6)
    factor = inputs.inverse_factor(0.1)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(gram), rtol=1e-4, atol=1e-6)
    assert torch.equal(factor, factor.triu()) and inputs.inverse_factor(0.1) is factor


def test_a_singular_matrix_gets_more_on_its_diagonal():
    inputs = InputStatistics(gram=True)
    inputs.update(torch.ones(4, 40))
    assert bool(torch.isfinite(inputs.inverse_factor(0.0)).all())


def test_what_cannot_be_factored_is_refused():
    inputs = InputStatistics(gram=True)
    inputs.update(torch.ones(4, 3))
    inputs.gram.neg_()
    with pytest.raises(ValueError, match="not positive definite"):
        inputs.inverse_factor(0.01)
    with pytest.raises(ValueError, match="expected a Gram matrix"):
        InputStatistics().inverse_factor(0.01)
