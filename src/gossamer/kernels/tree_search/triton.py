"""HiP's tree search on CUDA: a program a query block at a time, its nodes in scratch memory."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from gossamer.kernels.triton_mix import mix

PROGRAMS = 2048  # that fill any device; each has scratch memory for six numbers a node
LANES = 1024
NONE = tl.constexpr(-(2**31))  # ranks below every score
NAN = tl.constexpr(0x7FC00000)  # ranks above, as torch sorts it


@triton.jit
def _plant(tree, nodes, kept, blocks, LANES: tl.constexpr):
    """Tile the blocks with `kept` nodes: a first block and a size each."""
    for at in range(0, kept, LANES):
        place = at + tl.arange(0, LANES).to(tl.int64)
        start = blocks * place // kept
        size = blocks * (place + 1) // kept - start
        tl.store(tree + place, start.to(tl.int32), mask=place < kept)
        tl.store(tree + nodes + place, size.to(tl.int32), mask=place < kept)


@triton.jit
def _halves(tree, nodes, kept, place):
    """Return the first block and the size, maybe 0, of halves 2j and 2j + 1 of every node j."""
    there = place < 2 * kept
    start = tl.load(tree + place // 2, mask=there, other=0)
    size = tl.load(tree + nodes + place // 2, mask=there, other=0)
    second = place % 2 == 1
    left = size // 2
    return start + tl.where(second, left, 0), tl.where(second, size - left, left)


@triton.jit
def _representative(start, size, salt, KIND: tl.constexpr):
    if KIND == 0:
        return start
    elif KIND == 1:
        return start + size // 2
    else:
        choices = tl.maximum(size, 1).to(tl.uint64)
        drawn = mix(mix(salt ^ start.to(tl.uint64)) ^ choices)
        return start + (drawn % choices).to(tl.int32)


@triton.jit
def _best(
    queries, rows, keys, column,
    DIM: tl.constexpr, TILE_M: tl.constexpr, TILES: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """Return the largest product of each key [TILE_N, PADDED] with any row of queries."""
    held = column < DIM
    best = tl.full([TILE_N], -float("inf"), tl.float32)
    if TILE_M < 16:  # too few for tensor cores
        for row in range(0, rows):
            query = tl.load(queries + row * DIM + column, mask=held, other=0.0).to(tl.float32)
            best = tl.maximum(best, tl.sum(keys.to(tl.float32) * query[None, :], 1))
    else:
        for at in range(0, TILES * TILE_M, TILE_M):
            row = tl.minimum(at + tl.arange(0, TILE_M), rows - 1)
            cell = queries + row[:, None] * DIM + column[None, :]
            tile = tl.load(cell, mask=held[None, :], other=0.0)
            products = tl.dot(tile, tl.trans(keys), input_precision="ieee")
            best = tl.maximum(best, tl.max(products, 0))
    return best


@triton.jit
def _score(
    tree, ranks, nodes, kept, queries, rows, keys, key_stride, cell, span, salt,
    KIND: tl.constexpr, BLOCK_K: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    TILE_M: tl.constexpr, TILES: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """Write how each half ranks, as integers that order like the scores; return their number."""
    TILE_N: tl.constexpr = HALVES * BLOCK_K
    column = tl.arange(0, PADDED)
    found = tl.zeros([HALVES], tl.int32)
    for at in range(0, 2 * kept, HALVES):
        place = at + tl.arange(0, HALVES)
        start, size = _halves(  # pyright: ignore[reportGeneralTypeIssues]
            tree, nodes, kept, place
        )
        block = _representative(start, size, salt, KIND).to(tl.int64)
        token = block[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        row = tl.reshape(tl.minimum(token, span - 1), [TILE_N]) * key_stride
        there = tl.reshape((size > 0)[:, None] & (token >= 0), [TILE_N])
        held = there[:, None] & (column < DIM)[None, :]
        tile = tl.load(keys + row[:, None] + cell[None, :], mask=held, other=0.0)
        best = _best(queries, rows, tile, column, DIM, TILE_M, TILES, TILE_N)
        score = tl.max(tl.reshape(best, [HALVES, BLOCK_K]), 1)
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0 equals 0
        rank = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        rank = tl.where(score == score, rank, NAN)
        tl.store(ranks + place, tl.where(size > 0, rank, NONE), mask=place < 2 * kept)
        found += (size > 0).to(tl.int32)
    return tl.sum(found)


@triton.jit
def _at_least(ranks, count, bound, LANES: tl.constexpr):
    found = tl.zeros([LANES], tl.int32)
    for at in range(0, count, LANES):
        place = at + tl.arange(0, LANES)
        found += (tl.load(ranks + place, mask=place < count, other=NONE) >= bound).to(tl.int32)
    return tl.sum(found)


@triton.jit
def _keep(tree, after, ranks, nodes, kept, most, LANES: tl.constexpr):
    """Copy the `most` halves of highest rank, the first of equals, in their order to `after`."""
    least = tl.full((), NONE, tl.int32)  # becomes the `most`-th highest rank, bit by bit
    one = tl.full((), 1, tl.int32)
    for bit in range(32):
        raised = least ^ (one << (31 - bit))
        least = tl.where(_at_least(ranks, 2 * kept, raised, LANES) >= most, raised, least)
    equals = most - _at_least(ranks, 2 * kept, least + 1, LANES)
    used = tl.full((), 0, tl.int32)
    tied = tl.full((), 0, tl.int32)
    for at in range(0, 2 * kept, LANES):
        place = at + tl.arange(0, LANES)
        start, size = _halves(tree, nodes, kept, place)
        rank = tl.load(ranks + place, mask=place < 2 * kept, other=NONE)
        tie = (rank == least).to(tl.int32)
        keep = (rank > least) | ((tie == 1) & (tied + tl.cumsum(tie, 0) <= equals))
        to = used + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(after + to, start, mask=keep)
        tl.store(after + nodes + to, size, mask=keep)
        tied += tl.sum(tie)
        used += tl.sum(keep.to(tl.int32))


@triton.jit
def _write(
    out, tree, kept, base, span, end, sink, width, BLOCK_K: tl.constexpr, LANES: tl.constexpr
):
    """Write sinks, tokens of the kept blocks and the window, each once, then -1."""
    lane = tl.arange(0, LANES)
    sinks = tl.minimum(sink, span)
    twice = tl.zeros([LANES], tl.int32)  # tokens of kept blocks that are sinks
    there = tl.zeros([LANES], tl.int32)
    for at in range(0, kept, LANES):
        held = at + lane < kept
        token = tl.load(tree + at + lane, mask=held, other=0).to(tl.int64) * BLOCK_K
        held = held.to(tl.int32)
        twice += held * tl.minimum(tl.maximum(sinks - token, 0), BLOCK_K).to(tl.int32)
        there += held * tl.minimum(span - token, BLOCK_K).to(tl.int32)
    skipped = tl.sum(twice)
    far = sinks + tl.sum(there) - skipped
    for at in range(0, width, LANES):
        column = at + lane
        picked = (column >= sinks) & (column < far)
        place = column - sinks + skipped
        block = tl.load(tree + place // BLOCK_K, mask=picked, other=0).to(tl.int64)
        token = tl.where(column < sinks, column, span + column - far)
        token = tl.where(picked, block * BLOCK_K + place % BLOCK_K, token) + base
        token = tl.where(token < end, token, -1)
        tl.store(out + column, token.to(tl.int32), mask=column < width)


@triton.jit(do_not_specialize=["lists", "groups", "q_len", "k_len", "rows", "width", "seed"])
def tree_search_kernel(
    queries, channels, key, key_start, indices, scored, scratch, key_strides,
    lists, heads, kv_heads, groups, q_len, k_len, block_q, window, sink, rows, nodes, width, seed,
    KIND: tl.constexpr, BLOCK_K: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    TILE_M: tl.constexpr, TILES: tl.constexpr, HALVES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Search for lists id, id + programs, ...; `queries` are [lists, rows, DIM]."""
    scratch += tl.program_id(0).to(tl.int64) * nodes * 6
    ranks = scratch + 4 * nodes
    column = tl.arange(0, PADDED)
    for list_ in range(tl.program_id(0), lists, tl.num_programs(0)):
        at_list = tl.full((), 0, tl.int64) + list_
        g = at_list % groups
        head = at_list // groups % heads
        b = at_list // groups // heads
        first_row = g * block_q
        end = first_row + tl.minimum(block_q, q_len - first_row) + k_len - q_len
        base = tl.full((), 0, tl.int64)
        if key_start is not None:
            base = tl.minimum(tl.load(key_start + b), end)
        span = tl.maximum(end - window - base, 0)
        blocks = (span + BLOCK_K - 1) // BLOCK_K
        # Neither batch nor padding nor chunk: a sequence draws alike wherever it sits.
        salt = mix(mix(mix(seed.to(tl.uint64)) ^ head.to(tl.uint64)) ^ span.to(tl.uint64))
        cell = column
        if channels is not None:
            cell = tl.load(channels + at_list * DIM + column, mask=column < DIM, other=0)
        kv_head = head * kv_heads // heads
        keys_at = key + b * key_strides[0] + kv_head * key_strides[1] + base * key_strides[2]

        kept = tl.minimum(blocks, nodes).to(tl.int32)
        _plant(scratch, nodes, kept, blocks, LANES)
        tl.debug_barrier()
        side = tl.full((), 0, tl.int64)
        total = side
        reach = side + nodes
        while reach < blocks:
            tree = scratch + side * 2 * nodes
            halves = _score(
                tree, ranks, nodes, kept, queries + at_list * rows * DIM, rows, keys_at,
                key_strides[2], cell, span, salt,
                KIND, BLOCK_K, DIM, PADDED, TILE_M, TILES, HALVES,
            )  # fmt: skip
            tl.debug_barrier()
            side = 1 - side
            most = tl.minimum(halves, nodes).to(tl.int32)
            _keep(tree, scratch + side * 2 * nodes, ranks, nodes, kept, most, LANES)
            tl.debug_barrier()
            kept = most
            total += halves
            reach *= 2
        tl.store(scored + at_list, total)
        found = scratch + side * 2 * nodes
        _write(indices + at_list * width, found, kept, base, span, end, sink, width, BLOCK_K, LANES)
        tl.debug_barrier()


