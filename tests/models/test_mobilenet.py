"""MobileNets: their published sizes, and images that pass through."""

import pytest
import torch
from torch import nn

from gossamer.models.mobilenet import mobilenet_v1, mobilenet_v2, small_mobilenet


def multiplications(model: nn.Module, image: torch.Tensor) -> int:
    counted = []

    def count(module, inputs, output):
        places = output[0].numel() // len(module.weight)
        counted.append(module.weight.numel() * places)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(image)
    return sum(counted)


@pytest.mark.parametrize(
    ("build", "width", "millions"),
    [
        (mobilenet_v1, 1.0, 569),  # table 6 of MobileNets
        (mobilenet_v1, 0.5, 149),
        (mobilenet_v2, 1.0, 300),  # table 4 of MobileNetV2
    ],
)
def test_they_multiply_as_often_as_published(build, width, millions):
    found = multiplications(build(width), torch.zeros(1, 3, 224, 224)) / 1e6
    assert found == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("build", "size"), [(mobilenet_v1, 32), (mobilenet_v2, 33)])
def test_any_width_classes_and_inputs(build, size):
    model = build(0.25, classes=7, inputs=2).eval()
    assert model(torch.zeros(3, 2, size, size)).shape == (3, 7)


def test_the_small_one_keeps_a_quarter_of_the_resolution():
    assert small_mobilenet(0.5)[:-3](torch.zeros(2, 1, 8, 12)).shape == (2, 128, 2, 3)


@pytest.mark.parametrize("sizes", [{"width": 0.0}, {"classes": 0}, {"inputs": -1}])
@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2, small_mobilenet])
def test_sizes_are_checked(build, sizes):
    with pytest.raises(ValueError, match="expected positive sizes, got"):
        build(**sizes)
