"""HiP's tree search in plain Python: one query block at a time, as the algorithm reads."""

import torch
from torch import Tensor

WORD = (1 << 64) - 1


def _mix(x: int) -> int:
    """Splitmix64, so that every implementation draws the same representatives."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def _representative(kind: int, salt: int, start: int, size: int) -> int:
    if kind == 0:
        return start
    if kind == 1:
        return start + size // 2
    return start + _mix(_mix(salt ^ start) ^ size) % size


def search(
    query: Tensor,
    key: Tensor,
    indices: Tensor,
    scored: Tensor,
    nodes: int,
    block_q: int,
    block_k: int,
    window: int,
    sink: int,
    query_stride: int,
    representative: int,
    channels: int,
    seed: int,
    key_start: Tensor | None,
) -> None:
    """Fill `indices` [B, heads, groups, width] and `scored` [B, heads, groups]."""
    batch, heads, groups = indices.shape[:3]
    (q_heads, q_len), (kv_heads, k_len) = query.shape[1:3], key.shape[1:3]
    shared = q_heads // heads
    for b in range(batch):
        for head in range(heads):
            keys = key[b, head * kv_heads // heads]
            for g in range(groups):
                rows = query[b, head * shared : (head + 1) * shared, g * block_q :][:, :block_q]
                end = g * block_q + rows.shape[1] + k_len - q_len
                base = 0 if key_start is None else min(int(key_start[b]), end)
                span = max(0, end - window - base)
                offset = query_stride // 2
                sampled = rows[:, offset::query_stride] if offset < rows.shape[1] else rows[:, -1:]
                # Neither batch nor padding nor chunk: a sequence draws alike wherever it sits.
                salt = _mix(_mix(_mix(seed) ^ head) ^ span)
                chosen, count = _select(
                    sampled.reshape(-1, query.shape[3]).float(),
                    keys[base : base + span],
                    nodes,
                    block_k,
                    representative,
                    channels,
                    salt,
                )
                firsts = torch.arange(min(sink, span))
                picked = (chosen[:, None] * block_k + torch.arange(block_k)).reshape(-1)
                picked = picked[(picked < span) & (picked >= len(firsts))]
                tokens = torch.cat([firsts, picked, torch.arange(span, end - base)]) + base
                indices[b, head, g] = -1
                indices[b, head, g, : len(tokens)] = tokens.to(indices)
                scored[b, head, g] = count


def _select(
    query: Tensor,
    keys: Tensor,
    nodes: int,
    block_k: int,
    representative: int,
    channels: int,
    salt: int,
) -> tuple[Tensor, int]:
    """Return the ascending ids of the kept key blocks and how many blocks were scored."""
    span = keys.shape[0]
    blocks = -(-span // block_k)
    if blocks <= nodes:
        return torch.arange(blocks), 0
    if channels < query.shape[1]:
        order = query.abs().sum(0).sort(descending=True, stable=True).indices
        kept = order[:channels].sort().values
        query, keys = query[:, kept], keys[:, kept]
    tree = [(blocks * j // nodes, blocks * (j + 1) // nodes) for j in range(nodes)]
    reach, scored = nodes, 0
    while reach < blocks:
        halves = []
        for start, stop in tree:
            middle = start + (stop - start) // 2
            halves += [half for half in ((start, middle), (middle, stop)) if half[0] < half[1]]
        block = torch.tensor(
            [_representative(representative, salt, start, stop - start) for start, stop in halves]
        )
        token = (block[:, None] * block_k + torch.arange(block_k)).clamp(max=span - 1)
        products = query @ keys[token.reshape(-1).to(keys.device)].float().T
        score = products.amax(0).reshape(-1, block_k).amax(1)
        scored += len(halves)
        order = score.sort(descending=True, stable=True).indices[:nodes]
        tree = [halves[int(i)] for i in order.sort().values]
        reach *= 2
    return torch.tensor([start for start, _ in tree]), scored
