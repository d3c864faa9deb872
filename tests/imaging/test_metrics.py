"""Metrics by their definitions, and against scikit-image."""

import math

import pytest
import torch

from gossamer.imaging.metrics import hfen, nrmse, psnr, ssim


def images():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 24, 30, dtype=torch.complex64, generator=generator).cumsum(-1)
    return reference + 0.3 * torch.randn(reference.shape, generator=generator), reference


def test_they_are_of_magnitudes():
    image, reference = images()
    turned = torch.polar(image.abs(), torch.randn(image.shape))
    for metric in (psnr, nrmse, ssim, hfen):
        assert metric(turned, reference) == pytest.approx(metric(image, reference), rel=1e-4)


def test_psnr_and_nrmse_by_hand():
    image, reference = images()
    a, b = image.abs().double(), reference.abs().double()
    assert psnr(image, reference) == pytest.approx(
        20 * math.log10(float(b.max()) / float((a - b).square().mean().sqrt())), abs=1e-3
    )
    assert nrmse(image, reference) == pytest.approx(float((a - b).norm() / b.norm()))
    assert psnr(2 * image, 2 * reference) == pytest.approx(psnr(image, reference), abs=1e-3)


def test_ssim_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    image, reference = images()
    a, b = image.abs().double().numpy(), reference.abs().double().numpy()
    wanted = [
        metrics.structural_similarity(
            x, y, data_range=b.max(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(image, reference) == pytest.approx(sum(wanted) / 3, abs=1e-6)


def test_hfen_sees_edges_and_not_constants():
    _, reference = images()
    magnitude = reference.abs()
    assert hfen(magnitude + 5, magnitude) < 1e-6
    assert hfen(torch.zeros_like(magnitude), magnitude) == pytest.approx(1)
    assert hfen(magnitude + torch.linspace(0, 3, 30), magnitude) < 1e-5
    ndimage = pytest.importorskip("scipy.ndimage")
    image, _ = images()
    a, b = (ndimage.gaussian_laplace(x[0].abs().double().numpy(), 1.5) for x in images())
    inside = (slice(7, -7), slice(7, -7))
    wanted = ((a - b)[inside] ** 2).sum() ** 0.5 / (b[inside] ** 2).sum() ** 0.5
    assert hfen(image[0], magnitude[0]) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("metric", [psnr, nrmse, ssim, hfen])
def test_refuses(metric):
    image, reference = images()
    with pytest.raises(ValueError, match=r"of one shape, got \[2, 24, 30\] and \[3, 24, 30\]"):
        metric(image[:2], reference)
    with pytest.raises(ValueError, match="reference: expected finite values that are not all zero"):
        metric(image, reference * 0)
    with pytest.raises(ValueError, match="reference: expected finite"):
        metric(image, reference * torch.nan)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match=r"at least 11 x 11, got \[8, 30\]"):
        ssim(torch.ones(8, 30), torch.ones(8, 30))
