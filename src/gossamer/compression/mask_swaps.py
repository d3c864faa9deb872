"""The swap loop of DSnoT: weights enter and leave a mask until expected errors cancel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.patterns import NM, WeightPattern
from gossamer.scores import activation_weighted

LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Refinement:
    """What the swap loop did to a mask.

    Parameters
    ----------
    mask : Tensor [out, in] bool
    swaps : Tensor [out] int64
        Of each row.
    before, after : Tensor [out] float64
        Expected error of each row's output, summed over a sequence.
    """

    mask: Tensor
    swaps: Tensor
    before: Tensor
    after: Tensor


def dsnot_refine(
    weight: Tensor,
    mask: Tensor,
    *,
    total: Tensor,
    norm: Tensor,
    variance: Tensor,
    max_cycles: int,
    threshold: float = 0.1,
    var_power: float = 1.0,
    same_sign: bool = True,
    pattern: WeightPattern | None = None,
    scores: Tensor | None = None,
) -> Refinement:
    """Swap weights in and out of a mask, every row by itself; `DSnoT` says by what rule.

    Candidates are ranked once, so that a cycle costs a few operations on vectors of rows.

    Parameters
    ----------
    weight : Tensor [out, in] float32
    mask : Tensor [out, in] bool
        Neither is changed.
    total, norm, variance : Tensor [in]
        Of the inputs: sum over a sequence, L2 norm over a sequence, variance over tokens.
    max_cycles : int
        Swaps a row, at most.
    threshold : float, default=0.1
        Rows stop at ``|error| <= threshold``.
    var_power : float, default=1.0
        Entering weights are ranked by ``weight * total / variance ** var_power``.
    same_sign : bool, default=True
        Stop before a swap that turns the sign of a row's error; N:M always does.
    pattern : WeightPattern, optional
        ``NM(n, m)`` swaps within groups.
    scores : Tensor [out, in], optional
        By which N:M chooses what leaves; ``|weight| * norm`` by default.

    Returns
    -------
    Refinement

    Examples
    --------
    >>> one = torch.ones(4)
    >>> weight, mask = torch.tensor([[2.0, 1.0, -0.5, 3.0]]), torch.tensor([[0, 0, 1, 1]]).bool()
    >>> found = dsnot_refine(weight, mask, total=one, norm=one, variance=one, max_cycles=4)
    >>> found.mask.tolist(), found.before.tolist(), found.after.tolist()
    ([[True, False, False, True]], [3.0], [0.5])
    """
    effect = weight * total.to(weight)
    error = before = (effect * ~mask).sum(1, dtype=torch.float64)
    width = pattern.m if isinstance(pattern, NM) else 0  # of groups, within which to swap
    same_sign = same_sign or width > 0
    # A guarded row heads one way only; others may cross zero and need both rankings.
    one = torch.ones_like(error)
    headings = [h[:, None].to(weight) for h in ([error.sign()] if same_sign else [one, -one])]
    depth = min(max_cycles, weight.shape[1])
    keys = effect / variance.to(weight).clamp(min=LEAST_VARIANCE).pow(var_power)
    entering = _ranked([(h * keys, ~mask & (h * effect > 0)) for h in headings], depth)
    importance = activation_weighted(weight, norm.to(weight))
    leaving = remaining = importance
    if width:
        ranks = (importance if scores is None else scores).to(weight)
        remaining = ranks.masked_fill(~mask, torch.inf).unflatten(1, (-1, width))
    else:
        leaving = _ranked([(-importance, mask & (h * effect < 0)) for h in headings], depth)

    mask, rows = mask.clone(), torch.arange(len(mask), device=mask.device)
    swaps = torch.zeros_like(rows)
    places = torch.zeros(len(headings), len(rows), dtype=torch.int64, device=mask.device)
    live = error.abs() > threshold
    for _ in range(depth):
        if not bool(live.any()):
            break
        side = torch.zeros_like(rows) if same_sign else (error < 0).long()
        at = (side, rows, places[side, rows])
        enter, live = entering[at], live & (entering[at] >= 0)
        if width:
            least, cell = remaining[rows, enter // width].min(1)
            leave, live = enter // width * width + cell, live & (least < torch.inf)
        else:
            leave, live = leaving[at], live & (leaving[at] >= 0)
        after = error + effect[rows, leave].double() - effect[rows, enter].double()
        if same_sign:
            live = live & (after * before >= 0)
        error = torch.where(live, after, error)
        moved = rows[live]
        mask[moved, enter[live]], mask[moved, leave[live]] = True, False
        if width:
            remaining[moved, leave[live] // width, leave[live] % width] = torch.inf
        places[side[live], moved] += 1
        swaps[moved] += 1
        live = live & (error.abs() > threshold)
    return Refinement(mask, swaps, before, error)


def _ranked(candidates: list[tuple[Tensor, Tensor]], depth: int) -> Tensor:
    """Return the columns of each row's best candidates, best first, -1 where there are no more.

    Takes (keys, mask of candidates) for each heading; int64 [headings, rows, depth].
    """
    found = []
    for keys, allowed in candidates:
        best = keys.masked_fill(~allowed, -torch.inf).topk(depth, 1)
        found.append(best.indices.masked_fill(best.values == -torch.inf, -1))
    return torch.stack(found)
