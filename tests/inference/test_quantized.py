"""The int8 engine: close to the float network, by as much as its bytes allow."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.compression import GroupPruner
from gossamer.inference import compile_int8
from gossamer.inference.quantized import QuantizedLayer
from gossamer.kernels import Affine, int8_spmm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).eval()


IMAGES = torch.randn(4, 3, 17, 17, generator=torch.Generator().manual_seed(0))


def test_the_network_is_nearly_what_it_was():
    model = network()
    before = copy.deepcopy(model.state_dict())
    quantized = compile_int8(model, IMAGES.split(2))
    expected = model(IMAGES).detach()
    error = (quantized(IMAGES) - expected).square().mean().sqrt() / expected.std()
    assert 0 < float(error) < 0.05  # not the float network in disguise, nor a broken one
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kernels = [layer.kernel for layer in quantized.report()]
    assert kernels == ["dense", "int8_spmm", "depthwise", "int8_spmm", "int8_spmm"]


def test_every_product_is_of_bytes():
    """By hand: bytes of the weights, bytes of the inputs, integer sums."""
    model = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU()).eval()
    images = torch.rand(1, 6, 4, 4) * 3 - 1
    quantized = compile_int8(model, [images], group=1)
    weight = model[0].weight.detach().flatten(1).double()
    scale = weight.abs().amax(1) / 127
    read = Affine.over(float(images.min()), float(images.max()))
    codes = read.quantise(images).double().flatten(2) - read.zero_point
    sums = (weight / scale[:, None]).round() @ codes
    expected = F.relu(sums * (scale * read.scale)[:, None] + model[0].bias[:, None])
    found = quantized(images).flatten(2).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_ranges_are_those_of_all_batches():
    model = nn.Sequential(nn.Conv2d(2, 4, 1)).eval()
    batches = [torch.full((1, 2, 2, 2), value) for value in (1.0, -2.0, 3.0)]
    quantized = compile_int8(model, batches)
    (layer,) = (each for each in quantized.modules() if isinstance(each, QuantizedLayer))
    assert layer.read == Affine.over(-2.0, 3.0)


def test_pruned_groups_are_skipped(monkeypatch):
    model, pruner = network(), GroupPruner(0.5, 8, dense=("0", "11"))
    pruner.apply(model, pruner.decide(model))
    quantized = compile_int8(model, [IMAGES])
    stored = {
        layer.weight.shape: layer.weight.quads.numel() * 8 / (layer.weight.shape[0] * 16)
        for layer in quantized.modules()
        if isinstance(layer, QuantizedLayer) and layer.weight.shape[1] == 16
    }
    assert stored[(32, 16)] <= 0.5 + 3 / 16 + 1e-6  # quads of four columns are filled up
    share = {layer.weight[:2]: layer.density for layer in quantized.report()}
    assert share[(32, 16)] == pytest.approx(0.5, abs=0.01)
    expected = model(IMAGES).detach()
    error = (quantized(IMAGES) - expected).abs().max() / expected.std()
    assert float(error) < 0.2


def test_groups_can_be_named_for_each_layer():
    quantized = compile_int8(network(), [IMAGES], group={"3": 16, "8": 4})
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert sorted((layer.weight.shape, layer.weight.group) for layer in layers) == [
        ((10, 24), 8),
        ((24, 32), 4),
        ((32, 16), 16),
    ]


def test_other_sizes_and_layouts_run():
    model = network()
    quantized = compile_int8(model, [IMAGES])
    wide = torch.randn(1, 3, 30, 21).to(memory_format=torch.channels_last)
    assert quantized(wide).shape == (1, 10)
    alone = torch.cat([quantized(image[None]) for image in IMAGES])
    torch.testing.assert_close(alone, quantized(IMAGES), rtol=1e-5, atol=1e-5)


def test_linear_layers_take_any_leading_dimensions():
    model = nn.Sequential(nn.Linear(12, 5), nn.ReLU()).eval()
    x = torch.randn(2, 3, 12)
    quantized = compile_int8(model, [x])
    assert quantized(x).shape == (2, 3, 5)
    layer = next(each for each in quantized.modules() if isinstance(each, QuantizedLayer))
    one = int8_spmm(layer.weight, x[1, 2][:, None], read=layer.read, bias=layer.bias)
    torch.testing.assert_close(quantized(x)[1, 2], one[:, 0].relu())


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (network().train(), [IMAGES], r"got training mode; try model.eval\(\)"),
        (network(), [], "batches to calibrate with, got none"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [IMAGES], "found none"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), [IMAGES * torch.nan], "finite inputs of '0'"),
    ],
)
def test_bad_input_is_named(model, batches, message):
    with pytest.raises(ValueError, match=message):
        compile_int8(model, batches)
