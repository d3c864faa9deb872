"""Receptive fields: how well an atom is described by a Gabor function, and by which."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

_PADDING = 4  # zero-padding of the spectrum in which the fit begins
_WIDTHS = (0.12, 0.25)  # envelopes that the fit begins with, as shares of the patch's side


@dataclass(frozen=True)
class GaborFit:
    """The Gabor function of least squared distance to a field.

    ``amplitude exp(-u^2 / 2 sigma_u^2 - v^2 / 2 sigma_v^2) cos(2 pi frequency u + phase)``, with u
    along the wave and v along the stripes.

    Parameters
    ----------
    x, y : float
        Its centre, in pixels from the left and the top.
    orientation : float
        Direction of the wave, in radians from 0 to pi, turning from x to y.
    frequency : float
        Cycles a pixel.
    sigma_u, sigma_v : float
        Widths of the envelope along wave and stripes, in pixels.
    phase : float
        In radians from -pi to pi.
    amplitude : float
    r2 : float
        Share of the field's variance that it explains.
    """

    x: float
    y: float
    orientation: float
    frequency: float
    sigma_u: float
    sigma_v: float
    phase: float
    amplitude: float
    r2: float

    @property
    def aspect(self) -> float:
        """Length of the envelope along the stripes over its width along the wave."""
        return self.sigma_v / self.sigma_u


def gabor_fit(field: ArrayLike) -> GaborFit:
    """Fit a two-dimensional Gabor function by least squares.

    The fit begins at the peak of the spectrum with two envelopes and keeps the better. Phase and
    amplitude are solved for exactly inside each step.

    Parameters
    ----------
    field : array [size, size]
        An atom as a picture.

    Returns
    -------
    GaborFit

    Raises
    ------
    ValueError
        If the field is not square and at least 4 pixels wide, not finite, or constant.

    Examples
    --------
    >>> y, x = np.mgrid[:12, :12] - 5.5
    >>> fit = gabor_fit(np.exp(-(x**2 + y**2) / 12) * np.cos(2 * np.pi * 0.2 * x))
    >>> round(fit.frequency, 3), round(fit.aspect, 3), round(fit.r2, 3)
    (0.2, 1.0, 1.0)
    """
    pixels = np.asarray(field, dtype=np.float64)
    if pixels.ndim != 2 or pixels.shape[0] != pixels.shape[1] or pixels.shape[0] < 4:
        raise ValueError(f"field: expected [size, size], size at least 4, got {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ValueError("field: expected finite values, got NaN or infinity")
    size, spread = len(pixels), float(pixels.std())
    if spread <= 1e-12 * np.abs(pixels).max():
        raise ValueError("field: expected contrast, got a constant field")
    target = pixels.ravel() / (spread * size)  # variance sums to 1, so that tolerances fit

    def residual(shape: NDArray[np.float64]) -> NDArray[np.float64]:
        waves = _waves(shape, size)
        return waves @ np.linalg.lstsq(waves, target, rcond=None)[0] - target

    # x, y, log sigma_u, log sigma_v, orientation, frequency
    low = [-1, -1, np.log(0.5), np.log(0.5), -np.inf, 0.25 / size]
    high = [size, size, np.log(size), np.log(size), np.inf, 0.5]
    centre, orientation, frequency = _beginning(pixels)
    starts = [
        [*centre, np.log(width * size), np.log(width * size), orientation, frequency]
        for width in _WIDTHS
    ]
    better = min(
        (least_squares(residual, np.clip(s, low, high), bounds=(low, high)) for s in starts),
        key=lambda found: found.cost,
    )
    waves = _waves(better.x, size)
    even, odd = np.linalg.lstsq(waves, target, rcond=None)[0] * spread * size
    x, y, log_u, log_v, angle, frequency = map(float, better.x)
    turned = int(np.floor(angle / np.pi)) % 2  # half a turn reverses the odd wave
    return GaborFit(
        x=x,
        y=y,
        orientation=angle % np.pi,
        frequency=frequency,
        sigma_u=float(np.exp(log_u)),
        sigma_v=float(np.exp(log_v)),
        phase=float(np.arctan2(odd if turned else -odd, even)),
        amplitude=float(np.hypot(even, odd)),
        r2=float(1 - 2 * better.cost),
    )


def _waves(shape: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the even and the odd wave under one envelope, [size * size, 2]."""
    x, y, log_u, log_v, angle, frequency = shape
    row, column = np.mgrid[:size, :size]
    u = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
    v = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
    envelope = np.exp(-((u / np.exp(log_u)) ** 2 + (v / np.exp(log_v)) ** 2) / 2)
    phase = 2 * np.pi * frequency * u
    return np.stack([envelope * np.cos(phase), envelope * np.sin(phase)], axis=-1).reshape(-1, 2)


def _beginning(pixels: NDArray[np.float64]) -> tuple[tuple[float, float], float, float]:
    """Return the centre of the energy, and direction and frequency of the spectrum's peak."""
    energy = pixels**2 / (pixels**2).sum()
    row, column = np.mgrid[: len(pixels), : len(pixels)]
    padded = _PADDING * len(pixels)
    spectrum = np.abs(np.fft.rfft2(pixels - pixels.mean(), s=(padded, padded)))
    peak = np.unravel_index(spectrum.argmax(), spectrum.shape)
    fy, fx = np.fft.fftfreq(padded)[peak[0]], np.fft.rfftfreq(padded)[peak[1]]
    centre = (float((energy * column).sum()), float((energy * row).sum()))
    return centre, float(np.arctan2(fy, fx)), float(np.hypot(fx, fy))
