"""Stripe identification in plain PyTorch, one group at a time."""

import torch
from torch import Tensor

from gossamer.patterns import StripePattern


def search(
    pooled: Tensor,
    key: Tensor,
    threshold: Tensor,
    step: int,
    begin: Tensor,
    end: Tensor,
    list_heads: int,
) -> tuple[Tensor, Tensor]:
    """Return (offsets, indices) of the keys that reach a threshold in their group's range."""
    batch, heads, _, dim = pooled.shape
    kv_heads, k_len = key.shape[1:3]
    groups = begin.shape[1]
    hits = torch.zeros(batch, list_heads, groups, k_len, dtype=torch.bool, device=key.device)
    for b in range(batch):
        for g in range(groups):
            first, last = int(begin[b, g]), int(end[b, g])
            if first >= last:
                continue
            rows = slice(g * step, (g + 1) * step)
            queries = pooled[b, :, rows].float().reshape(kv_heads, -1, dim)
            scores = queries @ key[b, :, first:last].float().mT
            scores = scores.reshape(heads, -1, last - first)
            hit = (scores >= threshold[b, :, rows, None]).any(1)
            hits[b, :, g, first:last] = hit.reshape(list_heads, -1, last - first).any(1)
    pattern = StripePattern.from_mask(hits, group=step)
    return pattern.offsets, pattern.indices
