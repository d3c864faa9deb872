"""Rotary position encoding in the rotate-half layout: pairs are (d, d + D / 2)."""

from functools import lru_cache

import torch
from torch import Tensor


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Encode positions.

    Parameters
    ----------
    vectors : Tensor [..., D]
    cosine, sine : Tensor [..., D / 2]
        Broadcast against the vectors.

    Returns
    -------
    Tensor like `vectors`

    Examples
    --------
    >>> rotate(torch.tensor([1.0, 0.0]), torch.tensor([0.0]), torch.tensor([1.0])).tolist()
    [0.0, 1.0]
    """
    first, second = vectors.float().chunk(2, dim=-1)
    turned = (
        torch.addcmul(first * cosine, second, sine, value=-1),
        torch.addcmul(second * cosine, first, sine),
    )
    return torch.cat(turned, dim=-1).to(vectors.dtype)


@lru_cache(maxsize=2)  # keyed by identity: all layers of one forward share their tables
def inverse(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tables that undo `rotate`, its scaling (as in YaRN) included."""
    norm = cosine.square() + sine.square()
    return cosine / norm, -sine / norm


def unrotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Undo ``rotate(vectors, cosine, sine)``."""
    return rotate(vectors, *inverse(cosine, sine))
