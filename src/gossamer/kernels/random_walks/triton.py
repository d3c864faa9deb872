"""Random walks on CUDA: a program an edge, its walkers the lanes."""

import triton
import triton.language as tl
from torch import Tensor

from gossamer.kernels.triton_mix import mix

LANES = 128


@triton.jit
def random_walks_kernel(
    rows, neighbour, resistance, sources, targets, limits, found, found_walker, found_steps,
    walkers, max_steps, seed, BEST: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64)
    source = tl.load(sources + edge)
    target = tl.load(targets + edge)
    bound = tl.load(limits + edge)
    edge_key = mix(mix(((source << 32) | target).to(tl.uint64)) + seed.to(tl.uint64))
    best = tl.full((), float("inf"), tl.float32)
    best_walker = tl.full((), -1, tl.int32)
    best_steps = tl.full((), 0, tl.int32)
    begin = tl.full((), 0, tl.int32)
    while begin < walkers:
        lane = begin + tl.arange(0, LANES)
        alive = lane < walkers
        key = mix(edge_key + lane.to(tl.uint64))
        vertex = tl.full((LANES,), 0, tl.int64) + source
        before = tl.full((LANES,), -1, tl.int64)
        total = tl.full((LANES,), 0.0, tl.float32)
        arrived = tl.full((LANES,), float("inf"), tl.float32)
        taken = tl.full((LANES,), 0, tl.int32)
        step = tl.full((), 0, tl.int64)
        walking = tl.full((), 1, tl.int32)
        while (step < max_steps) & (walking > 0):
            first = tl.load(rows + 2 * vertex, mask=alive, other=0)
            choices = tl.load(rows + 2 * vertex + 1, mask=alive, other=0) - tl.minimum(step, 1)
            alive = alive & (choices > 0)
            draw = mix(key + step.to(tl.uint64) * 0x9E3779B97F4A7C15) >> 32
            slot = first + ((draw * choices.to(tl.uint64)) >> 32).to(tl.int64)
            chosen = tl.load(neighbour + slot, mask=alive, other=-2).to(tl.int64)
            back = alive & (chosen == before)
            slot = tl.where(back, first + choices, slot)
            chosen = tl.where(back, tl.load(neighbour + slot, mask=back, other=-2), chosen)
            total += tl.load(resistance + slot, mask=alive, other=0.0)
            alive = alive & (total < bound)
            there = alive & (chosen == target)
            arrived = tl.where(there, total, arrived)
            taken = tl.where(there, (step + 1).to(tl.int32), taken)
            alive = alive & (chosen != target)
            before = vertex
            vertex = chosen
            walking = tl.sum(alive.to(tl.int32), 0)
            step += 1
        least = tl.min(arrived, 0)
        if least < float("inf"):  # below the bound, so better than what came before
            if BEST:
                best_walker = tl.min(tl.where(arrived == least, lane, walkers), 0)
            else:
                best_walker = tl.min(tl.where(arrived < float("inf"), lane, walkers), 0)
            best = tl.sum(tl.where(lane == best_walker, arrived, 0.0), 0)
            best_steps = tl.sum(tl.where(lane == best_walker, taken, 0), 0)
            if BEST:
                bound = best
            else:
                begin = begin * 0 + walkers
        begin += LANES
    tl.store(found + edge, best)
    tl.store(found_walker + edge, best_walker)
    tl.store(found_steps + edge, best_steps)


def search(
    rows: Tensor,
    neighbour: Tensor,
    resistance: Tensor,
    source: Tensor,
    target: Tensor,
    limit: Tensor,
    walkers: int,
    max_steps: int,
    best: bool,
    seed: int,
    found: Tensor,
    found_walker: Tensor,
    found_steps: Tensor,
) -> None:
    """Fill the resistance, walker and steps [edges] of the walker to report for each edge."""
    if not len(source):
        return
    random_walks_kernel[(len(source),)](
        rows,
        neighbour,
        resistance,
        source,
        target,
        limit,
        found,
        found_walker,
        found_steps,
        walkers,
        max_steps,
        seed,
        BEST=best,  # pyright: ignore[reportArgumentType]
        LANES=min(LANES, triton.next_power_of_2(walkers)),  # pyright: ignore[reportArgumentType]
    )
