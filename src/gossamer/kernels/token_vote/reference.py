"""TokenSelect's decode step in plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels.paged_dot import paged_dot, soft_votes, top_indices
from gossamer.kernels.rotate import rotate

if TYPE_CHECKING:
    from gossamer.kernels.token_vote import Vote, VoteMemory


def vote_step(vote: Vote, query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """Bring the tokens up to date; return the query as it attends, and how many keys it scored."""
    memory = vote.memory
    if vote.undo is not None:
        query = rotate(query, *(table[:, None] for table in vote.undo))
    voter, attends = query, query
    if memory.place is not None:
        voter, attends = (rotate(query, *(table[at] for table in memory.place)) for at in (0, 1))
    due = _due(memory, voter, vote.threshold)
    k_len, width = key.shape[2], memory.tokens.shape[1]
    end, k = k_len - memory.local, width - memory.sink - memory.local
    recent = torch.arange(end, k_len, device=key.device)
    memory.tokens[:, width - memory.local :] = recent
    scored = 0
    if memory.query is None:
        memory.query = voter.clone(memory_format=torch.contiguous_format)
    if bool(due.any()) and (copy := memory.make_room(key)) is not None:
        copy[:, :, memory.copied : end] = key[:, :, memory.copied : end]
        memory.copied = end
        key = copy[:, :, :k_len].float()
    for b in due.nonzero().flatten().tolist():
        own = slice(b, b + 1)
        begin = memory.begin[own]
        scores = paged_dot(voter[own], key[own], begin=begin, end=end, scale=vote.scale)
        votes = (vote.count or soft_votes)(scores)
        memory.tokens[b, memory.sink : memory.sink + k] = top_indices(votes, k)[0]
        memory.query[b] = voter[b]
        scored += end - int(begin)
    return attends, scored


def _due(memory: VoteMemory, voter: Tensor, threshold: float) -> Tensor:
    """Tell which sequences vote [B]; NaN does."""
    if memory.query is None:
        return torch.ones(len(voter), dtype=torch.bool, device=voter.device)
    last = memory.query.flatten(1).float()
    cosine = F.cosine_similarity(voter.flatten(1).float(), last).clamp(-1, 1)
    due = ~(cosine >= threshold)
    memory.asked += len(due)
    memory.hits += len(due) - int(due.sum())
    return due
