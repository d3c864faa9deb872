"""Runs of layers that need Python only once: their kernels follow each other in one program."""

import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from gossamer.inference.fused import DepthwiseConv2d
from gossamer.kernels import backend
from gossamer.kernels.program import Program
from gossamer.layers import PackedConv2d

Shape = tuple[int, int, int, int]
PLANS = 4  # input shapes whose buffers are kept
_ADD = (operator.add, operator.iadd, torch.add)


class Segment(nn.Module):
    """Layers and sums, one after the other, from one tensor of images to another.

    What they compute on the way lies in buffers that stay, one set for each of the last input
    shapes; a buffer is reused as soon as its last reader is done, so few of them leave the cache.

    Parameters
    ----------
    layers : dict of str to nn.Module
        PackedConv2d (1x1, stride 1, no padding) and DepthwiseConv2d, by name.
    steps : tuple of (str, tuple of int)
        What runs: a layer's name, or "+", and the values that it reads: 0 is the input, i + 1 what
        step i returned.
    """

    def __init__(
        self, layers: dict[str, nn.Module], steps: tuple[tuple[str, tuple[int, ...]], ...]
    ) -> None:
        super().__init__()
        self.layers, self.steps = nn.ModuleDict(layers), steps
        self._plans: OrderedDict[Shape, tuple[Program, Shape]] = OrderedDict()

    def forward(self, input: Tensor) -> Tensor:
        """Return what the last step does."""
        plan = self._plan_for(input)
        if plan is None:
            return self._by_layers(input)
        program, shape = plan
        output = input.new_empty(shape)
        program.run(input.contiguous(), output)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._plans.clear()  # they hold the addresses of weights
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._plans.clear()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": OrderedDict()}

    def _by_layers(self, input: Tensor) -> Tensor:
        values = [input]
        for name, reads in self.steps:
            parts = [values[i] for i in reads]
            values.append(parts[0] + parts[1] if name == "+" else self.layers[name](*parts))
        return values[-1]

    def _plan_for(self, input: Tensor) -> tuple[Program, Shape] | None:
        """The program for an input of this shape; None where the layers must run by themselves."""
        if backend.native() is None or input.ndim != 4 or not input.numel():
            return None
        shape = (input.shape[0], input.shape[1], input.shape[2], input.shape[3])
        plan = self._plans.pop(shape, None)
        if plan is None:
            shapes = [shape]
            for name, reads in self.steps:
                following = _output_shape(self.layers, name, [shapes[i] for i in reads])
                if following is None:
                    return None
                shapes.append(following)
            plan = self._plan(shapes)
        self._plans[shape] = plan  # as the latest
        while len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return plan

    def _plan(self, shapes: list[Shape]) -> tuple[Program, Shape]:
        """Lay out the buffers for the values of these shapes and record the calls."""
        last_read = [0] * len(shapes)
        for step, (_, reads) in enumerate(self.steps):
            for value in reads:
                last_read[value] = step
        source, target = (torch.empty(each) for each in (shapes[0], shapes[-1]))
        program = Program(source, target)
        values, homes, free = [source], dict[int, Tensor](), list[Tensor]()
        for step, (name, reads) in enumerate(self.steps):
            if step == len(self.steps) - 1:
                values.append(target)
            else:
                shape = shapes[step + 1]
                homes[step + 1] = _take(free, math.prod(shape))
                values.append(homes[step + 1][: math.prod(shape)].view(shape))
            _record(program, self.layers, name, [values[i] for i in reads], values[-1])
            free += [homes[i] for i in set(reads) if i in homes and last_read[i] == step]
        return program, shapes[-1]


def form_segments(traced: fx.GraphModule) -> None:
    """Replace runs of two or more layers that have native kernels by one `Segment` each."""
    run: list[fx.Node] = []
    for node in list(traced.graph.nodes):
        run = [*run, node] if _native(traced, node) else []
        if run and not _native(traced, node.next):
            while run:
                run = _segment(traced, run)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()


