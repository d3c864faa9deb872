"""Models as graphs: the linear layers of one, and what each of them reads."""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from gossamer.conditional.delta_activation import PenalisedActivation

# A delta layer stands before these: they pass unchanged values on as unchanged values.
_TRANSPARENT_MODULES = (
    nn.ZeroPad2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
_TRANSPARENT_FUNCTIONS = {
    torch.flatten,
    F.pad,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
}
_TRANSPARENT_METHODS = {"flatten", "view", "reshape", "squeeze", "mean"}
# Multiplications that neither get a delta layer nor would be counted.
_UNCOUNTED_MODULES = (nn.modules.conv._ConvNd, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)
_UNCOUNTED_FUNCTIONS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.einsum,
    F.scaled_dot_product_attention,
    operator.matmul,
}
_UNCOUNTED_METHODS = {"matmul", "mm", "bmm", "__matmul__"}
# A graph keeps the mode in which these were traced; their modules follow train() and eval().
_MODE_FUNCTIONS = {F.dropout, F.dropout2d, F.alpha_dropout, F.batch_norm}
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PenalisedActivation) or super().is_leaf_module(
            m, module_qualified_name
        )


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a copy of `model` as a graph in which nothing is changed in place.

    Raises
    ------
    ValueError
        If torch.fx cannot trace the model, or it changes a tensor in place by a method, multiplies
        in a way that is neither nn.Conv2d nor nn.Linear, drops out in a function, or has no
        running statistics to normalise with.
    """
    alone = isinstance(model, nn.Conv2d | nn.Linear)  # torch.fx would look inside
    root = nn.Sequential(copy.deepcopy(model)) if alone else copy.deepcopy(model)
    graph = _Tracer().trace(root)
    traced = fx.GraphModule(root, graph)
    for module in traced.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  a plain attribute of many modules
    for node in graph.nodes:
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        _check_node(traced, node)
    traced.recompile()
    return traced


def _check_node(traced: fx.GraphModule, node: fx.Node) -> None:
    name = getattr(node.target, "__name__", str(node.target))
    if node.op.startswith("call_") and name.endswith("_") and not name.endswith("__"):
        raise ValueError(
            f"expected a model that changes no tensor in place, got {name} at {node.name!r}; "
            "try it without the underscore"
        )
    if node.target in _MODE_FUNCTIONS:
        raise ValueError(
            f"expected modules to follow train() and eval(), got {name} at {node.name!r}; "
            "try the module instead of the function"
        )
    module = called_module(traced, node)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise ValueError(
            f"expected running statistics, got those of the batch at {node.name!r}; "
            "try track_running_stats=True"
        )
    if (
        (isinstance(module, _UNCOUNTED_MODULES) and not isinstance(module, nn.Conv2d))
        or node.target in _UNCOUNTED_FUNCTIONS
        or (node.op == "call_method" and node.target in _UNCOUNTED_METHODS)
    ):
        raise ValueError(
            f"expected nn.Conv2d and nn.Linear to do all multiplications, got {name} at "
            f"{node.name!r}; try the module instead of the function"
        )


def called_module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def source(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the value that a linear layer reads, before pooling and reshaping."""
    found = node.all_input_nodes[0]
    while _is_transparent(traced, found):
        found = found.all_input_nodes[0]
    return found


def _is_transparent(traced: fx.GraphModule, node: fx.Node) -> bool:
    return (
        isinstance(called_module(traced, node), _TRANSPARENT_MODULES)
        or node.target in _TRANSPARENT_FUNCTIONS
        or (node.op == "call_method" and node.target in _TRANSPARENT_METHODS)
    )
