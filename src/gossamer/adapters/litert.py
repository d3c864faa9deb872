"""Convolutional networks as LiteRT (TensorFlow Lite) files, for its interpreter on XNNPACK."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gossamer.adapters.dense_copy import dense_copy
from gossamer.adapters.tflite_file import TfliteFile
from gossamer.files import save_bytes
from gossamer.measure import density

SPARSE_UP_TO = 0.5  # density; the index of a stored weight is as large as the weight
_SUPPORTED = (
    "convolutions (whole or depthwise) with batch norm behind them, zero padding, ReLU, ReLU6, "
    "sums of two, means over all positions, linear layers behind those, and dropout"
)
_NO_ZEROS = (0, 0, 0, 0)  # left, right, top, bottom


def export_litert(
    model: nn.Module,
    example: Tensor,
    path: Path | str,
    *,
    weights: Literal["dense", "sparse"] = "dense",
) -> None:
    """Write a convolutional network as a LiteRT file, for inference in float32.

    Batch norm is folded, ReLU and ReLU6 are fused, and padding is called SAME where it is that.
    The model itself stays as it is; sparse and packed layers of it become dense.

    Parameters
    ----------
    model : Module
        Of convolutions (whole or depthwise), batch norm behind them, zero padding, ReLU, ReLU6,
        sums of two, means over all positions, linear layers behind such a mean, and dropout.
        Exported in evaluation mode.
    example : Tensor [N, C, H, W] float32
        Its input. The file takes the same images in LiteRT's order, [N, H, W, C], and returns
        images, if any, in that order, too.
    path : Path or str
        Replaced in one step.
    weights : {"dense", "sparse"}
        How the file holds those 1x1 convolutions of which at most half of the weights are not
        zero: with their zeros, or as values and indices, which asks XNNPACK for its sparse
        kernels. Where it has switched those off, as on x86 CPUs with AVX, it multiplies the
        zeros all the same.

    Raises
    ------
    ImportError
        If ai-edge-litert is missing.
    TypeError, ValueError
        If the example is no batch of images, or the model computes anything else; the message
        names the operation.
    OSError
        If the file cannot be written; the previous one is intact.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6())
    >>> with TemporaryDirectory() as folder:
    ...     export_litert(model, torch.zeros(1, 3, 16, 16), Path(folder, "model.tflite"))
    ...     Path(folder, "model.tflite").read_bytes()[4:8]
    b'TFL3'
    """
    if weights not in ("dense", "sparse"):
        raise ValueError(f"expected weights to be dense or sparse, got {weights!r}")
    is_tensor = isinstance(example, Tensor)
    if not is_tensor or example.ndim != 4 or example.dtype != torch.float32:
        found = f"{example.dtype} {list(example.shape)}" if is_tensor else type(example).__name__
        raise TypeError(f"expected example to be float32 images [N, C, H, W], got {found}")
    exported = torch.export.export(dense_copy(model).eval(), (example,))
    save_bytes(path, [_Conversion(exported, weights).content()])


class _Conversion:
    """What each value of a graph of ATen calls is in the file."""

    def __init__(self, exported: torch.export.ExportedProgram, weights: str) -> None:
        self.file, self.weights = TfliteFile(), weights
        self.schema = self.file.schema
        self.nodes = list(exported.graph.nodes)
        self.stored = _stored(exported)
        self.places: dict[fx.Node, int] = {}
        self.zeros: dict[fx.Node, Sequence[int]] = {}  # around a value: its convolution adds them

    def content(self) -> bytes:
        """Convert call by call; return the file."""
        inputs: list[int] = []
        for node in self.nodes:
            if node.op == "placeholder" and node.name not in self.stored:
                self.places[node] = self.file.value(_shape(node))
                inputs.append(self.places[node])
            elif node.op == "call_function" and node not in self.places:
                self._convert(node)
        (outputs,) = self.nodes[-1].args
        if any(node not in self.places for node in outputs):
            raise ValueError(f"expected a model that returns what it computes, got {outputs}")
        return self.file.content(inputs, [self.places[node] for node in outputs])

    def _convert(self, node: fx.Node) -> None:
        name, given = _call(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.places:
            raise _refusal(node)
        if name == "conv2d" and not isinstance(given["padding"], str):
            self._convolution(node, given)
        elif name == "linear" and len(_shape(node)) == 2:
            self._linear(node, given)
        elif name == "add" and given["alpha"] == 1 and self._alike(source, given["other"]):
            reads = [self.places[source], self.places[given["other"]]]
            self._emit(node, "ADD", reads, self.schema.AddOptionsT())
        elif name == "pad" and given["mode"] == "constant" and not given["value"]:
            self._pad(node, source, given["pad"])
        elif name == "adaptive_avg_pool2d" and list(given["output_size"]) == [1, 1]:
            self._mean(node, source, keep=True)
        elif name == "mean" and sorted(dim % 4 for dim in given.get("dim") or ()) == [2, 3]:
            self._mean(node, source, keep=given["keepdim"])
        elif name in ("flatten", "view", "reshape") and _shape(node)[1:] == _shape(source)[-1:]:
            shape = np.array(_shape(node), np.int32)
            reads = [self.places[source], self.file.constant(shape)]
            self._emit(node, "RESHAPE", reads, self.schema.ReshapeOptionsT(newShape=shape))
        elif name == "dropout":
            self.places[node] = self.places[source]
        elif _clamp(node):
            self._emit(node, _clamp(node), [self.places[source]])
        else:
            raise _refusal(node)

    def _convolution(self, node: fx.Node, given: dict[str, Any]) -> None:
        groups, stride, dilation = given["groups"], given["stride"], given["dilation"]
        depthwise = groups > 1 and groups == given["input"].meta["val"].shape[1]
        if groups > 1 and not depthwise:
            raise _refusal(node, f" of {groups} groups")
        weight, bias, last = self._folded(node, given)
        read, padding = self._padded(weight.shape[2:], given)
        geometry: dict[str, int] = {
            "padding": getattr(self.schema.Padding, padding),
            "strideH": stride[0],
            "strideW": stride[-1],
            "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[-1],
        }
        if depthwise:
            multiplier = len(weight) // groups
            name, order = "DEPTHWISE_CONV_2D", (1, 2, 3, 0)
            options = self.schema.DepthwiseConv2DOptionsT(depthMultiplier=multiplier, **geometry)
        else:
            name, order = "CONV_2D", (0, 2, 3, 1)
            options = self.schema.Conv2DOptionsT(**geometry)
        reads = [read, self._weight(weight.permute(order)), self._bias(bias, len(weight))]
        self._emit(last, name, reads, options)
        self.places[node] = self.places[last]

    def _linear(self, node: fx.Node, given: dict[str, Any]) -> None:
        weight = self._tensor(node, given["weight"])
        bias = self._optional(node, given["bias"])
        reads = [self.places[given["input"]], self._weight(weight), self._bias(bias, len(weight))]
        self._emit(node, "FULLY_CONNECTED", reads, self.schema.FullyConnectedOptionsT())

    def _pad(self, node: fx.Node, source: fx.Node, zeros: Sequence[int]) -> None:
        if len(zeros) != 4 or min(zeros) < 0:
            raise _refusal(node, f" by {list(zeros)}")
        user = _only_user(node)
        if user is not None and _call(user)[0] == "conv2d":
            self.zeros[node], self.places[node] = zeros, self.places[source]
        else:
            self.places[node] = self._surrounded(self.places[source], _shape(node), zeros)

    def _mean(self, node: fx.Node, source: fx.Node, *, keep: bool) -> None:
        reads = [self.places[source], self.file.constant(np.array([1, 2], np.int32))]
        self._emit(node, "MEAN", reads, self.schema.ReducerOptionsT(keepDims=keep))

    def _emit(self, node: fx.Node, name: str, reads: list[int], options: Any = None) -> None:
        """Add an operator for a call, and for the clamp behind it where the two can be one."""
        clamp, calls = _only_user(node), [node]
        if clamp is not None and _clamp(clamp) and hasattr(options, "fusedActivationFunction"):
            kind = getattr(self.schema.ActivationFunctionType, _clamp(clamp))
            options.fusedActivationFunction = kind
            calls.append(clamp)
        self.places |= dict.fromkeys(calls, self.file.call(name, reads, _shape(node), options))

    def _folded(
        self, node: fx.Node, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, fx.Node]:
        """Return weight and bias with a batch norm's in them, and the last call they stand for."""
        weight = self._tensor(node, given["weight"])
        bias = self._optional(node, given["bias"])
        norm = _only_user(node)
        name, own = _call(norm) if norm is not None else ("", {})
        if norm is None or name != "batch_norm" or own["training"]:
            return weight, bias, node
        mean, variance = (self._tensor(norm, own[name]) for name in ("running_mean", "running_var"))
        scale, shift = (self._optional(norm, own[name]) for name in ("weight", "bias"))
        return *fuse_conv_bn_weights(weight, bias, mean, variance, own["eps"], scale, shift), norm

    def _padded(self, kernel: Sequence[int], given: dict[str, Any]) -> tuple[int, str]:
        """Return what a convolution reads, and its padding in LiteRT's words."""
        source, own = given["input"], given["padding"]
        outer = self.zeros.get(source, _NO_ZEROS)
        zeros = [a + b for a, b in zip(outer, (own[-1], own[-1], own[0], own[0]), strict=True)]
        images, height, width, channels = _shape(source)
        height, width = height - outer[2] - outer[3], width - outer[0] - outer[1]
        if not any(zeros):
            return self.places[source], "VALID"
        same: list[int] = []
        for size, taps, dim in ((width, kernel[1], -1), (height, kernel[0], 0)):
            stride = given["stride"][dim]
            reach = (math.ceil(size / stride) - 1) * stride + given["dilation"][dim] * (taps - 1)
            missing = max(0, reach + 1 - size)
            same += [missing // 2, missing - missing // 2]
        if zeros == same:
            return self.places[source], "SAME"
        shape = (images, height + sum(zeros[2:]), width + sum(zeros[:2]), channels)
        return self._surrounded(self.places[source], shape, zeros), "VALID"

    def _surrounded(self, place: int, shape: Sequence[int], zeros: Sequence[int]) -> int:
        left, right, top, bottom = zeros
        amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        return self.file.call(
            "PAD", [place, self.file.constant(amounts)], shape, self.schema.PadOptionsT()
        )

    def _weight(self, weight: Tensor) -> int:
        """Store a weight [out, ..., in]."""
        array = _float32(weight)
        pointwise = weight.ndim == 4 and weight.shape[1:3] == (1, 1)
        if self.weights == "sparse" and pointwise and density(weight) <= SPARSE_UP_TO:
            return self.file.sparse_constant(array)
        return self.file.constant(array)

    def _bias(self, bias: Tensor | None, size: int) -> int:
        return self.file.constant(np.zeros(size, np.float32) if bias is None else _float32(bias))

    def _alike(self, first: fx.Node, second: Any) -> bool:
        return second in self.places and _shape(first) == _shape(second)

    def _tensor(self, node: fx.Node, read: fx.Node) -> Tensor:
        """Return a stored tensor in float64."""
        if read.name not in self.stored:
            raise _refusal(node, " with computed weights")
        return self.stored[read.name].detach().double()

    def _optional(self, node: fx.Node, read: fx.Node | None) -> Tensor | None:
        return None if read is None else self._tensor(node, read)


def _stored(exported: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Return parameters, buffers and constants by the names of what stands for them."""
    signature = exported.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**exported.constants, **exported.state_dict}
    return {placeholder: tensors[name] for placeholder, name in names.items()}


def _call(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """Return an ATen function's name, as if out of place, and all of its arguments by name."""
    function = node.target
    if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
        return str(function), {}
    name = function._schema.name.removeprefix("aten::")
    changed = node.all_input_nodes[0]
    if name.endswith("_") and len(changed.users) == 1 and not _is_view(changed):
        name = name.removesuffix("_")  # nobody else sees the change
    declared = function._schema.arguments
    given = {one.name: one.default_value for one in declared if one.has_default_value()}
    given |= dict(zip((one.name for one in declared), node.args, strict=False)) | node.kwargs
    return name, given


def _clamp(node: fx.Node) -> str:
    """Return LiteRT's name for a clamp, "" for anything else."""
    name, given = _call(node)
    if name == "hardtanh" and (given["min_val"], given["max_val"]) == (0, 6):
        return "RELU6"
    return {"relu": "RELU", "relu6": "RELU6"}.get(name, "")


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a value in LiteRT's order."""
    shape = tuple(node.meta["val"].shape)
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().contiguous().numpy()


def _is_view(node: fx.Node) -> bool:
    return str(node.target).split(".")[1:2] in (["dropout"], ["flatten"], ["reshape"], ["view"])


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _refusal(node: fx.Node, how: str = "") -> ValueError:
    return ValueError(f"expected {_SUPPORTED}, got {node.target}{how} at {node.name!r}")
