"""From images to the patches that a sparse code explains: whitening and random crops."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def whiten(
    images: Sequence[ArrayLike], *, f0: float = 0.4, variance: float = 0.1
) -> list[NDArray[np.float64]]:
    """Flatten the spectrum of images as the retina does: ``f exp(-(f / f0)^4)``.

    Each image is scaled to [0, 1], standardised and filtered; then one factor for all makes the
    mean of their variances `variance`. f counts cycles per picture, along either side, so that in
    a wide picture the pass band of horizontal frequencies is narrower, as in the code of "Beyond
    l1 sparse coding in V1" (arXiv 2301.10002). The filter is Olshausen & Field's (1997).

    Parameters
    ----------
    images : sequence of array [height, width]
        Grey, of any sizes.
    f0 : float, default 0.4
        Cut-off frequency, as a share of the height (paper default).
    variance : float, default 0.1
        Mean variance of the results (paper default).

    Returns
    -------
    list of ndarray [height, width]

    Raises
    ------
    ValueError
        If there are no images, or one is not 2-D, not finite or constant.

    Examples
    --------
    >>> flat, = whiten([np.random.default_rng(0).normal(size=(32, 32)).cumsum(axis=1)])
    >>> round(float(flat.var()), 3), abs(float(flat.mean())) < 1e-12
    (0.1, True)
    """
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    if not (f0 > 0 and variance > 0):
        raise ValueError(f"expected f0 and variance above 0, got {f0=} and {variance=}")
    filtered = [_bandpass(_standardised(image), f0) for image in images]
    factor = np.sqrt(variance / np.mean([image.var() for image in filtered]))
    return [factor * image for image in filtered]


def random_patches(
    images: Sequence[ArrayLike], n_patches: int, *, size: int, seed: int
) -> NDArray[np.float32]:
    """Cut square patches out of random images at random places and subtract each one's mean.

    Parameters
    ----------
    images : sequence of array [height, width]
        Usually whitened; each is drawn from equally often, whatever its size.
    n_patches : int
    size : int
        Side of a patch, in pixels (paper: 16).
    seed : int

    Returns
    -------
    ndarray [n_patches, size * size], float32

    Raises
    ------
    ValueError
        If a patch does not fit into an image, or an image is not finite.

    Examples
    --------
    >>> random_patches([np.eye(9)], 5, size=4, seed=0).shape
    (5, 16)
    """
    if n_patches < 1 or size < 1:
        raise ValueError(f"expected n_patches and size of at least 1, got {n_patches=}, {size=}")
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    arrays = [_finite(image) for image in images]
    smallest = min(min(array.shape) for array in arrays)
    if smallest < size:
        raise ValueError(
            f"size: expected at most {smallest}, the smallest image's side, got {size}"
        )
    random = np.random.default_rng(seed)
    chosen = random.integers(len(arrays), size=n_patches)
    patches = np.empty((n_patches, size * size), dtype=np.float32)
    for patch, index in zip(patches, chosen, strict=True):
        image = arrays[index]
        top, left = (int(random.integers(side - size + 1)) for side in image.shape)
        patch[:] = image[top : top + size, left : left + size].ravel()
    return patches - patches.mean(axis=1, keepdims=True)


def _standardised(image: ArrayLike) -> NDArray[np.float64]:
    array = _finite(image)
    spread = array.std()
    if spread <= 1e-12 * np.abs(array).max():
        raise ValueError("images: expected contrast, got a constant image")
    return (array - array.mean()) / spread  # scaling to [0, 1] before would change nothing


def _bandpass(image: NDArray[np.float64], f0: float) -> NDArray[np.float64]:
    height, width = image.shape
    cycles = [np.fft.fftfreq(side, 1 / side) for side in (height, width)]
    radius = np.hypot(cycles[0][:, None], cycles[1])
    gain = radius * np.exp(-((radius / (f0 * height)) ** 4))
    return np.fft.ifft2(np.fft.fft2(image) * gain).real


def _finite(image: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(image, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"images: expected [height, width], got {array.shape}, try a grey image")
    if not np.isfinite(array).all():
        raise ValueError("images: expected finite values, got NaN or infinity")
    return array