def _sampled(
    query: Tensor, heads: int, block_q: int, query_stride: int, channels: int
) -> tuple[Tensor, Tensor | None]:
    """Return the rows to score with [B, heads, groups, rows, channels] and their channels.

    Short blocks repeat a row, which changes no maximum.
    """
    q_heads, q_len, dim = query.shape[1:]
    first = torch.arange(0, q_len, block_q, device=query.device)[:, None]
    last = (first + block_q).clamp(max=q_len) - 1
    offset = query_stride // 2
    start = torch.minimum(first + offset, last)
    row = start + torch.arange(0, max(1, block_q - offset), query_stride, device=query.device)
    real = row <= last
    row = torch.where(real, row, start)
    shared = q_heads // heads
    rows = query[:, :, row].unflatten(1, (heads, shared)).transpose(2, 3).flatten(3, 4)
    if channels == dim:
        return rows.contiguous(), None
    magnitude = (rows.abs().float() * real.repeat(1, shared)[..., None]).sum(3)
    order = magnitude.sort(descending=True, stable=True).indices
    kept = order[..., :channels].sort().values
    return rows.gather(4, kept[:, :, :, None].expand(*rows.shape[:4], -1)), kept


def tile(
    representative: int, rows: int, dim: int, block_k: int, nodes: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the constants of a launch."""
    padded = max(16, triton.next_power_of_2(dim))
    # Exact float32 products use no tensor cores and keep operands in registers.
    tile_m = min(triton.next_power_of_2(rows), 32 if dtype == torch.float32 else 64)
    keys = max(16, block_k, min(32, 4096 // padded))
    return {
        "KIND": representative,
        "BLOCK_K": block_k,
        "DIM": dim,
        "PADDED": padded,
        "TILE_M": tile_m,
        "TILES": -(-rows // tile_m),
        "HALVES": keys // block_k,
        "LANES": min(LANES, triton.next_power_of_2(2 * nodes)),
        "num_warps": 8,
    }


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
    if not scored.numel():
        return
    if knobs.runtime.interpret and query.dtype == torch.bfloat16:
        # The interpreter keeps bfloat16 as integers, and would multiply those.
        query, key = query.float(), key.float()
    _, heads, groups, width = indices.shape
    queries, kept = _sampled(query, heads, block_q, query_stride, channels)
    rows = queries.shape[3]
    programs = min(PROGRAMS, scored.numel())
    scratch = torch.empty(programs, 6 * nodes, dtype=torch.int32, device=query.device)
    with torch.cuda.device_of(query):
        tree_search_kernel[(programs,)](
            queries, kept, key, key_start, indices, scored, scratch, key.stride(),
            scored.numel(), heads, key.shape[1], groups, query.shape[2], key.shape[2],
            block_q, window, sink, rows, nodes, width, seed,
            **tile(representative, rows, channels, block_k, nodes, query.dtype),
        )  # fmt: skip
