"""Paged dot products, soft votes and top positions in plain PyTorch."""

import torch
from torch import Tensor


def paged_dot(query: Tensor, key: Tensor, begin: Tensor, end: int, scale: float) -> Tensor:
    """Return scale * q.k [B, H, k_len], -inf outside [begin, end)."""
    batch, heads, _, dim = query.shape
    kv_heads, k_len = key.shape[1:3]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim).float()
    scores = (grouped @ key.float().mT).reshape(batch, heads, k_len) * scale
    place = torch.arange(k_len, device=query.device)
    searched = (place >= begin[:, None]) & (place < end)
    return scores.masked_fill(~searched[:, None], -torch.inf)


def soft_votes(scores: Tensor) -> Tensor:
    """Return the sum over heads of softmax(scores), -inf at keys that are no candidates."""
    barred = scores == -torch.inf
    votes = scores.softmax(-1).masked_fill(barred, 0.0).sum(1)
    return votes.masked_fill(barred[:, 0], -torch.inf)


def top_indices(values: Tensor, k: int) -> Tensor:
    """Return the ascending positions of the k largest values, ties to the lower."""
    order = values.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=-1).values.int()
