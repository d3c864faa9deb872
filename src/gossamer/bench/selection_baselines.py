"""What the sparse attention methods are measured against: oracles, chance and simpler rules.

Written to be read, not to be fast: each is the plain definition that a paper compares with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.attention import AttentionMethod, LayerState, Selection
from gossamer.bench.attention_capture import RowMask
from gossamer.budgets import TopK, TopP
from gossamer.patterns import BlockPattern, TokenPattern
from gossamer.scores import block_mean, pooled_similarity, similarity


@dataclass(frozen=True)
class RuleAttention(AttentionMethod):
    """Attend to what a plain function chooses, from layer `dense_layers` on.

    Parameters
    ----------
    rule : callable
        ``rule(query, key, state)`` returns the `Selection`.
    dense_layers : int
        First layers that stay dense.
    """

    rule: Callable[[Tensor, Tensor, LayerState], Selection]
    dense_layers: int = 0

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        return Selection() if state.layer < self.dense_layers else self.rule(query, key, state)


def oracle_tokens(
    query: Tensor, key: Tensor, *, k: int, block_q: int, window: int, sink: int, scale: float
) -> TokenPattern:
    """Keep the k keys with the most softmax mass of each block of queries, sinks and a window.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, H_kv, k_len, D]
    k : int
        Keys chosen among those that are neither sinks nor in the window.
    block_q : int
        Queries that share a list.
    window, sink : int
        Keys up to the end of the query block, and first keys, that are always kept.
    scale : float
        Of the softmax.

    Returns
    -------
    TokenPattern
        A list a query head.
    """
    q_len, k_len = query.shape[2], key.shape[2]
    groups = []
    for first in range(0, q_len, block_q):
        rows = query[:, :, first : first + block_q]
        logits = similarity(rows, key, scale=scale)
        hidden = ~torch.ones_like(logits[0, 0], dtype=torch.bool).tril(first + k_len - q_len)
        groups.append(logits.masked_fill_(hidden, -torch.inf).softmax(-1).sum(2))
    return _with_window(torch.stack(groups, 2), k, (q_len, block_q), window, sink)


def random_tokens(
    query: Tensor,
    key: Tensor,
    *,
    k: int,
    block_q: int,
    window: int,
    sink: int,
    generator: torch.Generator,
) -> TokenPattern:
    """Keep k random keys for each block of queries, sinks and a window; see `oracle_tokens`."""
    (batch, heads, q_len, _), k_len = query.shape, key.shape[2]
    shape = (batch, heads, -(-q_len // block_q), k_len)
    scores = torch.rand(shape, generator=generator, device=generator.device).to(key.device)
    return _with_window(scores, k, (q_len, block_q), window, sink)


def _with_window(
    scores: Tensor, k: int, tile: tuple[int, int], window: int, sink: int
) -> TokenPattern:
    """The top k of scores [B, H, groups, k_len] before the window, with sinks and window."""
    (q_len, block_q), k_len = tile, scores.shape[3]
    key = torch.arange(k_len, device=scores.device)
    block_end = torch.arange(block_q, q_len + block_q, block_q, device=scores.device)
    block_end = (block_end.clamp(max=q_len) + k_len - q_len)[:, None]
    free = (key >= sink) & (key < block_end - window)
    chosen = TopK(min(k, k_len)).select(scores.masked_fill(~free, -torch.inf)) & free
    always = ((key < sink) | (key >= block_end - window)) & (key < block_end)
    return TokenPattern.from_mask(chosen | always, group=block_q)


def block_top_p(query: Tensor, key: Tensor, *, p: float, block: int, scale: float) -> BlockPattern:
    """Keep the fewest key blocks whose pooled softmax reaches p, the diagonal and the first.

    Parameters
    ----------
    query : Tensor [B, H, T, D]
    key : Tensor [B, H_kv, T, D]
    p : float
        Share of the softmax over block means, in (0, 1].
    block : int
        Tokens a side.
    scale : float
        Of the softmax.

    Returns
    -------
    BlockPattern
    """
    logits = pooled_similarity(query.float(), key.float(), block=block, scale=scale)
    causal = torch.ones_like(logits[0, 0], dtype=torch.bool).tril()
    kept = TopP(p).select(logits.masked_fill(~causal, -torch.inf).softmax(-1))
    kept |= torch.eye(len(causal), dtype=torch.bool, device=kept.device)
    kept[..., 0] = True
    return BlockPattern.from_mask(kept & causal, block=block)


def vertical_slash(
    query: Tensor,
    key: Tensor,
    *,
    verticals: int,
    slashes: int,
    scale: float,
    last: int = 64,
    forced: tuple[int, int] = (30, 100),
) -> RowMask:
    """Keep whole columns and diagonals, chosen by the attention of the last queries (MInference).

    Parameters
    ----------
    query : Tensor [B, H, T, D]
    key : Tensor [B, H_kv, T, D]
    verticals, slashes : int
        Columns and diagonals kept a head, those forced included.
    scale : float
        Of the softmax.
    last : int
        Queries that choose.
    forced : (int, int)
        First columns and nearest diagonals that are always kept, within the two budgets.

    Returns
    -------
    RowMask
    """
    tokens = key.shape[2]
    last = min(last, tokens)
    logits = similarity(query[:, :, -last:].float(), key.float(), scale=scale)
    causal = torch.ones_like(logits[0, 0], dtype=torch.bool).tril(tokens - last)
    weights = logits.masked_fill(~causal, -torch.inf).softmax(-1)
    position = torch.arange(tokens, device=key.device)
    distance = position[-last:, None] - position
    columns = weights.sum(2)
    diagonals = torch.zeros_like(columns).scatter_add(
        2, distance.clamp(min=0).flatten().expand(*columns.shape[:2], -1), weights.flatten(2)
    )
    columns[..., : forced[0]] = torch.inf
    diagonals[..., : forced[1]] = torch.inf
    column = TopK(min(verticals, tokens)).select(columns)
    diagonal = TopK(min(slashes, tokens)).select(diagonals)

    def mask(first: int, end: int) -> Tensor:
        distance = position[first:end, None] - position[:end]
        return column[:, :, None, :end] | diagonal[:, :, distance.clamp(min=0)]

    return mask


def quest_page_scores(query: Tensor, key: Tensor, *, page: int) -> Tensor:
    """Bound q.k from above for every page of keys by the page's smallest and largest values.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, H_kv, k_len, D]
    page : int
        Consecutive keys a page; the last one may be shorter.

    Returns
    -------
    Tensor [B, H, q_len, pages]
    """
    tail = -key.shape[2] % page
    low, high = (
        pad(key, (0, 0, 0, tail), value=sign * torch.inf).unflatten(2, (-1, page))
        for sign in (1, -1)
    )
    return similarity(query.clamp(min=0), high.amax(3)) + similarity(
        query.clamp(max=0), low.amin(3)
    )


def quest_tokens(
    query: Tensor, key: Tensor, *, pages: int, page: int, window: int, sink: int
) -> TokenPattern:
    """Keep each head's best pages for one query (Quest), sinks and a window.

    Parameters
    ----------
    query : Tensor [B, H, 1, D]
    key : Tensor [B, H_kv, k_len, D]
    pages, page : int
        Pages kept, of those after the sinks and before the window, and their size.
    window, sink : int
        Last and first keys, always kept.

    Returns
    -------
    TokenPattern
    """
    scores = quest_page_scores(query, key[:, :, sink : key.shape[2] - window], page=page)
    return _pages(scores, pages, page, key.shape[2], window, sink)


def voted_blocks(
    query: Tensor, key: Tensor, *, blocks: int, block: int, window: int, sink: int
) -> TokenPattern:
    """Keep the blocks whose mean keys all heads vote for with one query, sinks and a window.

    The votes are TokenSelect's, softmax(q.k) summed over heads; only the unit is coarser.
    Parameters as for `quest_tokens`.
    """
    means = block_mean(key[:, :, sink : key.shape[2] - window], block)
    votes = similarity(query, means).softmax(-1).sum(1, keepdim=True)
    return _pages(votes, blocks, block, key.shape[2], window, sink)


def _pages(
    scores: Tensor, count: int, page: int, k_len: int, window: int, sink: int
) -> TokenPattern:
    kept = TopK(min(count, scores.shape[3])).select(scores).repeat_interleave(page, 3)
    free = k_len - window - sink
    mask = pad(kept[..., :free], (sink, window), value=True)
    return TokenPattern.from_mask(mask, group=1)
