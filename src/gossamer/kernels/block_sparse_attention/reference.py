"""Block-sparse attention in plain PyTorch: one query block at a time, its key blocks gathered."""

import torch
from torch import Tensor

from gossamer.kernels.online_softmax import fold
from gossamer.kernels.state import AttentionState
from gossamer.patterns import Window


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: tuple[Tensor, Tensor, Tensor] | None,
    list_heads: int,
    block: int,
    *,
    causal: bool,
    scale: float,
    window: Window | None,
    key_start: Tensor | None,
) -> AttentionState:
    """Return the state after every listed key block (all of them when `lists` is None)."""
    batch, heads, q_len, _ = query.shape
    kv_heads, k_len = key.shape[1:3]
    blocks = -(-q_len // block)
    state = AttentionState.empty(query)
    every = torch.arange(k_len, device=query.device)
    if lists is not None:
        starts, counts, flat = (part.cpu() for part in lists)
    for b in range(batch):
        first_key = 0 if key_start is None else int(key_start[b])
        for h in range(heads):
            kv_head = h * kv_heads // heads
            for t in range(blocks):
                rows = slice(t * block, min(q_len, (t + 1) * block))
                if lists is None:
                    tokens = every
                else:
                    row = (b * list_heads + h * list_heads // heads) * blocks + t
                    chosen = flat[starts[row] : starts[row] + counts[row]].to(query.device)
                    tokens = chosen[:, None] * block + torch.arange(block, device=query.device)
                    tokens = tokens.reshape(-1)
                    tokens = tokens[tokens < k_len].long()
                position = torch.arange(rows.start, rows.stop, device=query.device)[:, None]
                position = position + k_len - q_len
                visible = (tokens >= first_key).expand(len(position), -1)
                if causal:
                    visible = visible & (tokens <= position)
                if window is not None:
                    near = (tokens > position - window.local) | (tokens < first_key + window.sink)
                    visible = visible & near
                kept = visible.any(0)
                tokens, visible = tokens[kept], visible[:, kept]
                top, total, acc = fold(
                    (state.max[b, h, rows], state.sum[b, h, rows], state.acc[b, h, rows]),
                    query[b, h, rows],
                    key[b, kv_head, tokens],
                    value[b, kv_head, tokens],
                    visible,
                    scale,
                )
                state.max[b, h, rows] = top
                state.sum[b, h, rows] = total
                state.acc[b, h, rows] = acc
    return state
