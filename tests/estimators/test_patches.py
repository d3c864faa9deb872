"""Whitening and crops against direct sums and the images themselves."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from gossamer.estimators.patches import random_patches, whiten

RANDOM = np.random.default_rng(0)
IMAGES = [RANDOM.normal(size=shape).cumsum(0).cumsum(1) for shape in ((24, 40), (31, 20))]


def dft(size):
    return np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size)


def test_the_filter_is_the_papers():
    """One Fourier coefficient after the other, with matrices in place of the FFT."""
    filtered = []
    for image in IMAGES:
        height, width = image.shape
        unit = (image - image.min()) / (image.max() - image.min())
        standard = (unit - unit.mean()) / unit.std()
        spectrum = dft(height) @ standard @ dft(width)
        for i in range(height):
            for j in range(width):
                f = np.hypot(min(i, height - i), min(j, width - j))
                spectrum[i, j] *= f * np.exp(-((f / (0.4 * height)) ** 4))
        back = dft(height).conj() @ spectrum @ dft(width).conj() / image.size
        filtered.append(back.real)
    factor = np.sqrt(0.1 / np.mean([each.var() for each in filtered]))
    for ours, theirs in zip(whiten(IMAGES), filtered, strict=True):
        assert np.allclose(ours, factor * theirs, atol=1e-9)


def test_variance_and_contrast():
    found = whiten(IMAGES, variance=0.3)
    assert np.mean([each.var() for each in found]) == pytest.approx(0.3)
    brighter = whiten([7 * image - 3 for image in IMAGES], variance=0.3)
    assert all(np.allclose(a, b) for a, b in zip(found, brighter, strict=True))


def test_patches_are_crops_without_their_mean():
    numbered = [np.arange(6 * 9).reshape(6, 9) * 1.0, 100 + np.arange(36).reshape(6, 6) ** 1.5]
    crops = {}
    for index, image in enumerate(numbered):
        windows = np.lib.stride_tricks.sliding_window_view(image, (4, 4)).reshape(-1, 16)
        for place, window in enumerate(windows):
            crops[index, place] = window - window.mean()
    patches = random_patches(numbered, 4000, size=4, seed=0)
    assert patches.dtype == np.float32 and patches.shape == (4000, 16)
    second = np.stack([crop for key, crop in crops.items() if key[0] == 1])
    for patch in patches[:200]:
        assert min(np.abs(patch - crop).max() for crop in crops.values()) < 1e-4
    drawn = [int(np.abs(second - patch).max(1).argmin()) for patch in patches]
    close = np.abs(second[drawn] - patches).max(1) < 1e-4
    assert set(np.array(drawn)[close]) == set(range(9))  # every place, the last ones too
    assert 0.4 < close.mean() < 0.6  # each image as often, though one is larger


def test_the_seed_decides():
    first, same, other = (random_patches(IMAGES, 50, size=5, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whiten([]), "images: expected at least one"),
        (lambda: whiten([np.zeros((4, 4, 3))]), r"\[height, width\], got \(4, 4, 3\), try a grey"),
        (lambda: whiten([np.full((4, 4), np.nan)]), "finite values"),
        (lambda: whiten([np.full((4, 4), 0.1)]), "constant image"),
        (lambda: whiten(IMAGES, f0=0.0), "f0 and variance above 0, got f0=0.0"),
        (lambda: whiten(IMAGES, variance=-1.0), "variance=-1.0"),
        (lambda: random_patches([], 5, size=4, seed=0), "images: expected at least one"),
        (lambda: random_patches(IMAGES, 5, size=21, seed=0), "size: expected at most 20, .* 21"),
        (lambda: random_patches(IMAGES, 0, size=4, seed=0), "n_patches=0"),
        (lambda: random_patches(IMAGES, 5, size=0, seed=0), "size=0"),
        (lambda: random_patches([np.full((9, 9), np.inf)], 5, size=4, seed=0), "finite values"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
