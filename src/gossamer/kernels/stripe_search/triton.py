"""Stripe identification on CUDA: a program for each tile of keys, group and key head."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from gossamer.patterns import StripePattern


@triton.jit
def stripe_search_kernel(
    pooled, key, threshold, begin, end, hits, pooled_strides, key_strides,
    heads, kv_heads, list_heads, rows, k_len, step, groups,
    DIM: tl.constexpr, PADDED: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
):  # fmt: skip
    """Test one tile of keys against the rows of a group in all heads that read them."""
    work = tl.program_id(0)  # the groups of a tile of keys side by side, to share it in the cache
    g = (work % groups).to(tl.int64)
    tiles = tl.cdiv(k_len, TILE_N)
    first = (work // groups % tiles).to(tl.int64) * TILE_N
    kv_head = (work // groups // tiles % kv_heads).to(tl.int64)
    b = (work // groups // tiles // kv_heads).to(tl.int64)
    low = tl.maximum(tl.load(begin + b * groups + g), first)
    high = tl.minimum(tl.load(end + b * groups + g), first + TILE_N)
    if low >= high:
        return
    token = first + tl.arange(0, TILE_N)
    searched = (token >= low) & (token < high)
    column = tl.arange(0, PADDED)
    held = (column < DIM)[None, :]
    key += b * key_strides[0] + kv_head * key_strides[1]
    key_cell = key + token[:, None] * key_strides[2] + column[None, :]
    keys = tl.load(key_cell, mask=searched[:, None] & held, other=0.0)

    shared = heads // kv_heads
    parts = tl.cdiv(step, TILE_M)
    for part in range(0, shared * parts):
        head = kv_head * shared + part // parts
        place = part % parts * TILE_M + tl.arange(0, TILE_M)
        row = g * step + place
        there = (place < step) & (row < rows)
        cell = pooled + b * pooled_strides[0] + head * pooled_strides[1]
        cell += row[:, None] * pooled_strides[2] + column[None, :]
        queries = tl.load(cell, mask=there[:, None] & held, other=0.0)
        least = tl.load(threshold + (b * heads + head) * rows + row, mask=there, other=float("inf"))
        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        hit = tl.max((scores >= least[None, :]).to(tl.int32), 1) > 0
        list_ = (b * list_heads + head * list_heads // heads) * groups + g
        # Heads that share a list only ever write ones, so they need no atomics.
        tl.store(hits + list_ * k_len + token, 1, mask=searched & hit)


def tiling(dim: int, step: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the tiles, by rule: both fit 64 KiB, which sm_75 has, as float32."""
    padded = max(16, triton.next_power_of_2(dim))
    exact = dtype == torch.float32  # no tensor cores: operands stay in registers
    return {
        "DIM": dim,
        "PADDED": padded,
        "TILE_M": max(16, min(triton.next_power_of_2(step), 64, 8192 // padded)),
        "TILE_N": min(32 if exact else 128, 8192 // padded),
        "num_warps": 8 if exact else 4,
        "num_stages": 2,
    }


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
    (batch, heads, rows, dim), (kv_heads, k_len) = pooled.shape, key.shape[1:3]
    groups = begin.shape[1]
    hits = torch.zeros(batch, list_heads, groups, k_len, dtype=torch.bool, device=key.device)
    tile = tiling(dim, step, key.dtype)
    if knobs.runtime.interpret and key.dtype == torch.bfloat16:
        # The interpreter keeps bfloat16 as integers, and would multiply those.
        pooled, key = pooled.float(), key.float()
    programs = batch * kv_heads * groups * triton.cdiv(k_len, tile["TILE_N"])
    if programs:
        with torch.cuda.device_of(key):
            stripe_search_kernel[(programs,)](
                pooled, key, threshold, begin, end, hits.view(torch.uint8),
                pooled.stride(), key.stride(), heads, kv_heads, list_heads, rows, k_len, step,
                groups, **tile,
            )  # fmt: skip
    pattern = StripePattern.from_mask(hits, group=step)
    return pattern.offsets, pattern.indices
