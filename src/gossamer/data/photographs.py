"""Real photographs that ship inside scikit-learn and scikit-image: no download."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

_CC0 = "CC0"
_BY = "CC BY 2.0, {} on Flickr"
# name, package, author or source
_BUNDLED = (
    ("china", "scikit-learn", _BY.format("danielbuechele")),
    ("flower", "scikit-learn", _BY.format("vultilion")),
    ("chelsea", "scikit-image", f"{_CC0}, Stefan van der Walt"),
    ("coffee", "scikit-image", f"{_CC0}, Rachel Michetti"),
    ("rocket", "scikit-image", "public domain, SpaceX"),
    ("grass", "scikit-image", f"{_CC0}, linolafett on DeviantArt"),
    ("gravel", "scikit-image", f"{_CC0}, CC0Textures"),
)
_LUMA = (0.2125, 0.7154, 0.0721)  # ITU-R BT.709, as in scikit-image


@dataclass(frozen=True, eq=False)
class Photograph:
    """A grey photograph.

    Parameters
    ----------
    pixels : ndarray [height, width], float32
        Luma from 0 to 1.
    name : str
        What its package calls it.
    source : str
        The package it ships in.
    licence : str
        Its licence and author.
    """

    pixels: NDArray[np.float32]
    name: str
    source: str
    licence: str


def photographs() -> tuple[Photograph, ...]:
    """Return seven photographs of buildings, plants, an animal, things and textures.

    Returns
    -------
    tuple of Photograph
        From 300 x 451 to 512 x 512 pixels.

    Raises
    ------
    ImportError
        If scikit-learn or scikit-image is not installed.

    Examples
    --------
    >>> [(photo.name, photo.pixels.shape) for photo in photographs()][:2]
    [('china', (427, 640)), ('flower', (427, 640))]
    """
    if find_spec("sklearn") is None or find_spec("skimage") is None:
        raise ImportError(
            "the photographs are part of scikit-learn and scikit-image: "
            "pip install 'gossamer[estimators]'"
        )
    return tuple(Photograph(_grey(*entry[:2]), *entry) for entry in _BUNDLED)


def _grey(name: str, package: str) -> NDArray[np.float32]:
    if package == "scikit-learn":
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()
    unit = pixels.astype(np.float32) / 255
    return unit if unit.ndim == 2 else unit @ np.array(_LUMA, dtype=np.float32)
