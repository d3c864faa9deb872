"""A generated cine: a chest with a beating heart that breathes, as a scanner would see it."""

import math

import torch
from torch import Tensor

_FINER = 2  # the object is drawn this much finer than the image, so that no pixel is its truth
_TEXTURE_WIDTH = 0.06  # of the texture's spectrum, cycles a pixel


def cine(size: int = 96, frames: int = 24, *, seed: int = 0) -> Tensor:
    """Draw one heart beat in soft ellipses: chest, lungs, both ventricles, muscle and vessels.

    Drawn on a grid of twice the resolution, whose k-space is cut to `size`: the image has the
    ringing and the partial volumes of a real one.

    Parameters
    ----------
    size : int, default 96
        Pixels a side, at least 16.
    frames : int, default 24
        Of one beat, and of a third of a breath.
    seed : int, default 0
        Of the tissue's texture.

    Returns
    -------
    Tensor [frames, size, size] complex64
        Its largest magnitude is 1; the phase is smooth.

    Raises
    ------
    ValueError
        If a size is too small.

    Examples
    --------
    >>> image = cine(32, 8)
    >>> image.shape, round(float(image.abs().max()), 3)
    (torch.Size([8, 32, 32]), 1.0)
    """
    if size < 16 or frames < 1:
        raise ValueError(f"expected size >= 16 and frames >= 1, got {size} and {frames}")
    fine = size * _FINER
    axis = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine * 2 - 1
    y, x = axis[:, None], axis[None, :]
    texture = _texture(fine, seed)
    phase = torch.polar(torch.ones_like(x * y), 0.6 * (x + 0.7 * y**2))
    drawn = torch.stack([_frame(x, y, texture, t / frames, size) for t in range(frames)])
    drawn = drawn * phase
    spectrum = torch.fft.fftshift(torch.fft.fft2(drawn), dim=(-2, -1))
    first = (fine - size) // 2
    middle = spectrum[:, first : first + size, first : first + size]
    image = torch.fft.ifft2(torch.fft.ifftshift(middle, dim=(-2, -1)))
    return (image / image.abs().max()).to(torch.complex64)


def _frame(x: Tensor, y: Tensor, texture: Tensor, time: float, size: int) -> Tensor:
    """Return magnitudes [fine, fine] at `time` of the beat, 0 to 1."""

    def ellipse(cx: float, cy: float, a: float, b: float, angle: float = 0.0) -> Tensor:
        c, s = math.cos(angle), math.sin(angle)
        u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
        depth = (1 - torch.hypot(u / a, v / b)) * min(a, b)
        return torch.sigmoid(0.6 * size * depth)

    squeeze = (0.5 * (1 - math.cos(2 * math.pi * time))) ** 1.3
    breath = 0.02 * math.sin(2 * math.pi * time / 3)
    outer, cavity = 0.26 - 0.03 * squeeze, 0.18 - 0.075 * squeeze
    return (
        0.35 * (1 + 0.08 * texture) * ellipse(0, 0, 0.92, 0.78)
        - 0.30 * ellipse(-0.45, 0.05 + breath, 0.28, 0.45)  # lungs
        - 0.30 * ellipse(0.50, 0.05 + breath, 0.26, 0.42)
        + 0.15 * (1 + 0.1 * texture) * ellipse(0.02, 0.10 + breath, outer, 1.05 * outer)
        + 0.45 * ellipse(0.02, 0.10 + breath, cavity, 1.05 * cavity)  # left ventricle
        + 0.35 * ellipse(-0.22, 0.12 + breath, 0.15 - 0.04 * squeeze, 0.22 - 0.05 * squeeze, 0.3)
        + 0.30 * ellipse(0, -0.55 + breath / 2, 0.07, 0.07)
        + 0.25 * ellipse(0, 0.62, 0.10, 0.12)
    )


def _texture(fine: int, seed: int) -> Tensor:
    """Return smooth noise [fine, fine] of deviation 1."""
    noise = torch.randn(
        fine, fine, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    away = torch.fft.fftfreq(fine, dtype=torch.float64) * _FINER
    spectrum = (-(away[:, None] ** 2 + away**2) / (2 * _TEXTURE_WIDTH**2)).exp()
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * spectrum).real
    return smooth / smooth.std()
