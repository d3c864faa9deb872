"""Channel-dependency graph: which channels of a network must move together, by torch.fx.

Every channel of every tensor in the traced network is a variable. Residual additions, elementwise
products, batch norms, depthwise convolutions and layers that are called twice tie variables to
each other; an operation that is not known here pins them where they are, as the network's inputs
and outputs do. Channels that then occur in the same tensors equally often may trade places.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

_ELEMENTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity),
    *(nn.Dropout, nn.Dropout2d),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid),
    *(F.hardtanh, F.softplus, F.dropout, F.dropout2d, torch.relu, torch.sigmoid, torch.tanh),
    *(torch.clamp, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *("relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "contiguous", "clone", "float"),
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
}
_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
_SPATIAL = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.Upsample),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate),
}
_RESHAPES = {nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze} | {
    *("flatten", "view", "reshape", "squeeze", "unsqueeze")
}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
_CONCATENATIONS = {torch.cat, torch.concat}
_SHAPES = {getattr, "size", "dim", "numel"}


class Axis(NamedTuple):
    """The order of channels along one dimension of a parameter or buffer."""

    tensor: Tensor
    """The parameter or buffer itself."""
    dim: int
    rows: slice
    """Part of dimension 0 that it holds for: all, but for the inputs of grouped convolutions."""
    channels: Tensor
    """int64 [n]: the variable at each index."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What may be reordered in a network.

    Parameters
    ----------
    axes : tuple of Axis
        Every dimension whose order follows channels.
    classes : tuple of Tensor
        Variables that may trade places, int64 [n] each with n > 1.
    size : int
        Number of variables.
    pinned : tuple of str
        Operations that hold their inputs in place because nothing is known of them.
    """

    axes: tuple[Axis, ...]
    classes: tuple[Tensor, ...]
    size: int
    pinned: tuple[str, ...]


class _Layout(NamedTuple):
    dim: int
    channels: Tensor  # [size of the dimension] int64


def channel_graph(model: nn.Module, example: tuple[Tensor, ...]) -> ChannelGraph:
    """Trace a model and find which of its channels may trade places.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    example : tuple of Tensor
        A batch of inputs, [N, C, ...] each.

    Raises
    ------
    ValueError
        If torch.fx cannot trace the model.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval()
    >>> graph = channel_graph(model, (torch.zeros(1, 3, 2, 2),))
    >>> [len(each) for each in graph.classes], len(graph.axes)
    ([8], 10)
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's own code raises on symbolic values
        raise ValueError(
            f"expected a model that torch.fx can trace, got {type(error).__name__}: {error}; try "
            "moving the branch on data into a module marked by torch.fx.wrap"
        ) from error
    with torch.no_grad():
        ShapeProp(traced).propagate(*example)
    walk = _Walk(traced)
    for node in traced.graph.nodes:
        walk.layouts[node] = walk.visit(node)
    return walk.finish()


