"""Gathered attention in plain PyTorch: one query group at a time, its listed keys gathered."""

import torch
from torch import Tensor

from gossamer.kernels.online_softmax import fold
from gossamer.kernels.rotate.reference import rotate
from gossamer.kernels.state import AttentionState


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: tuple[Tensor, Tensor, Tensor],
    list_heads: int,
    group: int,
    *,
    causal: bool,
    scale: float,
    key_start: Tensor | None,
    rotary: tuple[Tensor, Tensor] | None,
    state: AttentionState | None,
) -> AttentionState:
    """Return `state` after every listed key."""
    batch, heads, q_len, _ = query.shape
    kv_heads, k_len = key.shape[1:3]
    groups = -(-q_len // group)
    starts, counts, flat = (part.cpu() for part in lists)
    if state is None:
        state = AttentionState.empty(query)
    else:
        state = AttentionState(state.max.clone(), state.sum.clone(), state.acc.clone())
    for b in range(batch):
        first_key = 0 if key_start is None else int(key_start[b])
        for h in range(heads):
            kv_head = h * kv_heads // heads
            for g in range(groups):
                rows = slice(g * group, min(q_len, (g + 1) * group))
                row = (b * list_heads + h * list_heads // heads) * groups + g
                tokens = flat[starts[row] : starts[row] + counts[row]].to(query.device).long()
                position = torch.arange(rows.start, rows.stop, device=query.device)[:, None]
                visible = (tokens >= first_key).expand(len(position), -1)
                if causal:
                    visible = visible & (tokens <= position + k_len - q_len)
                keys = key[b, kv_head, tokens]
                if rotary is not None:
                    ranks = len(tokens)
                    keys = rotate(keys, rotary[0][:ranks], rotary[1][:ranks])
                top, total, acc = fold(
                    (state.max[b, h, rows], state.sum[b, h, rows], state.acc[b, h, rows]),
                    query[b, h, rows],
                    keys,
                    value[b, kv_head, tokens],
                    visible,
                    scale,
                )
                state.max[b, h, rows] = top
                state.sum[b, h, rows] = total
                state.acc[b, h, rows] = acc
    return state
