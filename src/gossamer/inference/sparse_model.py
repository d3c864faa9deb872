"""Pruned networks that run as fast as this machine can: a kernel a layer, chosen by measurement.

"Fast Sparse ConvNets" (arXiv 1911.09723): the 1x1 convolutions of a pruned network are products of
sparse weights with dense activations, which stay channel by channel from the first layer to the
last, so that no layer pays for another's layout. Where a layer is too dense for that to pay, the
dense kernel stays: both are timed on the example.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from gossamer.inference.fused import (
    DepthwiseConv2d,
    FusedConv2d,
    FusedLayer,
    FusedLinear,
    PointwiseConv2d,
)
from gossamer.inference.graph import fuse, trace
from gossamer.inference.segment import alone, form_segments
from gossamer.kernels import pack
from gossamer.layers import PackedConv2d, PackedLinear
from gossamer.measure import density

KERNELS = ("measured", "sparse", "dense")


@dataclass(frozen=True)
class LayerReport:
    """What one layer is, and what its kernels cost on the example.

    Parameters
    ----------
    name : str
        In the model that was compiled.
    weight : tuple of int
        Shape of its weight.
    output : tuple of int
        Shape of its output for the example.
    density : float
        Share of its weights that are not zero.
    kernel : str
        What runs: "spmm", "gemv", "depthwise", or torch's "conv2d", "matmul", "linear".
    multiplications : int
        That this kernel does for the example.
    sparse_ms, dense_ms : float or None
        Median time of the sparse and of the fastest dense kernel, None where it was not timed.
    """

    name: str
    weight: tuple[int, ...]
    output: tuple[int, ...]
    density: float
    kernel: str
    multiplications: int
    sparse_ms: float | None
    dense_ms: float | None


class SparseModel(nn.Module):
    """A compiled network, for inference on CPU; made by `compile`.

    It takes images of other sizes and other batches than the example's wherever the model did.
    """

    def __init__(self, graph: fx.GraphModule, layers: tuple[LayerReport, ...], ndim: int) -> None:
        super().__init__()
        self.graph, self._layers, self._ndim = graph, layers, ndim
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """Return what the model returns for `input`, without gradients."""
        if not isinstance(input, Tensor) or input.dtype != torch.float32:
            found = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"expected a float32 tensor, got {found}; try .float()")
        if input.ndim != self._ndim or input.device.type != "cpu":
            raise ValueError(
                f"expected {self._ndim} dimensions on the CPU, got {list(input.shape)} on "
                f"{input.device}"
            )
        with torch.no_grad():
            return self.graph(input)

    def report(self) -> tuple[LayerReport, ...]:
        """Return what was chosen for each layer, in the order they run."""
        return self._layers

    def density(self) -> float:
        """Return the share of the layers' weights that are not zero."""
        sizes = [torch.Size(layer.weight).numel() for layer in self._layers]
        kept = [n * layer.density for n, layer in zip(sizes, self._layers, strict=True)]
        return sum(kept) / sum(sizes)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; ValueError if `mode`."""
        if mode:
            raise ValueError("a SparseModel cannot be trained; train the model, then compile it")
        return super().train(False)


def compile(
    model: nn.Module,
    example: Tensor,
    *,
    threshold: float = 0.5,
    kernel: str = "measured",
    repeats: int = 7,
) -> SparseModel:
    """Turn a pruned network into one that skips its zero weights.

    Batch norm, padding and clamping activations are folded into convolutions and linear layers.
    Each of those then gets the kernel that was fastest on the example: sparse weights (1x1
    convolutions read the image in place, others unfold it), depth-wise, or torch's dense ones.
    Everything else runs as before. The model is copied, and not changed.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, float32, on the CPU; torch.fx must be able to trace it.
    example : Tensor
        One input, whose size and batch are what kernels are chosen for.
    threshold : float, default=0.5
        Density above which the sparse kernel is not tried. It rarely pays above one half.
    kernel : {"measured", "sparse", "dense"}
        Instead of measuring, take the sparse kernel wherever the density allows, or none.
    repeats : int, default=7
        Timed rounds, interleaved, for each layer.

    Returns
    -------
    SparseModel

    Raises
    ------
    TypeError
        If the example or a weight is not float32.
    ValueError
        If the model is in training mode, holds weights that are not finite, cannot be traced or
        has no layer that could be sparse, or an option is out of range.

    Examples
    --------
    >>> conv = torch.nn.Conv2d(16, 32, 1)
    >>> conv.weight.data[:, 2:] = 0.0
    >>> model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(32), torch.nn.ReLU()).eval()
    >>> sparse = compile(model, torch.zeros(1, 16, 8, 8), kernel="sparse")
    >>> [(layer.kernel, layer.density) for layer in sparse.report()]
    [('spmm', 0.125)]
    """
    if kernel not in KERNELS:
        raise ValueError(f"expected kernel to be one of {', '.join(KERNELS)}, got {kernel!r}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected threshold in [0, 1], a density, got {threshold}")
    if repeats < 1:
        raise ValueError(f"expected repeats of at least 1, got {repeats}")
    _check(model, example)
    traced = trace(model)
    layers = fuse(traced)
    if not layers:
        raise ValueError(
            f"expected a model with nn.Conv2d or nn.Linear layers, found none in "
            f"{type(model).__name__}"
        )
    for name, layer in layers.items():
        parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        if not all(bool(part.isfinite().all()) for part in parts):
            raise ValueError(f"expected finite weights, got NaN or infinity in {name!r}")
    choice = _Choice(traced, layers, threshold, kernel, repeats)
    with torch.no_grad():
        choice.run(example)
        form_segments(traced)
    return SparseModel(traced, tuple(choice.reports), example.ndim)


class _Choice(fx.Interpreter):
    """Runs a graph once, and puts the fastest kernel behind each layer on the way."""

    def __init__(
        self,
        traced: fx.GraphModule,
        layers: Mapping[str, FusedLayer],
        threshold: float,
        kernel: str,
        repeats: int,
    ) -> None:
        super().__init__(traced)
        self.traced, self.threshold, self.kernel, self.repeats = traced, threshold, kernel, repeats
        self.names = {id(layer): name for name, layer in layers.items()}
        self.reports: list[LayerReport] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if not isinstance(layer, FusedLayer):
            return super().call_module(target, args, kwargs)
        (input,) = (*args, *kwargs.values())
        share = density(layer.weight)
        dense = _dense_kernels(layer)
        sparse = {} if share > self.threshold else _sparse_kernels(layer, input)
        if self.kernel == "measured":
            times = _race(sparse | dense, input, self.repeats)
            chosen = min(times, key=times.__getitem__)
        else:
            times = {}
            chosen = next(iter(sparse if sparse and self.kernel == "sparse" else dense))
        module = (sparse | dense)[chosen]
        setattr(self.traced, target, module)
        output = module(input)
        places = output.numel() // len(layer.weight)
        used = layer.weight.count_nonzero() if chosen in sparse else layer.weight.numel()
        self.reports.append(
            LayerReport(
                name=self.names[id(layer)],
                weight=tuple(layer.weight.shape),
                output=tuple(output.shape),
                density=share,
                kernel=chosen,
                multiplications=int(used) * places,
                sparse_ms=min((times[name] for name in sparse if name in times), default=None),
                dense_ms=min((times[name] for name in dense if name in times), default=None),
            )
        )
        return output


def _dense_kernels(layer: FusedLayer) -> dict[str, nn.Module]:
    """The kernels that read every weight, the likeliest to be fastest first."""
    if isinstance(layer, FusedLinear):
        return {"linear": layer}
    if not isinstance(layer, FusedConv2d):
        return {}
    if layer.depthwise:
        return {"depthwise": DepthwiseConv2d(layer), "conv2d": layer}
    whole = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not any(layer.padding)
    if whole and layer.groups == 1:
        return {"conv2d": layer, "matmul": PointwiseConv2d(layer)}
    return {"conv2d": layer}


def _sparse_kernels(layer: FusedLayer, input: Tensor) -> dict[str, nn.Module]:
    if isinstance(layer, FusedLinear):
        few = input.numel() <= 16 * input.shape[-1]
        packed = PackedLinear(pack(layer.weight), layer.bias, clamp=layer.clamp)
        return {"gemv" if few else "spmm": packed}
    if not isinstance(layer, FusedConv2d) or layer.groups != 1:
        return {}
    packed = PackedConv2d(
        pack(layer.weight.flatten(1)),
        layer.bias,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        clamp=layer.clamp,
    )
    return {"spmm": packed}


def _race(modules: Mapping[str, nn.Module], input: Tensor, repeats: int) -> dict[str, float]:
    """Time modules in interleaved rounds; return the median milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in modules}
    entries = {name: alone(module) for name, module in modules.items()}
    for timed in [False] + [True] * repeats:
        for name, module in entries.items():
            start = time.perf_counter()
            module(input)
            if timed:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _check(model: nn.Module, example: Tensor) -> None:
    if not isinstance(example, Tensor) or example.dtype != torch.float32:
        found = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"expected example to be a float32 tensor, got {found}")
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                f"expected a model in evaluation mode, got {name or 'the model'!r} in training "
                "mode; try model.eval()"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(f"expected float32 weights, got {tensor.dtype} in {name!r}")
        if tensor.device.type != "cpu" or example.device.type != "cpu":
            raise ValueError(
                f"expected model and example on the CPU, got {name!r} on {tensor.device} and "
                f"example on {example.device}"
            )
