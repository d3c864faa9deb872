"""How near a reconstruction comes: errors of magnitudes [..., T, H, W], frame by frame in 2-D."""

import torch
from torch import Tensor
from torch.nn import functional as F

_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5  # Wang et al. 2004: a Gaussian window of 11 x 11
_K1, _K2 = 0.01, 0.03
_HFEN_SIGMA, _HFEN_RADIUS = 1.5, 7  # Ravishankar & Bresler 2011: a filter of 15 x 15


def psnr(image: Tensor, reference: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, the peak being the reference's.

    Parameters
    ----------
    image, reference : Tensor [..., H, W]
        Real or complex; magnitudes are compared.

    Raises
    ------
    ValueError
        If shapes differ, or the reference is zero or not finite.

    Examples
    --------
    >>> psnr(torch.full((2, 2), 0.9), torch.ones(2, 2))
    20.0
    """
    a, b = _magnitudes(image, reference)
    return round(float(10 * (b.max().square() / (a - b).square().mean()).log10()), 4)


def nrmse(image: Tensor, reference: Tensor) -> float:
    """Return the root of the summed squared error over that of the reference.

    Examples
    --------
    >>> round(nrmse(torch.full((2, 2), 0.9), torch.ones(2, 2)), 4)
    0.1
    """
    a, b = _magnitudes(image, reference)
    return float((a - b).norm() / b.norm())


def ssim(image: Tensor, reference: Tensor) -> float:
    """Return the structural similarity, mean over all frames; its range is the reference's peak.

    Raises
    ------
    ValueError
        As `psnr`, and if frames are smaller than 11 x 11.

    Examples
    --------
    >>> ssim(torch.eye(16), torch.eye(16))
    1.0
    """
    a, b = _magnitudes(image, reference)
    size = 2 * _SSIM_RADIUS + 1
    if min(a.shape[-2:]) < size:
        raise ValueError(f"expected frames of at least {size} x {size}, got {list(a.shape[-2:])}")
    grid = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=a.dtype, device=a.device)
    window = (-grid.square() / (2 * _SSIM_SIGMA**2)).exp()
    window = window[:, None] * window
    window = window / window.sum()

    def mean(x: Tensor) -> Tensor:
        return _filter(x, window)

    u, v = mean(a), mean(b)
    variances, covariance = mean(a * a) - u * u + mean(b * b) - v * v, mean(a * b) - u * v
    c1, c2 = (_K1 * b.max()) ** 2, (_K2 * b.max()) ** 2
    alike = (2 * u * v + c1) * (2 * covariance + c2)
    return float((alike / ((u * u + v * v + c1) * (variances + c2))).mean())


def hfen(image: Tensor, reference: Tensor) -> float:
    """Return the high-frequency error norm: `nrmse` after a Laplacian of Gaussian, sigma 1.5.

    Examples
    --------
    >>> hfen(torch.eye(32) + 1, torch.eye(32)) < 1e-6  # a constant has no edges
    True
    """
    a, b = _magnitudes(image, reference)
    grid = torch.arange(-_HFEN_RADIUS, _HFEN_RADIUS + 1, dtype=a.dtype, device=a.device)
    square = grid[:, None].square() + grid.square()
    bell = (-square / (2 * _HFEN_SIGMA**2)).exp()
    bell = bell / bell.sum()
    laplacian = bell * (square - 2 * _HFEN_SIGMA**2) / _HFEN_SIGMA**4
    laplacian = laplacian - laplacian.mean()  # blind to constants
    edges_a, edges_b = _filter(a, laplacian), _filter(b, laplacian)
    return float((edges_a - edges_b).norm() / edges_b.norm())


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve frames [..., H, W], without borders."""
    return F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel[None, None])


def _magnitudes(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape or image.ndim < 2:
        raise ValueError(
            f"expected image and reference [..., H, W] of one shape, got {list(image.shape)} and "
            f"{list(reference.shape)}"
        )
    a, b = image.abs().double(), reference.abs().double()
    if not bool(b.isfinite().all()) or not bool(b.any()):
        raise ValueError("reference: expected finite values that are not all zero")
    return a, b
