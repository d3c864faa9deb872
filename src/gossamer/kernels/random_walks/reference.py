"""Random walks in PyTorch: every walker of every edge takes its next step at once."""

import torch
from torch import Tensor

LANES = 2**18  # walkers advanced together; bounds memory


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)


def _mix(x: Tensor) -> Tensor:
    """Splitmix64, on int64 whose products wrap as unsigned ones do."""
    x = x + GOLDEN
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _keys(source: Tensor, target: Tensor, walker: Tensor, seed: int) -> Tensor:
    """Start of each walker's own stream of draws."""
    return _mix(_mix(_mix((source << 32) | target) + seed) + walker)


def _next(
    rows: Tensor, neighbour: Tensor, vertex: Tensor, before: Tensor, key: Tensor, step: int
) -> Tensor:
    """Return the slot each walker leaves through, -1 in a dead end.

    One of the neighbours but the last is drawn; if it is the one to avoid, the last replaces it.
    """
    first, degree = rows[vertex].unbind(-1)
    choices = degree - min(step, 1)
    draw = _shifted(_shifted(_mix(key + _signed(step * GOLDEN)), 32) * choices.clamp(min=0), 32)
    slot = first + draw
    stuck = choices <= 0
    back = neighbour[slot.masked_fill(stuck, 0)] == before
    return torch.where(back, first + choices, slot).masked_fill(stuck, -1)


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
    if not neighbour.numel():
        found.fill_(torch.inf)
        found_walker.fill_(-1)
        found_steps.fill_(0)
        return
    together = max(1, LANES // walkers)
    number = torch.arange(walkers, device=source.device)
    for start in range(0, len(source), together):
        ends = source[start : start + together, None], target[start : start + together, None]
        shape = (len(ends[0]), walkers)
        arrived = torch.full(shape, torch.inf, device=source.device)
        taken = torch.zeros(shape, dtype=torch.int32, device=source.device)
        lane = torch.arange(arrived.numel(), device=source.device)
        key = _keys(*ends, number, seed).flatten()
        vertex = ends[0].expand(shape).flatten()
        goal = ends[1].expand(shape).flatten()
        most = limit[start : start + together, None].expand(shape).flatten()
        before, total = torch.full_like(vertex, -1), torch.zeros_like(most)
        for step in range(max_steps):
            slot = _next(rows, neighbour, vertex, before, key, step)
            total = total + resistance[slot.clamp(min=0)]
            alive = (slot >= 0) & (total < most)
            before, vertex = vertex, neighbour[slot.clamp(min=0)].long()
            there = alive & (vertex == goal)
            arrived.view(-1)[lane[there]] = total[there]
            taken.view(-1)[lane[there]] = step + 1
            going = alive & ~there
            lane, key, vertex, goal, most, before, total = (
                part[going] for part in (lane, key, vertex, goal, most, before, total)
            )
            if not len(lane):
                break
        ranked = arrived if best else number.where(arrived.isfinite(), walkers)
        walker = ranked.argmin(1, keepdim=True)
        resistance_found = arrived.gather(1, walker)
        rows_of = slice(start, start + together)
        found[rows_of] = resistance_found[:, 0]
        found_steps[rows_of] = taken.gather(1, walker)[:, 0]
        found_walker[rows_of] = walker.masked_fill(resistance_found.isinf(), -1)[:, 0].int()


def trace(
    rows: Tensor,
    neighbour: Tensor,
    source: Tensor,
    target: Tensor,
    walker: Tensor,
    steps: int,
    seed: int,
) -> Tensor:
    """Return the vertices [walks, steps + 1] that walkers pass, -1 after a dead end."""
    key = _keys(source, target, walker, seed)
    path = torch.full((len(source), steps + 1), -1, device=source.device)
    path[:, 0] = source
    lane, vertex, before = torch.arange(len(source), device=source.device), source, -source - 1
    for step in range(steps if neighbour.numel() else 0):
        slot = _next(rows, neighbour, vertex, before, key, step)
        alive = slot >= 0
        path[lane[alive], step + 1] = neighbour[slot[alive]].long()
        lane, key, before = lane[alive], key[alive], vertex[alive]
        vertex = path[lane, step + 1]
    return path
