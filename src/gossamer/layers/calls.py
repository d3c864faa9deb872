"""What calls in a graph of torch.fx do, if they do one of a few simple things."""

import math

import torch
from torch import fx, nn
from torch.nn import functional as F

_RELU = (torch.relu, torch.relu_, F.relu, F.relu_)
_CLAMP = (torch.clamp, torch.clip, torch.clamp_)


def clamp_bounds(node: fx.Node, module: nn.Module | None) -> tuple[float, float] | None:
    """Return the bounds that a call clamps its input to, None if it does something else.

    Parameters
    ----------
    node : fx.Node
    module : nn.Module, optional
        What it calls, if that is a module.

    Examples
    --------
    >>> graph = fx.symbolic_trace(nn.Sequential(nn.ReLU6()))
    >>> [clamp_bounds(node, graph.get_submodule("0")) for node in graph.graph.nodes][1]
    (0.0, 6.0)
    """
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return (float(module.min_val), float(module.max_val))
    if isinstance(module, nn.ReLU):
        return (0.0, math.inf)
    is_method = node.op == "call_method"
    if node.target in (("relu", "relu_") if is_method else _RELU):
        return (0.0, math.inf)
    if node.target is F.relu6:
        return (0.0, 6.0)
    if node.target in (("clamp", "clamp_", "clip") if is_method else _CLAMP):
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        low, high = bounds.get("min"), bounds.get("max")
        low = -math.inf if low is None else low
        high = math.inf if high is None else high
        if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
            return (float(low), float(high))
    return None


def zero_padding(node: fx.Node, module: nn.Module | None) -> tuple[int, int, int, int] | None:
    """Return the zeros that a call puts around images: left, right, top, bottom; None if none.

    Parameters
    ----------
    node : fx.Node
    module : nn.Module, optional
        What it calls, if that is a module.

    Examples
    --------
    >>> graph = fx.symbolic_trace(nn.Sequential(nn.ZeroPad2d(1)))
    >>> [zero_padding(node, graph.get_submodule("0")) for node in graph.graph.nodes][1]
    (1, 1, 1, 1)
    """
    padding: object = None
    if isinstance(module, nn.ZeroPad2d):
        padding = module.padding
    elif node.target is F.pad:
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
        if given.get("mode", "constant") == "constant" and not given.get("value"):
            padding = given["pad"]
    if not isinstance(padding, tuple | list) or len(padding) != 4:
        return None
    sizes = [size for size in padding if isinstance(size, int) and size >= 0]
    return (sizes[0], sizes[1], sizes[2], sizes[3]) if len(sizes) == 4 else None
