"""The part of a streamed network that a kernel knows: convolutions between delta layers."""

import math
import operator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gossamer.conditional.delta_activation import DeltaActivation
from gossamer.conditional.tracing import called_module
from gossamer.kernels import DeltaConv, HeldImages, delta_conv
from gossamer.kernels.backend import native
from gossamer.kernels.program import Program
from gossamer.layers.calls import clamp_bounds, zero_padding

HELD = "held"  # marks inputs of a graph that a delta layer made
FRAME = -1  # the place of the frame among the values that are held


@dataclass(frozen=True, eq=False)
class Link:
    """A convolution and what stands between it and the delta layer that its output goes to.

    Parameters
    ----------
    name : str
        Of the call in the model's graph; "" for the delta layer of the frame itself.
    conv : nn.Conv2d, optional
        With a batch norm folded in.
    reads, adds : int
        The values, by the numbers of the links that make them.
    zeros : (int, int, int, int)
        Around what it reads: left, right, top, bottom.
    clamp : (float, float)
    delta : DeltaActivation
    """

    name: str
    conv: nn.Conv2d | None
    reads: int
    zeros: tuple[int, ...]
    adds: int | None
    clamp: tuple[float, float]
    delta: DeltaActivation


def take_links(model: fx.GraphModule) -> tuple[list[Link], list[int]]:
    """Take all links out of a video model's graph, from the frame on.

    What the rest of the graph reads of them becomes inputs of it, behind its own.

    Returns
    -------
    list of Link
    list of int
        The numbers of those whose values are inputs now.
    """
    graph = model.graph
    links: list[Link] = []
    values: dict[fx.Node, int] = {}  # of links
    taken: set[fx.Node] = set()
    for node in list(graph.nodes):
        found = _frame_link(model, node) or _conv_link(model, node, values)
        if found is not None:
            link, nodes = found
            values[nodes[-1]] = len(links)
            links.append(link)
            taken.update(nodes)
    if all(link.conv is None for link in links):
        return [], []
    inputs: list[int] = []
    last = next(node for node in graph.nodes if node.op == "placeholder")
    for node, number in values.items():
        if any(user not in taken for user in node.users):
            with graph.inserting_after(last):
                last = graph.placeholder(f"held_{number}")
            last.meta[HELD] = True
            node.replace_all_uses_with(last, lambda user: user not in taken)
            inputs.append(number)
    for node in reversed(graph.nodes):
        if node in taken and not node.users:
            graph.erase_node(node)
    model.recompile()
    return links, inputs


class HeldNetwork:
    """Links laid out for frames of one shape, with all that they hold.

    Parameters
    ----------
    links : list of Link
        As `take_links` returns them.
    frame : Tensor [N, C, H, W]
        float32 or float64; the first one.
    dense_above : float
        Share of what a position reads above which, if more has changed, all is multiplied.

    Attributes
    ----------
    multiply_adds : dict of str to int
        Of each convolution in the last frame.
    """

    def __init__(self, links: list[Link], frame: Tensor, dense_above: float) -> None:
        images, channels, height, width = frame.shape
        self._links, self._channels = links, channels
        self._frame = HeldImages.zeros(images, height, width, channels, frame.dtype)
        self._last = frame
        self._held: list[HeldImages] = []
        self._steps: list[tuple[HeldImages, DeltaConv, HeldImages, HeldImages | None]] = []
        for link in links:
            source = self._frame if link.reads == FRAME else self._held[link.reads]
            step = link.delta.threshold.detach().abs().maximum(link.delta.floor)
            conv = link.conv
            weight = frame.new_ones(channels, 1, 1, 1) if conv is None else conv.weight
            size = _output_size(source, link)
            target = HeldImages.zeros(images, *size, len(weight), frame.dtype)
            layer = DeltaConv.pack(
                weight,
                None if conv is None else conv.bias,
                step,
                target,
                depthwise=conv is None or conv.groups > 1,
                stride=(1, 1) if conv is None else (conv.stride[0], conv.stride[1]),
                dilation=(1, 1) if conv is None else (conv.dilation[0], conv.dilation[1]),
                before=(link.zeros[2], link.zeros[0]),
                clamp=link.clamp,
                sparse_below=dense_above,
            )
            self._held.append(target)
            addend = None if link.adds is None else self._held[link.adds]
            self._steps.append((source, layer, target, addend))
        self._products = torch.zeros(len(links), dtype=torch.int64)
        self._afresh = torch.zeros(1, dtype=torch.uint8)
        self._nothing = torch.empty(1)
        self._program: Program | None = None
        if native() is not None and frame.dtype == torch.float32:
            self._program = Program(self._nothing, self._nothing)
            for (source, layer, target, addend), count in zip(
                self._steps, self._products.split(1), strict=True
            ):
                self._program.delta_conv(source, layer, target, addend, self._afresh, count)

    def step(self, frame: Tensor, *, afresh: bool) -> None:
        """Bring everything up to date with the next frame."""
        if not afresh:
            self._frame.changed.copy_((frame != self._last).any(1))
        self._last = frame.clone()
        self._frame.values[..., : self._channels] = frame.permute(0, 2, 3, 1)
        self._afresh.fill_(afresh)
        if self._program is not None:
            self._program.run(self._nothing, self._nothing)
            return
        for number, (source, layer, target, addend) in enumerate(self._steps):
            count = delta_conv(source, layer, target, addend=addend, afresh=afresh)
            self._products[number] = count

    @property
    def multiply_adds(self) -> dict[str, int]:
        counts = zip(self._links, self._products.tolist(), strict=True)
        return {
            link.name: count * len(link.conv.weight)
            for link, count in counts
            if link.conv is not None
        }

    def value(self, number: int) -> Tensor:
        """Return a copy of what a link made, [N, C, H, W]."""
        conv = self._links[number].conv
        channels = self._channels if conv is None else len(conv.weight)
        return self._held[number].values[..., :channels].permute(0, 3, 1, 2).clone()


