"""Turn a frame model into a video model with a delta layer before each of its linear layers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from gossamer.conditional.delta_activation import (
    DeltaActivation,
    L1Activation,
    PenalisedActivation,
)
from gossamer.conditional.tracing import called_module, source, trace

Granularity = Literal["channel", "neuron", "layer"]


def insert_delta(
    model: nn.Module,
    video: Tensor,
    *,
    rate: float = 1e-6,
    init: float = 0.1,
    granularity: Granularity = "channel",
) -> fx.GraphModule:
    """Return a video model that is `model` on each frame, its layers fed by delta activations.

    A delta layer goes behind whatever a convolution or linear layer reads (the input, a ReLU, a
    residual sum), before pooling, and knows how many weights its values feed.

    Parameters
    ----------
    model : nn.Module
        From frames [N, C, H, W] (or [N, C]) to one tensor [N, ...]; torch.fx can trace it. It is
        copied.
    video : Tensor [B, T, C, H, W]
        One clip, for the shapes.
    rate, init
        As for `DeltaActivation`.
    granularity : {"channel", "neuron", "layer"}
        What shares a step ("channel" in the paper).

    Returns
    -------
    GraphModule
        From [B, T, C, H, W] to [B, T, ...].

    Raises
    ------
    ValueError
        If the model cannot be converted.

    Examples
    --------
    >>> frame_model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> video_model = insert_delta(frame_model, torch.rand(1, 2, 1, 8, 8))
    >>> video_model(torch.rand(2, 5, 1, 8, 8)).shape
    torch.Size([2, 5, 2])
    >>> video_model.get_submodule("delta__1")
    DeltaActivation([4], rate=1e-06, fan_out=2)
    """
    if granularity not in ("channel", "neuron", "layer"):
        raise ValueError(
            f"expected granularity to be one of channel, neuron, layer, got {granularity!r}"
        )

    def layer(frame: tuple[int, ...], fan_out: int) -> DeltaActivation:
        shape = {"channel": frame[:1], "neuron": frame, "layer": ()}[granularity]
        return DeltaActivation(shape, init=init, rate=rate, fan_out=fan_out)

    return _insert(model, video, layer)


def insert_l1(model: nn.Module, video: Tensor, *, rate: float = 4e-4) -> fx.GraphModule:
    """Return the same video model as `insert_delta`, with `L1Activation` in its places.

    Parameters
    ----------
    model, video
        As for `insert_delta`.
    rate : float
        As for `L1Activation`.

    Returns
    -------
    GraphModule
        From [B, T, C, H, W] to [B, T, ...].

    Raises
    ------
    ValueError
        If the model cannot be converted.

    Examples
    --------
    >>> video_model = insert_l1(nn.Linear(4, 2), torch.rand(1, 2, 4), rate=0.5)
    >>> video_model.get_submodule("delta_input_1").fan_out
    2
    """
    return _insert(model, video, lambda frame, fan_out: L1Activation(rate=rate, fan_out=fan_out))


@torch.no_grad()
def calibrate(model: nn.Module, video: Tensor, *, scale: float = 0.25) -> None:
    """Set the steps of every delta layer to `scale` standard deviations of what reaches it.

    Layers are set in the order in which data passes them, each after those before it. A step per
    channel or neuron gets its channel's deviation, over batch, time and place.

    Parameters
    ----------
    model : nn.Module
        With `DeltaActivation` layers; left in the mode it was in.
    video : Tensor [B, T, C, H, W]
        Data like that to come.
    scale : float
        Fewer changes and a coarser model the larger it is.

    Raises
    ------
    ValueError
        If the video is not finite, `scale` not positive, or the model has no delta layer.

    Examples
    --------
    >>> video = torch.tensor([[[0.0], [2.0]]])
    >>> video_model = insert_delta(nn.Linear(1, 1), video)
    >>> calibrate(video_model, video, scale=0.5)
    >>> video_model.get_submodule("delta_input_1").threshold.tolist()
    [0.5]
    """
    if not 0 < scale < float("inf") or not torch.isfinite(video).all():
        raise ValueError(f"expected a finite video and scale > 0, got scale {scale}; try 0.25")
    layers = [layer for layer in model.modules() if isinstance(layer, DeltaActivation)]
    if not layers:
        raise ValueError("expected a model with delta layers, got none; try insert_delta")

    def set_step(layer: DeltaActivation, inputs: tuple[Tensor]) -> None:
        deviation = inputs[0].transpose(0, 2).flatten(1).std(1, correction=0)  # a channel
        if layer.threshold.ndim == 0:
            deviation = deviation.square().mean().sqrt()
        trailing = (1,) * (layer.threshold.ndim - 1)
        layer.set_threshold(scale * deviation.reshape(deviation.shape + trailing))

    hooks = [layer.register_forward_pre_hook(set_step) for layer in layers]
    try:
        with _evaluating(model):
            model(video)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _insert(
    model: nn.Module,
    video: Tensor,
    layer: Callable[[tuple[int, ...], int], PenalisedActivation],
) -> fx.GraphModule:
    if video.ndim < 3 or 0 in video.shape or not video.is_floating_point():
        raise ValueError(
            f"expected a floating-point video [B, T, C, ...], got {video.dtype} {list(video.shape)}"
        )
    traced = trace(model)
    graph = traced.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    (end,) = (node for node in graph.nodes if node.op == "output")
    if len(placeholders) != 1 or not isinstance(end.args[0], fx.Node):
        raise ValueError(
            f"expected a model with one input and one output tensor, got "
            f"{len(placeholders)} inputs and {type(end.args[0]).__name__}"
        )
    shapes = _frame_shapes(traced, video[:1, 0])
    fan_outs = _fan_outs(traced)

    start = placeholders[0]
    with graph.inserting_after(start):
        frames = graph.call_method("flatten", (start, 0, 1))
        length = graph.call_method("size", (start, 1))
        batch = graph.call_method("size", (start, 0))
    start.replace_all_uses_with(frames, lambda user: user not in (frames, length, batch))
    for read, fan_out in fan_outs.items():
        name = f"delta_{read.name}"
        traced.add_submodule(name, layer(shapes[read], fan_out))
        value = frames if read is start else read
        with graph.inserting_after(value):
            unflattened = graph.call_method("unflatten", (value, 0, (batch, length)))
        with graph.inserting_after(unflattened):
            sparse = graph.call_module(name, (unflattened,))
        with graph.inserting_after(sparse):
            result = graph.call_method("flatten", (sparse, 0, 1))
        value.replace_all_uses_with(result, lambda user, own=unflattened: user is not own)
    with graph.inserting_before(end):
        output = graph.call_method("unflatten", (end.args[0], 0, (batch, length)))
    end.args = (output,)
    graph.lint()
    traced.recompile()
    return traced


def _frame_shapes(traced: fx.GraphModule, frame: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every node's value without its batch, for these frames."""
    parameter = next(traced.parameters(), frame)
    with torch.no_grad(), _evaluating(traced):
        ShapeProp(traced).propagate(frame.to(parameter))
    metas = {node: node.meta.get("tensor_meta") for node in traced.graph.nodes}
    return {node: tuple(m.shape[1:]) for node, m in metas.items() if hasattr(m, "shape")}


def _fan_outs(traced: fx.GraphModule) -> dict[fx.Node, int]:
    """Return how many weights one value of each source of a linear layer feeds."""
    found: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        linear = called_module(traced, node)
        if not isinstance(linear, nn.Conv2d | nn.Linear):
            continue
        weights = linear.weight[:, 0].numel()  # out_channels * kernel, or out_features
        if isinstance(linear, nn.Conv2d):
            weights //= linear.groups
        read = source(traced, node)
        found[read] = found.get(read, 0) + weights
    if not found:
        raise ValueError("expected a model with nn.Conv2d or nn.Linear layers, got none")
    return found
