"""Undoing rotary position encoding, for methods that keep keys without it."""

from functools import lru_cache

from torch import Tensor

from gossamer.kernels import rotate


@lru_cache(maxsize=2)  # keyed by identity: all layers of one forward share their tables
def inverse(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tables that undo `rotate`, its scaling (as in YaRN) included."""
    norm = cosine.square() + sine.square()
    return cosine / norm, -sine / norm


def unrotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Undo ``rotate(vectors, cosine, sine)``."""
    return rotate(vectors, *inverse(cosine, sine))
