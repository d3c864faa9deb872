"""How attention over lists of keys is launched on CUDA: tile sizes, splits, strides."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from gossamer.kernels.triton_tiles import attend_kernel, merge_kernel

SPLIT_KEYS = 128  # the fewest keys worth a program of their own
MOST_SPLITS = 64  # the merging program holds them all in registers


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut up: rows and keys a tile, warps a program, tiles of keys in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


def tiling(rows: int, width: int, dtype: torch.dtype, shared_memory: int, rotary: bool) -> Tiling:
    """Choose the tiles for lists of `rows` rows: by rule for the H100, fewer in flight elsewhere.

    Parameters
    ----------
    rows : int
        Query rows that share a list.
    width : int
        Head dim, padded to a power of two.
    dtype : torch.dtype
        Of query, key and value.
    shared_memory : int
        Bytes a program may use.
    rotary : bool
        Whether float32 cosines and sines come with the keys.

    Returns
    -------
    Tiling
    """
    least = max(16, _power_of_two(rows))
    if dtype == torch.float32:  # exact products use no tensor cores and keep operands in registers
        tile = min(least, 64 if width <= 64 else 32)
        keys, warps = 32 if width <= 256 else 16, 8 if width <= 64 else 16
    else:
        tile = min(least, 128, 16384 // width)
        keys, warps = min(64, 8192 // width), 8 if tile == 128 or tile * width > 8192 else 4
    stage = keys * width * (2 * dtype.itemsize + 4 * rotary)
    stages = (shared_memory - tile * width * dtype.itemsize) // stage
    return Tiling(tile, keys, warps, max(1, min(3, stages)))


def splits(programs: int, keys: int, processors: int) -> int:
    """Return over how many programs to split each list, so that few lists still fill the device.

    Parameters
    ----------
    programs : int
        Programs without splitting.
    keys : int
        Keys a list.
    processors : int
        Multiprocessors of the device.
    """
    return max(1, min(2 * processors // programs, keys // SPLIT_KEYS, MOST_SPLITS))


@cache
def _limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory a program may use."""
    if device.type == "cpu":  # interpreted, as if on an H100
        return 132, 232448
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_multiprocessor - 1024


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: tuple[Tensor, Tensor, Tensor] | None,
    results: tuple[Tensor, ...],
    *,
    list_heads: int,
    group: int,
    unit: int,
    causal: bool,
    scale: float,
    sink: int = 0,
    local: int = 0,
    key_start: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Fill `results`: (output, lse), or (max, sum, acc) of the softmax left unfinished.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key, value : Tensor [B, H_kv, k_len, D]
    lists : (starts, counts, indices), optional
        A pattern's `rows`; None lists every key.
    results : tuple of Tensor
        Contiguous, but for the output.
    list_heads : int
        Heads that have lists, ignored without lists; so are `group` and `unit`.
    group : int
        Queries that share a list.
    unit : int
        Consecutive keys that an index stands for.
    causal : bool
    scale : float
    sink, local : int
        The window; none when `local` is 0.
    key_start : Tensor [B] int64, optional
    rotary : (cosine, sine), Tensor [n, D / 2] float32, optional
    state : (max, sum, acc), optional
        The softmax to go on from.
    """
    (batch, heads, q_len, dim), (kv_heads, k_len) = query.shape, key.shape[1:3]
    if query.numel() == 0:
        return
    if knobs.runtime.interpret and query.dtype == torch.bfloat16:
        # The interpreter keeps bfloat16 as integers, and would multiply those.
        query, key, value = query.float(), key.float(), value.float()
    width = max(16, _power_of_two(dim))
    processors, shared_memory = _limits(query.device)
    fixed = width, query.dtype, shared_memory, rotary is not None
    if lists is None:
        list_heads, group = kv_heads, tiling(q_len, *fixed).rows
    groups = -(-q_len // group)
    sets = max(list_heads, kv_heads)
    rows = heads // sets * min(group, q_len)
    tile = tiling(rows, *fixed)
    tiles = -(-rows // tile.rows)
    if lists is None:
        unit, listed = tile.keys, min(k_len, sink + local + group) if local else k_len
    else:  # the mean, which needs no look at the counts on the device
        listed = lists[2].numel() // lists[0].numel() * unit
    programs = batch * sets * groups * tiles
    parts = splits(programs, listed, processors)
    partial = results
    if parts > 1:
        shape = (parts, batch, heads, q_len)
        shapes = (shape, shape, (*shape, dim))
        partial = tuple(query.new_empty(each, dtype=torch.float32) for each in shapes)
    finish = len(results) == 2
    constants: dict[str, Any] = {
        "CAUSAL": causal,
        "WINDOW": local > 0,
        "UNIT": unit,
        "DIM": dim,
        "PADDED": width,
        "HALF_PADDED": max(16, width // 2),
        "TILE_M": tile.rows,
        "TILE_N": tile.keys,
        "FINISH": finish and parts == 1,
        "num_warps": tile.warps,
        # Where a tile has several indices, these go through stages too, ahead of their keys.
        "num_stages": tile.stages if unit % tile.keys == 0 else 2 * tile.stages - 1,
    }
    merging: dict[str, Any] = {
        "DIM": dim,
        "PADDED": width,
        "SPLITS": _power_of_two(parts),
        "FINISH": finish,
        "num_warps": 4 if width <= 256 else 8,
    }
    with torch.cuda.device_of(query):
        attend_kernel[(programs * parts,)](
            query,
            key,
            value,
            lists,
            key_start,
            rotary,
            state,
            partial,
            query.stride(),
            key.stride(),
            value.stride(),
            results[0].stride(),
            batch,
            heads,
            kv_heads,
            list_heads,
            q_len,
            k_len,
            group,
            groups,
            tiles,
            parts,
            scale,
            sink,
            local,
            **constants,
        )
        if parts > 1:
            merge_kernel[(batch * heads * q_len,)](
                partial,
                results,
                results[0].stride(),
                heads,
                q_len,
                batch * heads * q_len,
                parts,
                **merging,
            )
