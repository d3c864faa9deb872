"""The methods that RDLEDM is compared with: each by its own published steps."""

import numpy as np
import pytest
import torch

from gossamer.imaging import (
    CartesianMRI,
    ftvnnr,
    kt_slr,
    l_plus_s,
    sliding_window,
    temporal_tv,
    zero_filled,
)
from gossamer.imaging.metrics import psnr
from gossamer.imaging.proximal import singular_values
from gossamer.kernels import finite_differences, tv_adjoint

ITERATIVE = [ftvnnr, kt_slr, l_plus_s, temporal_tv]


def thresholded(x, shrink):
    u, s, v = np.linalg.svd(x.reshape(len(x), -1), full_matrices=False)
    return ((u * shrink(s)) @ v).reshape(x.shape)


def test_zero_filled_fits_the_data(small):
    image = zero_filled(small.kspace, small.physics).image
    assert torch.allclose(small.physics.forward(image), small.kspace)
    missing = torch.fft.fft2(image)[~small.physics.mask]
    assert float(missing.abs().max()) < 1e-12


def test_sliding_window_takes_the_nearest_sample_in_time():
    mask = torch.zeros(6, 1, 3, dtype=torch.bool)
    mask[:, 0, 0] = True
    mask[[1, 4], 0, 1] = True  # place 1 is seen at times 1 and 4, place 2 never
    kspace = torch.zeros(6, 1, 3, dtype=torch.complex128)
    kspace[:, 0, 0] = torch.arange(6)
    kspace[1, 0, 1], kspace[4, 0, 1] = 10, 40
    found = torch.fft.fft2(sliding_window(kspace, CartesianMRI(mask)).image, norm="ortho")
    assert found[:, 0, 0].real.round(decimals=6).tolist() == [0, 1, 2, 3, 4, 5]
    assert found[:, 0, 1].real.round(decimals=6).tolist() == [10, 10, 10, 40, 40, 40]
    assert float(found[:, 0, 2].abs().max()) < 1e-12


def test_sliding_window_breaks_ties_to_the_past():
    mask = torch.zeros(3, 1, 2, dtype=torch.bool)
    mask[:, 0, 0] = mask[0, 0, 1] = mask[2, 0, 1] = True
    kspace = torch.tensor([[[0, 5]], [[0, 0]], [[0, 9]]], dtype=torch.complex128)
    found = torch.fft.fft2(sliding_window(kspace, CartesianMRI(mask)).image, norm="ortho")
    assert found[1, 0, 1].real == pytest.approx(5)


def test_ftvnnr_makes_the_authors_steps(small):
    """Their dual lives in the unit ball and their differences are scaled by the weight."""
    peak = small.physics.adjoint(small.kspace).abs().max()
    b, mask = (small.kspace / peak * 255).numpy(), small.physics.mask.numpy()
    t1, weight, nuclear = 4.0, 3.0, 60.0
    tau, t2 = t1 / (1 + t1), 1 / (8 * t1 * weight**2)
    x = np.fft.ifft2(b * mask, norm="ortho")
    y = np.zeros((2, *x.shape), dtype=complex)
    for _ in range(6):
        pull = tv_adjoint(torch.from_numpy(y), dims=(-2, -1)).numpy() * weight
        gradient = np.fft.ifft2((np.fft.fft2(x, norm="ortho") * mask - b) * mask, norm="ortho")
        new = thresholded(x - tau * (gradient + pull), lambda s: np.maximum(s - tau * nuclear, 0))
        ahead = finite_differences(torch.from_numpy(2 * new - x), (-2, -1)).numpy()
        y = y + t2 * weight * ahead
        y = y / np.maximum(1, np.sqrt((np.abs(y) ** 2).sum(0)))
        x = new
    found = ftvnnr(small.kspace, small.physics, lambda_s=weight, mu_time=nuclear, n_iter=6, tol=0.0)
    np.testing.assert_allclose(found.image.numpy() / float(peak) * 255, x, atol=1e-6)


def test_l_plus_s_makes_the_authors_steps(small):
    b, mask = small.kspace.numpy(), small.physics.mask.numpy()
    m = np.fft.ifft2(b, norm="ortho")
    threshold = 0.03 * np.abs(m).max()
    former, s = m, np.zeros_like(m)
    for _ in range(5):
        low = thresholded(m - s, lambda v: np.maximum(v - 0.05 * v[0], 0))
        waves = np.fft.fft(m - former, axis=0, norm="ortho")
        size = np.maximum(np.abs(waves), 1e-300)
        s = np.fft.ifft(waves * np.maximum(1 - threshold / size, 0), axis=0, norm="ortho")
        residual = (np.fft.fft2(low + s, norm="ortho") * mask - b) * mask
        m, former = low + s - np.fft.ifft2(residual, norm="ortho"), low
    found = l_plus_s(small.kspace, small.physics, lambda_l=0.05, lambda_s=0.03, n_iter=5, tol=0.0)
    np.testing.assert_allclose(found.image.numpy(), low + s, atol=1e-8)
    np.testing.assert_allclose(found.dynamic.numpy(), s, atol=1e-8)


