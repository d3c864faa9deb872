"""Pattern search: the size of kernel groups for each layer, by what stays and what it costs.

Large groups run faster and keep less. For each layer the kernel is timed on the pruned weight at
every size; of the sizes whose time is within `slack` of the fastest, the one that keeps most wins.
The search of "SparseByteNN" (arXiv 2310.19509) is unpublished; this is gossamer's.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from gossamer.compression.kernel_groups import (
    group_mask,
    group_scores,
    kept_score,
    kept_units,
    prunable_layers,
)
from gossamer.kernels import pack, spmm
from gossamer.scores import magnitude

GROUPS = (2, 4, 8, 16)
REPEATS = 5


@dataclass(frozen=True)
class GroupChoice:
    """The size of groups for one layer.

    Parameters
    ----------
    group : int
        The size chosen.
    kept : dict of int to float
        By size, the share of the layer's L1 norm that stays.
    seconds : dict of int to float
        By size, the kernel's median time.
    """

    group: int
    kept: dict[int, float]
    seconds: dict[int, float]


def search_groups(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    sparsity: float,
    groups: Collection[int] = GROUPS,
    slack: float = 0.1,
    dense: Collection[str] | None = None,
) -> dict[str, GroupChoice]:
    """Choose the size of kernel groups for every 1x1 convolution and linear layer.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    example_input : Tensor or tuple of Tensor
        What the model is called with: layers are timed at the sizes they meet.
    sparsity : float
        Share of units to be removed, in [0, 1).
    groups : collection of int, default=(2, 4, 8, 16)
    slack : float, default=0.1
        Share of the fastest time that may be given for a layer that keeps more.
    dense : collection of str, optional
        As for `prunable_layers`.

    Returns
    -------
    dict of str to GroupChoice
        ``GroupPruner(sparsity, {name: choice.group for name, choice in found.items()})`` uses it.

    Raises
    ------
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)).eval()
    >>> found = search_groups(model, torch.zeros(1, 3, 8, 8), sparsity=0.5)
    >>> list(found), found["1"].group in (2, 4, 8, 16)
    (['1'], True)
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"expected sparsity in [0, 1), got {sparsity}")
    if not groups or min(groups) < 1:
        raise ValueError(f"expected groups of at least 1, got {tuple(groups)}")
    if not slack >= 0:
        raise ValueError(f"expected slack of at least 0, got {slack}")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    columns: dict[str, int] = {}
    layers = {
        name: layer
        for name, layer in prunable_layers(model, dense).items()
        if layer.weight[0, 0].numel() == 1
    }

    def recorder(name: str, rows: int) -> Callable[[nn.Module, object, Tensor], None]:
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            columns[name] = output.numel() // rows

        return record

    hooks = [
        layer.register_forward_hook(recorder(name, layer.weight.shape[0]))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: _choose(layers[name].weight.detach().flatten(1), sparsity, groups, slack, width)
        for name, width in columns.items()
    }


def _choose(
    weight: Tensor, sparsity: float, groups: Collection[int], slack: float, columns: int
) -> GroupChoice:
    scores = magnitude(weight)
    kept, seconds = {}, {}
    for group in groups:
        mask = group_mask(kept_units(group_scores(scores, group), sparsity), weight.shape, group)
        kept[group] = kept_score(scores, group, sparsity) / max(float(scores.sum()), 1e-30)
        seconds[group] = _seconds(weight * mask, columns)
    limit = (1 + slack) * min(seconds.values())
    fast = [group for group in groups if seconds[group] <= limit]
    return GroupChoice(max(fast, key=lambda group: kept[group]), kept, seconds)


def _seconds(weight: Tensor, columns: int) -> float:
    packed, dense = pack(weight), torch.randn(weight.shape[1], columns)
    spmm(packed, dense)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        spmm(packed, dense)
        times.append(time.perf_counter() - start)
    return median(times)
