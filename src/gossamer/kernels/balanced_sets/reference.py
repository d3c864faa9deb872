"""Balanced sets in PyTorch: stable sorts and cumulative sums, in integers."""

import torch
from torch import Tensor


def deal(groups: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return indices and repeated [orders, sets, size] for groups [N] and keys [orders, N]."""
    owners, counts = torch.unique(groups, return_counts=True)
    owner = torch.searchsorted(owners, groups)
    sets = -(-counts // size)
    group = torch.repeat_interleave(sets)  # of every set
    first_set = sets.cumsum(0) - sets
    first_token = counts.cumsum(0) - counts
    place = (torch.arange(len(group), device=groups.device) - first_set[group])[:, None] * size
    place = place + torch.arange(size, device=groups.device)  # [sets, size], among its group's
    rank = place * counts[group][:, None] // (sets[group][:, None] * size)
    repeated = torch.zeros_like(rank, dtype=torch.bool)
    repeated[:, 1:] = rank[:, 1:] == rank[:, :-1]
    order = keys.argsort(dim=1, stable=True)
    order = order.gather(1, owner[order].argsort(dim=1, stable=True))
    indices = order[:, first_token[group][:, None] + rank]
    return indices, repeated.expand_as(indices)
