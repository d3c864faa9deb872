"""One step of exact attention over some keys: the mathematics every reference shares."""

import torch
from torch import Tensor


def fold(
    state: tuple[Tensor, Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold more keys into a running softmax.

    Parameters
    ----------
    state : (max [..., R], sum [..., R], acc [..., R, D])
    query : Tensor [..., R, D]
    key, value : Tensor [..., n, D]
    visible : Tensor [..., R, n] bool
    scale : float

    Returns
    -------
    (max, sum, acc) of the same shapes
    """
    top, total, acc = state
    scores = (query.to(acc.dtype) @ key.to(acc.dtype).mT) * scale
    scores = scores.masked_fill(~visible, -torch.inf)
    grown = torch.maximum(top, scores.amax(-1)) if scores.shape[-1] else top
    shift = grown.masked_fill(grown == -torch.inf, 0.0)  # a row that sees nothing stays empty
    weights = torch.exp(scores - shift[..., None])
    shrink = torch.exp(top - shift)
    return (
        grown,
        total * shrink + weights.sum(-1),
        acc * shrink[..., None] + weights @ value.to(acc.dtype),
    )