class _Walk:
    """Variables, ties and pins, gathered node by node."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.layouts: dict[fx.Node, _Layout | None] = {}
        self.size = 0
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.axes: dict[tuple[int, int, int], Axis] = {}
        self.held: list[Tensor] = []  # channels pinned where they are
        self.unordered: list[Tensor] = []  # channels that form a tensor, or a part of one
        self.read: set[int] = set()  # tensors that the network reads without a layer
        self.pinned: list[str] = []

    def visit(self, node: fx.Node) -> _Layout | None:
        """Return where the channels of the node's result are; None if it cannot say."""
        if node.op in ("placeholder", "get_attr"):
            self.read.add(id(getattr(self.traced, str(node.target), None)))
            return None
        if node.op == "output":
            return self._pin(node)
        module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = node.target if module is None else type(module)
        if isinstance(module, nn.Linear):
            return self._linear(node, module)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return self._convolution(node, module)
        if isinstance(module, _PER_CHANNEL) and _ndim(node) >= 2:
            channels = self._channels(node.all_input_nodes[0], 1)
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.shape == channels.shape:
                    self._record(tensor, 0, channels)
            return self._layout(node, 1, channels)
        if kind in _SHAPES and not _is_tensor(node):
            return None
        if kind in _CONCATENATIONS:
            return self._concatenation(node)
        if not any(self.layouts.get(x) for x in node.all_input_nodes):
            return None
        if kind in _ELEMENTWISE:
            return self._elementwise(node)
        layout = self.layouts[node.all_input_nodes[0]]
        if layout is not None and layout.dim == 1:
            found = self._same_order(node, kind, layout.channels)
            if found is not None:
                return found
        return self._pin(node)

    def finish(self) -> ChannelGraph:
        """Resolve the ties, and colour variables by the tensors that they occur in."""
        root = _components(self.size, self.ties)
        axes = tuple(axis._replace(channels=root[axis.channels]) for axis in self.axes.values())
        colour = torch.zeros(self.size, dtype=torch.int64)
        for part in self.unordered:
            count = torch.bincount(root[part], minlength=self.size)
            colour = (colour * (int(count.max()) + 1) + count).unique(return_inverse=True)[1]
        free = torch.zeros(self.size, dtype=torch.bool)
        free[root] = True
        for part in self.held:
            free[root[part]] = False
        for axis in axes:
            if id(axis.tensor) in self.read:
                free[axis.channels] = False
        variables = free.nonzero()[:, 0]
        order = colour[variables].argsort(stable=True)
        counts = colour[variables].unique(return_counts=True)[1]
        classes = variables[order].split(counts.tolist()) if len(variables) else ()
        return ChannelGraph(
            axes, tuple(each for each in classes if len(each) > 1), self.size, tuple(self.pinned)
        )

    def _fresh(self, size: int) -> Tensor:
        self.size += size
        return torch.arange(self.size - size, self.size)

    def _channels(self, node: fx.Node, dim: int) -> Tensor:
        """The channels along `dim` of a node's result, pinned if they are not known to be there."""
        layout = self.layouts[node]
        if layout is not None and layout.dim == dim:
            return layout.channels
        if layout is not None:
            self.held.append(layout.channels)
        self.held.append(fixed := self._fresh(_shape(node)[dim]))
        return fixed

    def _record(
        self, tensor: Tensor, dim: int, channels: Tensor, rows: slice | None = None
    ) -> None:
        rows = slice(0, tensor.shape[0]) if rows is None else rows
        known = self.axes.setdefault(
            (id(tensor), dim, rows.start), Axis(tensor, dim, rows, channels)
        )
        self.ties.append((known.channels, channels))  # a tensor that is used twice
        self.unordered.append(channels)

    def _layout(self, node: fx.Node, dim: int, channels: Tensor) -> _Layout:
        self.unordered.append(channels)
        return _Layout(dim, channels)

    def _pin(self, node: fx.Node) -> None:
        layouts = [self.layouts[x] for x in node.all_input_nodes]
        self.held += [layout.channels for layout in layouts if layout is not None]
        if node.op != "output":
            name = getattr(node.target, "__name__", str(node.target))
            self.pinned.append(f"{node.name} ({name})")

    def _linear(self, node: fx.Node, module: nn.Linear) -> _Layout:
        dim = _ndim(node) - 1
        self._record(module.weight, 1, self._channels(node.all_input_nodes[0], dim))
        return self._outputs(node, module, dim, self._fresh(module.out_features))

    def _convolution(
        self, node: fx.Node, module: nn.Conv1d | nn.Conv2d | nn.Conv3d
    ) -> _Layout | None:
        if _ndim(node) != module.weight.ndim:
            return self._pin(node)  # a single image without its batch
        inputs = self._channels(node.all_input_nodes[0], 1)
        groups, inside = module.groups, module.in_channels // module.groups
        rows = module.out_channels // groups
        if groups > 1 and inside == 1:
            return self._outputs(node, module, 1, inputs.repeat_interleave(rows))
        outputs = self._fresh(module.out_channels)
        for i in range(groups):
            part = slice(i * rows, (i + 1) * rows)
            self._record(module.weight, 1, inputs[i * inside : (i + 1) * inside], part)
            self.unordered.append(outputs[part])
        return self._outputs(node, module, 1, outputs)

    def _outputs(self, node: fx.Node, module: nn.Module, dim: int, channels: Tensor) -> _Layout:
        for tensor in module.parameters(recurse=False):  # the weight, and a bias
            self._record(tensor, 0, channels)
        return self._layout(node, dim, channels)

    def _elementwise(self, node: fx.Node) -> _Layout | None:
        from_end, channels = next(
            (layout.dim - _ndim(x), layout.channels)
            for x in node.all_input_nodes
            if (layout := self.layouts[x]) is not None
        )
        if -from_end > _ndim(node) or _shape(node)[from_end] != len(channels):
            return self._pin(node)
        for x in node.all_input_nodes:
            if not _is_tensor(x):
                continue
            if -from_end <= _ndim(x) and _shape(x)[from_end] == len(channels):
                self.ties.append((channels, self._channels(x, _ndim(x) + from_end)))
            elif (other := self.layouts[x]) is not None:
                self.held.append(other.channels)
        return self._layout(node, _ndim(node) + from_end, channels)

    def _concatenation(self, node: fx.Node) -> _Layout | None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dim not in (1, 1 - _ndim(node)):
            return self._pin(node)
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        parts = [self._channels(x, 1) for x in _flat(tensors)]
        return self._layout(node, 1, torch.cat(parts))

    def _same_order(self, node: fx.Node, kind: object, channels: Tensor) -> _Layout | None:
        """The result of an operation that leaves dimension 1 in its order, or repeats it."""
        if not _is_tensor(node):
            return None
        old, new = list(_shape(node.all_input_nodes[0])), list(_shape(node))
        same = len(new) > 1 and old[:2] == new[:2]
        padding = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad", ())
        if kind is F.pad and isinstance(padding, tuple | list):
            return self._layout(node, 1, channels) if len(padding) <= 2 * (len(old) - 2) else None
        if kind in _SPATIAL or kind in _RESHAPES:
            if same:
                return self._layout(node, 1, channels)
            if kind in _RESHAPES and _ndim(node) == 2 and old[0] == new[0]:
                return self._layout(node, 1, channels.repeat_interleave(new[1] // len(channels)))
        if kind in _REDUCTIONS and same:
            dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
            dims = list(dims) if isinstance(dims, tuple | list) else [dims]
            if dims and all(isinstance(d, int) and d % len(old) > 1 for d in dims):
                return self._layout(node, 1, channels)
        return None


def _flat(nodes: object) -> Iterable[fx.Node]:
    return [x for x in nodes if isinstance(x, fx.Node)] if isinstance(nodes, tuple | list) else []


def _is_tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def _ndim(node: fx.Node) -> int:
    return len(_shape(node)) if _is_tensor(node) else 0


def _components(size: int, ties: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return for each variable the lowest one that ties lead to."""
    root = torch.arange(size)
    if not ties:
        return root
    a, b = torch.cat([a for a, _ in ties]), torch.cat([b for _, b in ties])
    while True:
        least = torch.minimum(root[a], root[b])
        lower = root.scatter_reduce(0, root[a], least, "amin")
        lower = lower.scatter_reduce(0, root[b], least, "amin")
        lower = lower[lower]
        if torch.equal(lower, root):
            return root
        root = lower
