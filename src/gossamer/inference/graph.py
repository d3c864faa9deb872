"""A model as a graph of fused layers, so that a choice of kernel for each of them is all that is
left to make."""

import copy
import math
import traceback
from pathlib import Path

import torch
from torch import fx, nn

from gossamer.inference.fused import FusedConv2d, FusedLayer, FusedLinear, Padding
from gossamer.layers.calls import clamp_bounds, zero_padding

_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a copy of `model` as a graph.

    Raises
    ------
    ValueError
        If torch.fx cannot follow its code; the message names the line.
    """
    alone = not isinstance(model, nn.Sequential) and type(model).__module__.startswith("torch.nn")
    root = nn.Sequential(copy.deepcopy(model)) if alone else copy.deepcopy(model)
    try:
        graph = fx.Tracer().trace(root)
    except Exception as error:  # whatever the model's code raises when it meets a proxy
        raise ValueError(
            f"expected a model that torch.fx can trace, got {type(error).__name__} at "
            f"{_place(error)}: {error}; try a forward that does not branch on tensor values, or "
            "compile the traceable part of the model"
        ) from error
    return fx.GraphModule(root, graph)


def fuse(traced: fx.GraphModule) -> dict[str, FusedLayer]:
    """Fold what surrounds convolutions and linear layers into them, in place.

    Batch norm, clamps (ReLU, ReLU6, Hardtanh) and zero padding go where their only neighbour is
    such a layer; dropout and identities go altogether.

    Returns
    -------
    dict of str to FusedLayer
        The layers, by the names they had in the model; ``#2`` marks a second call of one module.
    """
    layers: dict[str, FusedLayer] = {}
    of_node: dict[fx.Node, FusedLayer] = {}
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op in ("placeholder", "output", "get_attr") or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        before = of_node.get(source) if len(source.users) == 1 else None
        clamp = clamp_bounds(node, module)
        if isinstance(module, _NOTHING):
            _bypass(node, source)
        elif isinstance(module, nn.Conv2d) and _pads_with_zeros(module):
            padding = _zero_padding(traced, source)
            layer = FusedConv2d(module, padding or (0, 0, 0, 0))
            if padding is not None:
                _bypass(source, source.all_input_nodes[0])
            of_node[node] = _name(traced, layers, node, layer)
        elif isinstance(module, nn.Linear):
            of_node[node] = _name(traced, layers, node, FusedLinear.from_module(module))
        elif before is not None and _folds(module, before):
            before.fold_norm(module)  # pyright: ignore[reportArgumentType]
            _bypass(node, source)
        elif before is not None and clamp is not None:
            before.fold_clamp(*clamp)
            _bypass(node, source)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return layers


def _name(
    traced: fx.GraphModule, layers: dict[str, FusedLayer], node: fx.Node, layer: FusedLayer
) -> FusedLayer:
    """Put a layer of its own behind a call, under a name that tells where it was."""
    name, calls = str(node.target), 1
    while name in layers:
        calls += 1
        name = f"{node.target}#{calls}"
    layers[name] = layer
    node.target = f"fused_{len(layers) - 1}"
    traced.add_submodule(node.target, layer)
    return layer


def _folds(module: nn.Module | None, layer: FusedLayer) -> bool:
    return (
        isinstance(module, _NORMS)
        and module.running_mean is not None
        and layer.clamp == (-math.inf, math.inf)
        and isinstance(layer, FusedConv2d) == isinstance(module, nn.BatchNorm2d)
    )


def _pads_with_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _zero_padding(traced: fx.GraphModule, node: fx.Node) -> Padding | None:
    """Return the zeros that a call puts around images, if nothing else reads what it returns."""
    if len(node.users) != 1:
        return None
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return zero_padding(node, module)


def _bypass(node: fx.Node, source: fx.Node) -> None:
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _place(error: Exception) -> str:
    """The last line of code outside of torch that an error passed through."""
    home = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(home)]
    frame = (own or list(frames))[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} `{frame.line}`"
