"""Pruned networks in int8: 1x1 convolutions and linear layers multiply bytes, zeros skipped.

Post-training quantisation: each output channel of a weight has its scale, the input of a layer one
scale and zero point, from the least and greatest value that calibration shows. Activations stay
float32 between layers and become bytes as a product reads them, so that residual additions and
depthwise convolutions, where little is computed, lose nothing.

"SparseByteNN" (arXiv 2310.19509) runs groups of output channels this way on phones; how its engine
quantises is not published.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from gossamer.inference.fused import (
    DepthwiseConv2d,
    FusedConv2d,
    FusedLayer,
    FusedLinear,
)
from gossamer.inference.graph import fuse, trace
from gossamer.inference.sparse_model import LayerReport, SparseModel
from gossamer.kernels import Affine, Int8Weight, int8_spmm, pack_int8
from gossamer.measure import density

GROUP = 8


class QuantizedLayer(nn.Module):
    """A 1x1 convolution or linear layer whose products are of bytes, with its clamp."""

    def __init__(self, layer: FusedConv2d | FusedLinear, read: Affine, group: int) -> None:
        super().__init__()
        self.weight: Int8Weight = pack_int8(layer.weight.flatten(1), group=group)
        self.register_buffer("bias", layer.bias)
        self.read, self.clamp, self.image = read, layer.clamp, isinstance(layer, FusedConv2d)

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, out, H, W] for [N, in, H, W], or [..., out] for [..., in]."""
        options: dict[str, Any] = {"read": self.read, "bias": self.bias, "clamp": self.clamp}
        if self.image:
            product = int8_spmm(self.weight, input.flatten(2), **options)
            return product.unflatten(2, input.shape[2:])
        rows = input.reshape(-1, input.shape[-1])
        return int8_spmm(self.weight, rows.mT, **options).mT.reshape(*input.shape[:-1], -1)


def compile_int8(
    model: nn.Module,
    calibration: Iterable[Tensor],
    *,
    group: int | Mapping[str, int] = GROUP,
) -> SparseModel:
    """Turn a network, pruned in groups of output channels or not, into one that multiplies bytes.

    Batch norms and clamps are folded first. Convolutions other than 1x1 stay float32. The model is
    copied, and not changed.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, float32, on the CPU; torch.fx must be able to trace it.
    calibration : iterable of Tensor
        Batches like those to come, at least one; the last one's size is what `report` tells of.
    group : int or mapping of str to int, default=8
        Output channels a group that was pruned whole, for all layers or by name (8 where it
        names none): 1, 2, 4, 8 or 16. Any size is correct; a wrong one skips less.

    Returns
    -------
    SparseModel

    Raises
    ------
    ValueError
        If there is no batch or no layer to quantise, the model is in training mode or cannot be
        traced, or activations are not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    >>> images = torch.rand(2, 4, 5, 5)
    >>> quantized = compile_int8(model, [images])
    >>> error = (quantized(images) - model(images)).abs().max()
    >>> [layer.kernel for layer in quantized.report()], bool(error < 0.02)
    (['int8_spmm', 'int8_spmm'], True)
    """
    if any(module.training for module in model.modules()):
        raise ValueError("expected a model in evaluation mode, got training mode; try model.eval()")
    traced = trace(model)
    layers = fuse(traced)
    ranges = _Ranges(traced)
    example = None
    with torch.no_grad():
        for example in calibration:
            ranges.run(example)
    if example is None:
        raise ValueError("expected batches to calibrate with, got none")
    names = {id(layer): name for name, layer in layers.items()}
    reports: list[LayerReport] = []
    for target, (low, high) in ranges.limits.items():
        layer = traced.get_submodule(target)
        if not isinstance(layer, FusedLayer):
            continue
        name, kernel = names[id(layer)], "dense"
        if _multiplies(layer):
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"expected finite inputs of {name!r}, got {low} to {high}")
            rows = group if isinstance(group, int) else group.get(name, GROUP)
            setattr(traced, target, QuantizedLayer(layer, Affine.over(low, high), rows))
            kernel = "int8_spmm"
        elif isinstance(layer, FusedConv2d) and layer.depthwise:
            setattr(traced, target, DepthwiseConv2d(layer))
            kernel = "depthwise"
        used = layer.weight.count_nonzero() if kernel == "int8_spmm" else layer.weight.numel()
        shape = ranges.outputs[target]
        places = torch.Size(shape).numel() // len(layer.weight)
        reports.append(
            LayerReport(
                name=name,
                weight=tuple(layer.weight.shape),
                output=shape,
                density=density(layer.weight),
                kernel=kernel,
                multiplications=int(used) * places,
                sparse_ms=None,
                dense_ms=None,
            )
        )
    if not any(report.kernel == "int8_spmm" for report in reports):
        raise ValueError("expected a model with 1x1 convolutions or linear layers, found none")
    return SparseModel(traced, tuple(reports), example.ndim)


def _multiplies(layer: FusedLayer) -> TypeGuard[FusedConv2d | FusedLinear]:
    """Whether a layer is a matrix product."""
    if isinstance(layer, FusedConv2d):
        whole = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not any(layer.padding)
        return whole and layer.groups == 1
    return isinstance(layer, FusedLinear)


class _Ranges(fx.Interpreter):
    """Runs a graph and keeps the least and greatest input of each fused layer."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.limits: dict[str, tuple[float, float]] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        output = super().call_module(target, args, kwargs)
        if isinstance(self.fetch_attr(target), FusedLayer):
            (input,) = (*args, *kwargs.values())
            low, high = self.limits.get(target, (math.inf, -math.inf))
            least, greatest = (float(x) for x in input.aminmax())
            self.limits[target] = min(low, least), max(high, greatest)
            self.outputs[target] = tuple(output.shape)
        return output