def _output_size(source: HeldImages, link: Link) -> tuple[int, int]:
    height, width = source.values.shape[1:3]
    if link.conv is None:
        return height, width
    left, right, top, bottom = link.zeros
    rows, columns = (
        dilation * (size - 1) + 1
        for dilation, size in zip(link.conv.dilation, link.conv.kernel_size, strict=True)
    )
    size = (
        (height + top + bottom - rows) // link.conv.stride[0] + 1,
        (width + left + right - columns) // link.conv.stride[1] + 1,
    )
    if min(size) < 1:
        raise ValueError(f"expected frames large enough for {link.name!r}, got {height} x {width}")
    return size


Found = tuple[Link, list[fx.Node]]


def _frame_link(model: fx.GraphModule, node: fx.Node) -> Found | None:
    """Match the delta layer that the frame goes to."""
    source = node.args[0] if node.op == "call_method" and node.target == "flatten" else None
    if not isinstance(source, fx.Node) or source.op != "placeholder" or node.args[1:] != (0, 1):
        return None
    nodes, delta = _delta_behind(model, node, sole=False)
    if delta is None:
        return None
    unclamped = (-math.inf, math.inf)
    return Link("", None, FRAME, (0, 0, 0, 0), None, unclamped, delta), nodes


def _conv_link(model: fx.GraphModule, node: fx.Node, values: dict[fx.Node, int]) -> Found | None:
    """Match a convolution, up to and with the delta layer behind it."""
    conv = called_module(model, node)
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return None
    if conv.groups != 1 and not conv.groups == conv.in_channels == conv.out_channels:
        return None
    nodes, source, clamp = [node], node.all_input_nodes[0], (-math.inf, math.inf)
    zeros, adds = tuple(conv._reversed_padding_repeated_twice), None
    outer = zero_padding(source, called_module(model, source))
    if outer is not None and len(source.users) == 1:
        zeros = tuple(a + b for a, b in zip(zeros, outer, strict=True))
        nodes.insert(0, source)
        source = source.all_input_nodes[0]
    if source not in values:
        return None
    following = _only_user(nodes[-1])
    norm = _called(model, following)
    if following is not None and isinstance(norm, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, norm)
        nodes.append(following)
        following = _only_user(nodes[-1])
    if following is not None and following.target in (operator.add, torch.add):
        others = [other for other in following.args if other is not nodes[-1]]
        if len(others) == 1 and others[0] in values and not following.kwargs:
            adds = values[cast(fx.Node, others[0])]
            nodes.append(following)
            following = _only_user(nodes[-1])
    bounds = None if following is None else clamp_bounds(following, _called(model, following))
    if following is not None and bounds is not None:
        clamp = bounds
        nodes.append(following)
    behind, delta = _delta_behind(model, nodes[-1], sole=True)
    if delta is None:
        return None
    return Link(node.name, conv, values[source], zeros, adds, clamp, delta), nodes + behind


def _delta_behind(
    model: fx.GraphModule, node: fx.Node, *, sole: bool
) -> tuple[list[fx.Node], DeltaActivation | None]:
    """Find unflatten, delta layer and flatten behind a value; `sole`: that has no other user."""
    nodes: list[fx.Node] = []
    for user in node.users:
        delta_node = _only_user(user)
        delta = _called(model, delta_node)
        end = None if delta_node is None else _only_user(delta_node)
        if isinstance(delta, DeltaActivation) and delta.threshold.ndim <= 1 and end is not None:
            nodes = [user, cast(fx.Node, delta_node), end]
            return (nodes, delta) if not sole or len(node.users) == 1 else ([], None)
    return nodes, None


def _called(model: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    return None if node is None else called_module(model, node)


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None
