"""Gabor fits find the parameters that made a field, and refuse to praise noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")
from gossamer.estimators.gabor import GaborFit, gabor_fit


def draw(fit: GaborFit, size: int) -> np.ndarray:
    row, column = np.mgrid[:size, :size]
    u = (column - fit.x) * np.cos(fit.orientation) + (row - fit.y) * np.sin(fit.orientation)
    v = (row - fit.y) * np.cos(fit.orientation) - (column - fit.x) * np.sin(fit.orientation)
    envelope = np.exp(-(u**2) / (2 * fit.sigma_u**2) - v**2 / (2 * fit.sigma_v**2))
    return fit.amplitude * envelope * np.cos(2 * np.pi * fit.frequency * u + fit.phase)


gabors = st.builds(
    GaborFit,
    x=st.floats(4, 8),
    y=st.floats(4, 8),
    orientation=st.floats(0, 3.1),
    frequency=st.floats(0.15, 0.3),
    sigma_u=st.floats(1.8, 2.5),
    sigma_v=st.floats(1.5, 3.0),
    phase=st.floats(-3.1, 3.1),
    amplitude=st.floats(0.1, 5),
    r2=st.just(1.0),
)


@settings(max_examples=20, deadline=None)
@given(gabors)
def test_recovers_a_gabor_function(truth):
    found = gabor_fit(draw(truth, 12))
    assert found.r2 > 0.999
    assert np.allclose(draw(found, 12), draw(truth, 12), atol=0.03 * truth.amplitude)
    assert found.frequency == pytest.approx(truth.frequency, abs=0.02)
    turn = (found.orientation - truth.orientation + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turn) < 0.05
    assert 0 <= found.orientation <= np.pi and found.amplitude > 0


def test_r2_is_the_share_of_variance_explained():
    random = np.random.default_rng(0)
    truth = GaborFit(5.0, 6.0, 0.7, 0.2, 2.0, 2.5, 0.4, 1.0, 1.0)
    field = draw(truth, 12) + 0.05 * random.normal(size=(12, 12))
    found = gabor_fit(field)
    residual = field - draw(found, 12)
    assert found.r2 == pytest.approx(1 - (residual**2).sum() / ((field - field.mean()) ** 2).sum())
    assert 0.8 < found.r2 < 1
    assert found.aspect == pytest.approx(found.sigma_v / found.sigma_u)


def test_noise_does_not_pass():
    random = np.random.default_rng(0)
    assert max(gabor_fit(random.normal(size=(12, 12))).r2 for _ in range(4)) < 0.5


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (np.ones((3, 3)), r"size at least 4, got \(3, 3\)"),
        (np.ones((4, 5)), r"got \(4, 5\)"),
        (np.ones(16), r"got \(16,\)"),
        (np.full((8, 8), np.nan), "finite values"),
        (np.full((8, 8), 0.1), "constant field"),
    ],
)
def test_refuses(field, message):
    with pytest.raises(ValueError, match=f"field: .*{message}"):
        gabor_fit(field)