def _segment(traced: fx.GraphModule, run: list[fx.Node]) -> list[fx.Node]:
    """Replace the longest beginning of a run that reads and leaves one tensor; return the rest."""
    source = next((n for n in run[0].all_input_nodes if n not in run), None)
    for end in range(len(run), 1, -1):
        nodes = run[:end]
        reads = {read for node in nodes for read in node.all_input_nodes} - set(nodes)
        left = [n for n in nodes if any(user not in nodes for user in n.users)]
        if reads == {source} and left == nodes[-1:]:
            break
    else:
        return run[1:]
    index = {source: 0} | {node: i + 1 for i, node in enumerate(nodes)}
    layers = {str(n.target): traced.get_submodule(str(n.target)) for n in _calls(nodes)}
    steps = tuple(
        (
            str(node.target) if node.op == "call_module" else "+",
            tuple(index[read] for read in _reads(node)),
        )
        for node in nodes
    )
    name = f"segment_{nodes[0].target}"
    traced.add_submodule(name, Segment(layers, steps))
    with traced.graph.inserting_after(nodes[-1]):
        call = traced.graph.call_module(name, (source,))
    nodes[-1].replace_all_uses_with(call)
    for node in reversed(nodes):
        traced.graph.erase_node(node)
    return run[end:]


def has_step(module: nn.Module) -> bool:
    """Whether a program has a step for the layer."""
    if isinstance(module, PackedConv2d):
        plain = module.kernel_size == (1, 1) == module.stride and not any(module.padding)
        return plain and module.values.dtype == torch.float32
    return isinstance(module, DepthwiseConv2d)


def alone(module: nn.Module) -> nn.Module:
    """Return a layer as it will run: as a segment, if it can be part of one."""
    return Segment({"0": module}, (("0", (0,)),)) if has_step(module) else module


def _native(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return has_step(traced.get_submodule(str(node.target)))
    shapes = [read.meta.get("shape") for read in node.args if isinstance(read, fx.Node)]
    of_two = len(node.args) == 2 == len(shapes) and not node.kwargs
    return node.target in _ADD and of_two and shapes[0] == shapes[1] and len(shapes[0] or ()) == 4


def _reads(node: fx.Node) -> list[fx.Node]:
    """What a call reads; a tensor that is added to itself counts twice."""
    if node.op == "call_module":
        return node.all_input_nodes
    return [read for read in node.args if isinstance(read, fx.Node)]


def _calls(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if node.op == "call_module"]


def _output_shape(layers: nn.ModuleDict, name: str, reads: list[Shape]) -> Shape | None:
    """The shape that a step returns; None where its layer would refuse, or a sum broadcast."""
    images, channels, height, width = reads[0]
    if name == "+":
        return reads[0] if reads[0] == reads[1] else None
    layer = layers[name]
    if isinstance(layer, PackedConv2d) and channels == layer.in_channels:
        return (images, layer.out_channels, height, width)
    if isinstance(layer, DepthwiseConv2d) and channels == len(layer.weight):
        rows, columns = layer.output_size(height, width)
        return (images, channels, rows, columns) if min(rows, columns) > 0 else None
    return None


def _record(
    program: Program, layers: nn.ModuleDict, name: str, reads: list[Tensor], out: Tensor
) -> None:
    if name == "+":
        program.add(reads[0], reads[1], out)
        return
    layer = layers[name]
    if isinstance(layer, PackedConv2d):
        program.spmm(layer.weight, reads[0].flatten(2), out.flatten(2), layer.bias, layer.clamp)
    elif isinstance(layer, DepthwiseConv2d):
        geometry = (layer.stride, layer.padding, layer.clamp)
        program.depthwise_conv(reads[0], layer.weight, out, layer.bias, *geometry)


def _take(free: list[Tensor], size: int) -> Tensor:
    """Return the smallest free buffer that holds `size` floats, or a new one."""
    fitting = [i for i, buffer in enumerate(free) if len(buffer) >= size]
    if not fitting:
        return torch.empty(size)
    return free.pop(min(fitting, key=lambda i: len(free[i])))
