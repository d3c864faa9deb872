"""Oracles: what the kernels compute, written densely in float64 straight from the definitions."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

import torch
from torch import Tensor

from gossamer.kernels import AttentionOutput
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window


def visible_keys(
    pattern: BlockPattern | TokenPattern | StripePattern | None,
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = True,
    window: Window | None = None,
    key_start: Tensor | None = None,
) -> Tensor:
    """Return which keys each query sees, bool [B, H, q_len, k_len].

    Parameters
    ----------
    pattern : BlockPattern, TokenPattern, StripePattern or None
        None lists every key.
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, H_kv, k_len, D]
    causal, window, key_start
        As the kernels take them.

    Examples
    --------
    >>> visible_keys(None, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 3, 4)).int().tolist()
    [[[[1, 1, 0], [1, 1, 1]]]]
    """
    batch, heads, q_len, _ = query.shape
    k_len = key.shape[2]
    mask = torch.ones(batch, heads, q_len, k_len, dtype=torch.bool)
    if pattern is not None:
        height, width = (
            (pattern.block, pattern.block)
            if isinstance(pattern, BlockPattern)
            else (pattern.group, 1)
        )
        mask = pattern.to_mask().repeat_interleave(heads // pattern.shape[1], 1)
        mask = mask.repeat_interleave(height, 2).repeat_interleave(width, 3)
        mask = mask[:, :, :q_len, :k_len]
    position, token = torch.arange(q_len)[:, None] + k_len - q_len, torch.arange(k_len)
    if causal:
        mask = mask & (token <= position)
    start = torch.zeros(batch, dtype=torch.int64) if key_start is None else key_start
    start = start[:, None, None, None]
    if window is not None:
        mask = mask & ((token > position - window.local) | (token < start + window.sink))
    return mask & (token >= start)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> AttentionOutput:
    """Attend to the keys of `mask`, with every score in memory.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key, value : Tensor [B, H_kv, k_len, D]
    mask : Tensor bool, broadcastable to [B, H, q_len, k_len]
    scale : float, optional
        Default 1 / sqrt(D).
    dtype : torch.dtype
        float64 is the oracle; the inputs' own is the plain path that `budget` compares with.

    Returns
    -------
    AttentionOutput
        Zeros and -inf where a row sees no key.

    Examples
    --------
    >>> q, k, v = torch.zeros(3, 1, 1, 2, 1).unbind()
    >>> v[0, 0, 1] = 3.0
    >>> found = dense_attention(q, k, v, torch.tensor([[True, True], [False, False]]))
    >>> found.output.flatten().tolist(), found.lse.exp().flatten().tolist()
    ([1.5, 0.0], [2.0, 0.0])
    """
    shared = query.shape[1] // key.shape[1]
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(shared, 1) for tensor in (key, value))
    return _softmax(query @ key.mT, value, mask, scale or query.shape[3] ** -0.5)


def ranked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: TokenPattern | StripePattern,
    rotary: tuple[Tensor, Tensor],
    *,
    causal: bool = True,
    scale: float | None = None,
    key_start: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> AttentionOutput:
    """Attend to the keys of `pattern`, each rotated by its rank in its list.

    Every (query, key) pair gets a rotated key of its own: for small sizes only.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key, value : Tensor [B, H_kv, k_len, D]
    pattern : TokenPattern or StripePattern
    rotary : (cosine, sine), Tensor [n, D / 2] each
    causal, scale, key_start
        As `gathered_attention` takes them; a hidden key still counts in the ranks.
    dtype : torch.dtype
        As in `dense_attention`.

    Returns
    -------
    AttentionOutput

    Examples
    --------
    >>> lists = TokenPattern(torch.tensor([[[[0, 1]]]], dtype=torch.int32), group=1, k_len=2)
    >>> turn = torch.tensor([[0.0], [torch.pi]])  # the key at rank 1 turns round
    >>> q, k = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2, 2)
    >>> found = ranked_attention(q, k, k, lists, (turn.cos(), turn.sin()), scale=1.0)
    >>> round(found.lse.item(), 3)
    2.018
    """
    heads, q_len = query.shape[1:3]
    lists = pattern.shape[1]
    listed = pattern.to_mask()
    rank = (listed.cumsum(-1) - 1).clamp(min=0)
    cosine, sine = (table.double()[rank] for table in rotary)  # [B, lists, groups, k_len, D / 2]
    width = max(lists, key.shape[1])
    each = key.double().repeat_interleave(width // key.shape[1], 1)[:, :, None]
    first, second = each.chunk(2, dim=-1)
    cosine, sine = (table.repeat_interleave(width // lists, 1) for table in (cosine, sine))
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    turned = turned.to(dtype).repeat_interleave(heads // width, 1)
    turned = turned.repeat_interleave(pattern.group, 2)[:, :, :q_len]
    scores = (turned @ query.to(dtype)[..., None])[..., 0]
    mask = visible_keys(pattern, query, key, causal=causal, key_start=key_start)
    value = value.to(dtype).repeat_interleave(heads // value.shape[1], 1)
    return _softmax(scores, value, mask, scale or query.shape[3] ** -0.5)


def _softmax(scores: Tensor, value: Tensor, mask: Tensor, scale: float) -> AttentionOutput:
    scores = (scores * scale).masked_fill(~mask, -torch.inf)
    if not scores.shape[3]:
        return AttentionOutput(scores @ value, scores.new_full(scores.shape[:3], -torch.inf))
    weights = scores.softmax(-1).masked_fill(~mask, 0.0)  # a row of -inf would be NaN
    return AttentionOutput(weights @ value, scores.logsumexp(-1))


@dataclass(frozen=True, eq=False)
class TreeOracle:
    """What a tree search must select, and all that it may read.

    Parameters
    ----------
    selected : Tensor [B, heads, groups, k_len] bool
    read : Tensor [B, H_kv, k_len] bool
        Keys that were scored for any query block.
    scored : Tensor [B, heads, groups] int64
        Key blocks scored.
    """

    selected: Tensor
    read: Tensor
    scored: Tensor


def tree_search(
    query: Tensor,
    key: Tensor,
    *,
    tokens: int,
    block_q: int = 32,
    block_k: int = 2,
    window: int = 128,
    sink: int = 4,
    query_stride: int = 2,
    representative: Literal["first", "mid"] = "mid",
    shared_by_group: bool = False,
    channels: int | None = None,
    key_start: Tensor | None = None,
) -> TreeOracle:
    """Search the tree as `gossamer.kernels.tree_search` promises to, from scores in float64.

    Parameters and defaults are the kernel's; representatives drawn at random have no oracle.

    Examples
    --------
    >>> key = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0])[None, None, :, None]
    >>> found = tree_search(
    ...     torch.ones(1, 1, 1, 1), key, tokens=1, block_q=1, block_k=1, window=1, sink=0
    ... )
    >>> found.selected.int().tolist(), found.scored.tolist()
    ([[[[0, 0, 1, 0, 0, 0, 0, 1]]]], [[[6]]])
    """
    (batch, heads, q_len, dim), (kv_heads, k_len) = query.shape, key.shape[1:3]
    lists, nodes = kv_heads if shared_by_group else heads, tokens // block_k
    groups = -(-q_len // block_q)
    selected = torch.zeros(batch, lists, groups, k_len, dtype=torch.bool)
    read = torch.zeros(batch, kv_heads, k_len, dtype=torch.bool)
    scored = torch.zeros(batch, lists, groups, dtype=torch.int64)
    for b, head, g in product(range(batch), range(lists), range(groups)):
        rows = query[b].reshape(lists, -1, q_len, dim)[head].double()
        rows = rows[:, g * block_q : (g + 1) * block_q]
        end = g * block_q + rows.shape[1] + k_len - q_len
        start = 0 if key_start is None else min(int(key_start[b]), end)
        stop = max(start, end - window)
        sampled = [*range(query_stride // 2, rows.shape[1], query_stride)] or [-1]
        rows = rows[:, sampled].flatten(0, 1)
        if channels is not None:
            total = rows.abs().sum(0).tolist()
            best = sorted(range(dim), key=lambda d: (-total[d], d))[:channels]
            rows = rows * torch.isin(torch.arange(dim), torch.tensor(best))
        kv_head = head * kv_heads // lists
        highest = (rows @ key[b, kv_head].double().T).amax(0).tolist()
        units = [range(at, min(at + block_k, stop)) for at in range(start, stop, block_k)]
        tree = _split(units, nodes)
        for _ in range((max(map(len, tree), default=1) - 1).bit_length()):
            halves = [half for node in tree for half in _split(node, 2)]
            score = []
            for half in halves:
                unit = half[len(half) // 2 if representative == "mid" else 0]
                score.append(max(highest[token] for token in unit))
                read[b, kv_head, list(unit)] = True
            ranked = sorted(range(len(halves)), key=lambda i: (-score[i], i))
            tree = [halves[i] for i in sorted(ranked[:nodes])]
            scored[b, head, g] += len(halves)
        kept = {token for node in tree for unit in node for token in unit}
        kept |= {*range(start, min(start + sink, stop)), *range(stop, end)}
        selected[b, head, g, list(kept)] = True
    return TreeOracle(selected, read, scored)


def _split(items: list[range], parts: int) -> list[list[range]]:
    """Cut into `parts` runs whose lengths differ by at most one, empty ones left out."""
    cuts = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(cuts) if a < b]
