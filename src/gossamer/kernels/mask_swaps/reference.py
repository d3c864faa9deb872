"""DSnoT's swaps in plain PyTorch, all rows at once."""

import torch
from torch import Tensor

from gossamer.scores import activation_weighted


def swap(
    weight: Tensor,
    mask: Tensor,
    total: Tensor,
    norm: Tensor,
    steady: Tensor,
    scores: Tensor,
    cycles: int,
    threshold: float,
    guarded: bool,
    group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mask, swaps and errors before and after.

    Candidates are ranked once, so that a cycle costs a few operations on vectors of rows.
    """
    effect = weight * total
    before = effect.masked_fill(mask, 0.0).sum(1, dtype=torch.float64)
    error = before.clone()
    # A guarded row heads one way only; others may cross zero and need both rankings.
    one = torch.ones_like(error)
    headings = [h[:, None].to(weight) for h in ([error.sign()] if guarded else [one, -one])]
    keys = effect * steady
    entering = _ranked([(h * keys, ~mask & (h * effect > 0)) for h in headings], cycles)
    importance = activation_weighted(weight, norm)
    leaving = remaining = importance
    if group:
        remaining = scores.masked_fill(~mask, torch.inf).unflatten(1, (-1, group))
    else:
        leaving = _ranked([(-importance, mask & (h * effect < 0)) for h in headings], cycles)

    mask, rows = mask.clone(), torch.arange(len(mask), device=mask.device)
    swaps = torch.zeros_like(rows)
    places = torch.zeros(len(headings), len(rows), dtype=torch.int64, device=mask.device)
    live = error.abs() > threshold
    for _ in range(cycles):
        if not bool(live.any()):
            break
        side = torch.zeros_like(rows) if guarded else (error < 0).long()
        at = (side, rows, places[side, rows])
        enter, live = entering[at], live & (entering[at] >= 0)
        if group:
            least, cell = remaining[rows, enter // group].min(1)
            leave, live = enter // group * group + cell, live & (least < torch.inf)
        else:
            leave, live = leaving[at], live & (leaving[at] >= 0)
        after = error + effect[rows, leave].double() - effect[rows, enter].double()
        if guarded:
            live = live & (after * before >= 0)
        error = torch.where(live, after, error)
        moved = rows[live]
        mask[moved, enter[live]], mask[moved, leave[live]] = True, False
        if group:
            remaining[moved, leave[live] // group, leave[live] % group] = torch.inf
        places[side[live], moved] += 1
        swaps[moved] += 1
        live = live & (error.abs() > threshold)
    return mask, swaps, before, error


def _ranked(candidates: list[tuple[Tensor, Tensor]], depth: int) -> Tensor:
    """Return the columns of each row's best candidates, best first, -1 where there are no more.

    Takes (keys, mask of candidates) for each heading; int64 [headings, rows, depth].
    """
    found = []
    for keys, allowed in candidates:
        best = keys.masked_fill(~allowed, -torch.inf).topk(depth, 1)
        found.append(best.indices.masked_fill(best.values == -torch.inf, -1))
    return torch.stack(found)
