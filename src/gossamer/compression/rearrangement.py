"""Channel rearrangement: put similar output channels side by side before pruning in groups.

Based on "SparseByteNN: A Novel Mobile Inference Acceleration Framework Based on Fine-Grained Group
Sparsity" (arXiv 2310.19509), whose code is unpublished; the objective and the search are gossamer's
reading of its "whole-network rearrangement". Sorting by L1 norm is what 1xN pruning
(arXiv 2105.14713) does, in memory and layer by layer.

The order pi of each class of tied channels is chosen to keep the most weight::

    J(pi) = sum over the class's producers l of |W_l| in the units that stay at the sparsity

Every layer, batch norm and depthwise convolution that carries the class takes the same order, and
what reads it permutes its inputs, so the network computes what it did.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gossamer.compression.channel_graph import ChannelGraph, channel_graph
from gossamer.compression.kernel_groups import (
    Layer,
    kept_score,
    kernel_scores,
    prunable_layers,
)
from gossamer.compression.row_order import METHODS, Method, best_order
from gossamer.scores import magnitude

SAME = 1e-4  # share of the largest output by which rounding may move outputs


@dataclass(frozen=True, eq=False)
class RearrangeReport:
    """What a rearrangement did.

    Parameters
    ----------
    kept_before, kept_after : float
        Share of the prunable layers' L1 norm in the units that stay at the sparsity asked for.
    permutations : dict of str to Tensor
        For each layer that was reordered, the former index of every output channel.
    pinned : tuple of str
        Operations that torch.fx showed and whose inputs were left in their order, because nothing
        is known of them.
    """

    kept_before: float
    kept_after: float
    permutations: dict[str, Tensor] = field(repr=False)
    pinned: tuple[str, ...] = ()


def channel_rearrange(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    group: int = 8,
    sparsity: float = 0.3,
    method: Method = "swap",
    seed: int = 0,
    layers: dict[str, Layer] | None = None,
) -> RearrangeReport:
    """Reorder the channels of a network in place, for groups that lose little when pruned.

    Outputs stay the same up to rounding, which is checked on `example_input`.

    Parameters
    ----------
    model : nn.Module
        A convolutional network that torch.fx can trace. Not in place while another thread uses it.
    example_input : Tensor or tuple of Tensor
        What the model is called with, a batch [N, C, ...].
    group : int, default=8
        Output channels a group.
    sparsity : float, default=0.3
        Share of each layer's units that will be removed, in [0, 1).
    method : {"swap", "kmeans", "l1"}, default="swap"
        Sort by L1 norm, cluster rows into equal groups, or start from the best of these and of the
        given order and swap channels between groups while that keeps more.
    seed : int, default=0
        Of the clusters' first centres. The result depends on nothing else.
    layers : dict of str to nn.Conv2d or nn.Linear, optional
        Layers that will be pruned; by default `prunable_layers`.

    Returns
    -------
    RearrangeReport

    Raises
    ------
    ValueError
        If an option is out of range, torch.fx cannot trace the model, or its outputs would change;
        the model is then as it was.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1))
    >>> report = channel_rearrange(model, torch.zeros(1, 3, 4, 4), group=2, sparsity=0.5)
    >>> report.kept_after > report.kept_before, sorted(report.permutations)
    (True, ['1'])
    """
    if group < 1:
        raise ValueError(f"expected group of at least 1, got {group}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"expected sparsity in [0, 1), got {sparsity}")
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got {method!r}")
    layers = prunable_layers(model) if layers is None else layers
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    training = model.training
    model.eval()
    try:
        graph = channel_graph(model, example)
        before = _kept_share(layers, group, sparsity)
        moved = torch.arange(graph.size)  # the channel that comes to each channel's place
        for members in graph.classes:
            scores = _producer_scores(graph, members, layers)
            if scores:
                moved[members] = members[best_order(scores, group, sparsity, method, seed)]
        sources = _reorder(model, example, graph, moved)
    finally:
        model.train(training)
    return RearrangeReport(
        before,
        _kept_share(layers, group, sparsity),
        {
            name: sources[id(module.weight)]
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and id(module.weight) in sources
        },
        graph.pinned,
    )


def _kept_share(layers: dict[str, Layer], group: int, sparsity: float) -> float:
    scores = [kernel_scores(magnitude(layer.weight.detach())) for layer in layers.values()]
    kept = sum(kept_score(score, group, sparsity) for score in scores)
    return kept / max(sum(float(score.double().sum()) for score in scores), 1e-30)


def _producer_scores(
    graph: ChannelGraph, members: Tensor, layers: dict[str, Layer]
) -> list[Tensor]:
    """Kernel scores [len(members), K] of the pruned layers whose outputs are this class."""
    weights = {id(layer.weight) for layer in layers.values()}
    scores = []
    for axis in graph.axes:
        if (
            axis.dim == 0
            and id(axis.tensor) in weights
            and bool(torch.isin(members, axis.channels).all())
        ):
            order = axis.channels.argsort(stable=True)  # the first place of each member
            rows = order[torch.searchsorted(axis.channels[order], members)]
            scores.append(kernel_scores(magnitude(axis.tensor.detach().float()))[rows])
    return scores


@torch.no_grad()
def _reorder(
    model: nn.Module, example: tuple[Tensor, ...], graph: ChannelGraph, moved: Tensor
) -> dict[int, Tensor]:
    """Permute all tensors and return the former rows of those whose rows moved."""
    expected = _tensors(model(*example))
    before = {id(axis.tensor): (axis.tensor, axis.tensor.clone()) for axis in graph.axes}
    sources: dict[int, Tensor] = {}
    for tensor, dim, rows, channels in graph.axes:
        source = torch.empty_like(channels)
        # The k-th place of a channel takes what was at the k-th place of the one that comes.
        source[moved[channels].argsort(stable=True)] = channels.argsort(stable=True)
        if torch.equal(source, torch.arange(len(source))):
            continue
        tensor[rows] = tensor[rows].index_select(dim, source.to(tensor.device))
        if dim == 0:
            sources[id(tensor)] = source
    found = _tensors(model(*example))
    for old, new in zip(expected, found, strict=True):
        error = float((new - old).abs().max()) if old.numel() else 0.0
        if not error <= SAME * max(float(old.abs().max()), 1e-30):
            for tensor, value in before.values():
                tensor.copy_(value)
            raise ValueError(
                f"expected a model whose channels torch.fx shows in full, got outputs that move by "
                f"{error:.2g} when channels do; try layers without hooks or parametrisations"
            )
    return sources


def _tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    if not isinstance(outputs, tuple | list):
        return []
    return [each for output in outputs for each in _tensors(output)]
