"""Order of rows: which output channels stand together in groups that are pruned whole."""

from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer.compression.kernel_groups import group_scores, kept_score, kept_units

Method = Literal["l1", "kmeans", "swap"]
METHODS = get_args(Method)
SWEEPS = 3
LEAST_GAIN = 1e-4  # share of what is kept that a sweep must add for another to follow
MOST_WORK = 4e9  # gains worked out at most, a few operations each; a clock would not be repeatable
CHUNK = 2**18  # gains at a time: they stay in the second-level cache
ITERATIONS = 10  # of k-means


def best_order(
    scores: list[Tensor], group: int, sparsity: float, method: Method, seed: int
) -> Tensor:
    """Return an order of rows whose groups of consecutive rows keep much when pruned.

    Parameters
    ----------
    scores : list of Tensor [n, K]
        Of kernels, one matrix a layer that produces these channels.
    group : int
        Rows a group.
    sparsity : float
        Share of each layer's units that will be removed.
    method : {"swap", "kmeans", "l1"}
        See `gossamer.compression.channel_rearrange`.
    seed : int
        Of the clusters' first centres.

    Returns
    -------
    Tensor [n] int64

    Examples
    --------
    >>> scores = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.1], [0.1, 5.0]])
    >>> best_order([scores], 2, 0.5, "swap", 0).unflatten(0, (2, 2)).sort().values.tolist()
    [[0, 2], [1, 3]]
    """
    rows = torch.cat(scores, 1)
    by_norm = rows.sum(1).argsort(descending=True, stable=True)
    if method == "l1":
        return by_norm
    clusters = _balanced_clusters(rows, by_norm, group, seed)
    if method == "kmeans":
        return clusters

    def kept(order: Tensor) -> float:
        return sum(kept_score(score[order], group, sparsity) for score in scores)

    starts = [torch.arange(len(rows)), by_norm, clusters]
    order = max(starts, key=kept)  # the first of equals
    for _ in range(SWEEPS):
        better = _sweep(scores, order, group, sparsity)
        gain = kept(better) - kept(order)
        if gain <= 0:
            break
        order = better
        if gain < LEAST_GAIN * kept(order):
            break
    return order


def _balanced_clusters(rows: Tensor, by_norm: Tensor, group: int, seed: int) -> Tensor:
    """K-means of the rows with `group` of them in each cluster; what is left over comes last."""
    whole = len(rows) // group * group
    kept, left = by_norm[:whole].sort().values, by_norm[whole:]
    clusters = whole // group
    if clusters < 2:
        return torch.cat([kept, left])
    points = rows[kept]
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(whole, generator=generator)[:clusters]]
    order = torch.arange(whole)
    for _ in range(ITERATIONS):
        distances = torch.cdist(points, centres)
        nearest, second = distances.topk(2, dim=1, largest=False).values.T
        members: list[list[int]] = [[] for _ in range(clusters)]
        # Those that lose most by their second choice choose first.
        for point in (second - nearest).argsort(descending=True, stable=True).tolist():
            cluster = int(distances[point].argmin())
            members[cluster].append(point)
            if len(members[cluster]) == group:
                distances[:, cluster] = torch.inf
        new = torch.tensor(members).flatten()
        if torch.equal(new, order):
            break
        order = new
        centres = points[order].unflatten(0, (clusters, group)).mean(1)
    return torch.cat([kept[order], left])


def _sweep(scores: list[Tensor], order: Tensor, group: int, sparsity: float) -> Tensor:
    """Let every two groups swap the pair of channels that adds most to J, layer thresholds fixed.

    A layer that keeps n units of scores u keeps ``min over t of n t + sum max(u - t, 0)``, so the
    gain of a swap is how the second term moves.
    """
    rows = torch.cat(scores, 1)[order]
    thresholds = torch.cat(
        [
            units[kept_units(units, sparsity)].min().expand(score.shape[1])
            for score in scores
            if len(units := group_scores(score[order], group))
        ]
    )
    groups = len(rows) // group
    pairs = groups // 2 * group * group * rows.shape[1]  # gains a round
    tiles = rows[: groups * group].unflatten(0, (groups, group)).clone()
    places = torch.arange(groups * group).unflatten(0, (groups, group))
    for a, b in _rounds(groups)[: max(1, int(MOST_WORK / SWEEPS / max(1, pairs)))]:
        step = max(1, CHUNK // (group * group * rows.shape[1]))
        for a_part, b_part in zip(a.split(step), b.split(step), strict=True):
            _swap(tiles, places, a_part, b_part, thresholds)
    return torch.cat([order[places.flatten()], order[groups * group :]])


def _swap(tiles: Tensor, places: Tensor, a: Tensor, b: Tensor, thresholds: Tensor) -> None:
    """Swap the best channel of each group in `a` with the best of its partner in `b`."""
    group = tiles.shape[1]
    limits = thresholds * group  # of sums
    moved = tiles[b][:, None] - tiles[a][:, :, None]  # [pairs, group of a, group of b, K]
    sums_a, sums_b = tiles[a].sum(1)[:, None, None], tiles[b].sum(1)[:, None, None]
    now = ((sums_a - limits).relu() + (sums_b - limits).relu()).sum(-1).flatten(1)
    then = (sums_a + moved - limits).relu().sum(-1) + (sums_b - moved - limits).relu().sum(-1)
    gain, best = (then.flatten(1) - now).max(1)
    taken = gain > 1e-6 * now[:, 0]  # more than rounding
    a, b, best = a[taken], b[taken], best[taken]
    i, j = best // group, best % group
    for x in (tiles, places):
        x[a, i], x[b, j] = x[b, j], x[a, i]


def _rounds(groups: int) -> list[tuple[Tensor, Tensor]]:
    """Pair all groups off in rounds, every two of them once (the circle method)."""
    if groups < 2:
        return []
    seats = groups + groups % 2
    rounds = []
    for turn in range(seats - 1):
        circle = torch.cat(
            [torch.zeros(1, dtype=torch.int64), 1 + (torch.arange(seats - 1) + turn) % (seats - 1)]
        )
        a, b = circle[: seats // 2], circle.flip(0)[: seats // 2]
        playing = (a < groups) & (b < groups)
        rounds.append((a[playing], b[playing]))
    return rounds
