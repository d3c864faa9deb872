"""Kernel groups: the weights of `group` consecutive output channels that read one input channel.

Such a unit is kept or removed whole. In a 1x1 convolution or linear layer it is a column of
`group` weights, in any other convolution `group` kernels. What the last, smaller group holds is
scored per weight, so that it is neither favoured nor the first to go.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from gossamer.budgets import TopK

Layer = nn.Conv2d | nn.Linear


def prunable_layers(model: nn.Module, dense: Collection[str] | None = None) -> dict[str, Layer]:
    """Return the linear layers and the ungrouped convolutions of a model, by name.

    Parameters
    ----------
    model : nn.Module
    dense : collection of str, optional
        Layers to leave out. By default the first convolution and the last linear layer, which
        read the image and write the logits.

    Raises
    ------
    ValueError
        If `dense` names none of these layers, or none is left.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 10))
    >>> list(prunable_layers(model)), list(prunable_layers(model, dense=["1"]))
    (['1'], ['0', '2'])
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    if dense is None:
        first = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)][:1]
        last = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)][-1:]
        dense = first + last
    unknown = sorted(set(dense) - set(layers))
    if unknown:
        raise ValueError(
            f"expected dense to name prunable layers, got {unknown[0]!r}; try some of "
            f"{', '.join(list(layers)[:5])}"
        )
    kept = {name: layer for name, layer in layers.items() if name not in dense}
    if not kept:
        raise ValueError(
            "expected a model with layers to prune beside its first convolution and its last "
            f"linear layer, got {len(layers)} in all; try dense=()"
        )
    return kept


def kernel_scores(scores: Tensor) -> Tensor:
    """Sum elementwise scores [M, K, *kernel] over each kernel, to [M, K]."""
    return scores.flatten(2).sum(-1) if scores.ndim > 2 else scores


def group_scores(scores: Tensor, group: int) -> Tensor:
    """Return a score for each unit: its mean over output channels.

    Parameters
    ----------
    scores : Tensor [M, K]
        Of the kernels.
    group : int

    Returns
    -------
    Tensor [ceil(M / group), K]

    Examples
    --------
    >>> group_scores(torch.tensor([[1.0], [3.0], [5.0]]), 2).tolist()
    [[2.0], [5.0]]
    """
    return torch.stack([part.mean(0) for part in scores.split(group)])


def kept_units(units: Tensor, sparsity: float) -> Tensor:
    """Return which units stay: all but the ``int(n * sparsity)`` of lowest score.

    Examples
    --------
    >>> kept_units(torch.tensor([[1.0, 4.0, 2.0]]), 0.5).tolist()
    [[False, True, True]]
    """
    return TopK(units.numel() - int(units.numel() * sparsity), dim=None).select(units)


def group_mask(kept: Tensor, shape: torch.Size, group: int) -> Tensor:
    """Spread a mask of units [groups, K] to a weight [M, K, *kernel]."""
    rows = kept.repeat_interleave(group, 0)[: shape[0]]
    return rows.reshape(*rows.shape, *[1] * (len(shape) - 2)).expand(shape)


def kept_score(scores: Tensor, group: int, sparsity: float) -> float:
    """Return the sum of kernel scores [M, K] in the units that stay.

    Examples
    --------
    >>> kept_score(torch.tensor([[1.0, 4.0], [3.0, 1.0]]), group=2, sparsity=0.5)
    5.0
    """
    kept = kept_units(group_scores(scores, group), sparsity)
    return float(scores[group_mask(kept, scores.shape, group)].double().sum())