def test_temporal_tv_keeps_what_stands_still(small):
    """As the weight grows, all frames become one."""
    found = temporal_tv(small.kspace, small.physics, lambda_t=50.0, n_iter=1000, tol=0.0)
    assert float((found.image - found.image.mean(0)).abs().max()) < 0.02
    moving = temporal_tv(small.kspace, small.physics, lambda_t=0.01, n_iter=300)
    assert float((moving.image - moving.image.mean(0)).abs().max()) > 0.2


def test_kt_slr_lowers_its_cost_and_the_rank(small):
    def cost(x):
        residual = small.physics.forward(x) - small.kspace
        edges = torch.linalg.vector_norm(finite_differences(x, (-3, -2, -1)), dim=0).sum()
        sizes = singular_values(x, dim=-3).clamp(min=1e-9)
        rank = (sizes**0.1).sum() / 0.1
        return float(residual.abs().square().sum() / 2 + 0.05 * rank + 0.01 * edges)

    start = zero_filled(small.kspace, small.physics).image
    scale = float(start.abs().max())
    found = kt_slr(small.kspace, small.physics, mu=0.05, lambda_st=0.01)
    assert cost(found.image / scale) < cost(start / scale)
    free = kt_slr(small.kspace, small.physics, mu=0.0, lambda_st=0.01)
    share = [float(s[0] / s[-1]) for s in (singular_values(f.image, dim=-3) for f in (found, free))]
    assert share[0] < 0.9 * share[1]


def test_kt_slr_without_weights_keeps_the_data(small):
    found = kt_slr(small.kspace, small.physics, mu=0.0, lambda_st=0.0, rounds=1, inner=2)
    assert torch.allclose(found.image, small.physics.adjoint(small.kspace))


@pytest.mark.parametrize("method", ITERATIVE)
def test_every_method_gains_on_zero_filling(small, method):
    start = psnr(zero_filled(small.kspace, small.physics).image, small.image)
    options = {ftvnnr: {"mu_time": 60.0, "lambda_s": 3.0}, l_plus_s: {"lambda_s": 0.02}}
    found = method(small.kspace, small.physics, **options.get(method, {}))
    assert psnr(found.image, small.image) > start + 1


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("factor", [1e-5, 30j])
def test_scale_and_phase_do_not_matter(small, method, factor):
    few = {"rounds": 2, "inner": 3} if method is kt_slr else {"n_iter": 12}
    found = method(small.kspace, small.physics, **few).image
    scaled = method(small.kspace * factor, small.physics, **few).image
    assert torch.allclose(scaled, found * factor, rtol=1e-5, atol=1e-7 * abs(factor))


@pytest.mark.parametrize("method", ITERATIVE)
def test_the_callback_sees_every_image(small, method):
    seen = []
    few = {"rounds": 1, "inner": 4} if method is kt_slr else {"n_iter": 4}
    found = method(small.kspace, small.physics, callback=lambda k, x: seen.append((k, x)), **few)
    assert [k for k, _ in seen] == [0, 1, 2, 3] and len(found.change) == 4
    assert torch.equal(seen[-1][1], found.image)


@pytest.mark.parametrize("method", [*ITERATIVE, zero_filled, sliding_window])
def test_refuses_data(small, method):
    with pytest.raises(TypeError, match=r"kspace: expected complex, got torch.float64"):
        method(small.kspace.real, small.physics)
    with pytest.raises(ValueError, match=r"kspace: expected \[5, 12, 10\] on cpu, got \[4, 12"):
        method(small.kspace[:4], small.physics)
    with pytest.raises(ValueError, match="kspace: expected finite samples"):
        method(small.kspace / 0, small.physics)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ftvnnr, {"lambda_s": -1.0}, "lambda_s: expected a finite weight .* got -1.0"),
        (ftvnnr, {"mu_time": float("nan")}, "mu_time: .* got nan"),
        (ftvnnr, {"n_iter": 0}, "n_iter: expected at least 1, got 0"),
        (temporal_tv, {"lambda_t": -1.0}, "lambda_t: .* got -1.0"),
        (l_plus_s, {"lambda_l": -1.0}, "lambda_l: .* got -1.0"),
        (l_plus_s, {"lambda_s": float("inf")}, "lambda_s: .* got inf"),
        (l_plus_s, {"tol": -1.0}, "tol: expected at least 0, got -1.0"),
        (kt_slr, {"mu": -1.0}, "mu: .* got -1.0"),
        (kt_slr, {"p": 0.0}, "p: expected above 0 and at most 1, got 0.0"),
        (kt_slr, {"p": 1.1}, "p: .* got 1.1"),
        (kt_slr, {"rounds": 0}, "at least 1, got 0, 10, 5"),
    ],
)
def test_refuses_settings(small, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(small.kspace, small.physics, **options)


def test_temporal_tv_needs_time(small):
    still = CartesianMRI(small.physics.mask[:1])
    with pytest.raises(ValueError, match="kspace: expected two frames or more, got 1"):
        temporal_tv(small.kspace[:1], still)
