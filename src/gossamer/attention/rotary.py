"""Rotary position encoding in the rotate-half layout: pairs are (d, d + D / 2)."""

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
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat(turned, dim=-1).to(vectors.dtype)


def unrotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Undo `rotate`, its scaling (cosine^2 + sine^2, as in YaRN) included."""
    norm = cosine.square() + sine.square()
    return rotate(vectors, cosine / norm, -sine / norm)
