"""Where delta layers go, what they are told, and which models are refused."""

from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.conditional import DeltaActivation, L1Activation, insert_delta, insert_l1


class Residual(nn.Module):
    """Two branches from one activation, a sum in place, pooling, and a shared ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.left(x)
        y += self.depthwise(x)
        y += x
        y = self.pool(F.relu(y, inplace=True))
        return self.head(y.mean((2, 3)))


Layer = TypeVar("Layer", bound=nn.Module)
CLIP = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def layers(model: nn.Module, kind: type[Layer]) -> dict[str, Layer]:
    return {name: each for name, each in model.named_modules() if isinstance(each, kind)}


@pytest.mark.parametrize(
    ("granularity", "shapes"),
    [
        ("channel", [(3,), (8,), (8,)]),
        ("neuron", [(3, 16, 16), (8, 8, 8), (8, 8, 8)]),
        ("layer", [(), (), ()]),
    ],
)
def test_layers_stand_behind_input_relu_and_sum_and_know_their_fan_out(granularity, shapes):
    model = insert_delta(Residual(), CLIP, granularity=granularity, init=0.3, rate=0.7)
    found = layers(model, DeltaActivation)
    assert list(found) == ["delta_x", "delta_act", "delta_relu"]
    assert [tuple(layer.threshold.shape) for layer in found.values()] == shapes
    assert [layer.fan_out for layer in found.values()] == [8 * 9, 8 * 9 + 25, 5]
    assert all(layer.rate == 0.7 for layer in found.values())


@pytest.mark.parametrize("frames", [2, 5])
def test_fine_steps_leave_the_model_as_it_was(frames):
    """The paper's layer at a vanishing threshold is no layer: the oracle is the frame model."""
    frame_model = Residual().eval()
    model = insert_delta(frame_model, CLIP, init=1e-7).eval()
    video = torch.randn(3, frames, 3, 24, 24)  # neither batch, length nor size is baked in
    with torch.no_grad():
        expected = torch.stack([frame_model(frame) for frame in video.unbind(1)], 1)
        torch.testing.assert_close(model(video), expected, rtol=1e-4, atol=1e-5)


def test_steps_act_between_the_layers():
    """A hand-written forward pass with the same steps."""
    frame_model = Residual().eval()
    model = insert_delta(frame_model, CLIP, init=0.5).eval()
    net = frame_model

    def quantise(x):
        return (x / 0.5).round() * 0.5

    with torch.no_grad():
        x = quantise(net.norm(net.stem(quantise(CLIP.flatten(0, 1)))).relu())
        y = quantise((net.left(x) + net.depthwise(x) + x).relu())
        expected = net.head(net.pool(y).mean((2, 3))).unflatten(0, (2, 3))
        torch.testing.assert_close(model(CLIP), expected)


def test_l1_stands_in_the_same_places():
    delta, l1 = insert_delta(Residual(), CLIP), insert_l1(Residual(), CLIP, rate=0.2)
    assert {name: layer.fan_out for name, layer in layers(l1, L1Activation).items()} == {
        name: layer.fan_out for name, layer in layers(delta, DeltaActivation).items()
    }


def test_conversion_leaves_the_model_alone():
    frame_model = Residual()
    before = {name: value.clone() for name, value in frame_model.state_dict().items()}
    modes = [module.training for module in frame_model.modules()]
    model = insert_delta(frame_model, CLIP)
    assert all(torch.equal(before[name], v) for name, v in frame_model.state_dict().items())
    assert [module.training for module in frame_model.modules()] == modes
    assert frame_model.act.inplace and model.training
    with torch.no_grad():
        model(CLIP).sum()
    assert torch.equal(frame_model.state_dict()["norm.running_mean"], before["norm.running_mean"])


def test_training_reaches_weights_and_steps():
    model = insert_delta(Residual(), CLIP, init=0.5)
    loss = model(CLIP).square().mean()
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert bool(gradient.isfinite().all()) and bool(gradient.any())


def test_changes_in_place_by_operators_are_made_out_of_place():
    """Streaming keeps what a layer wrote: nothing may scale it under its hands."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.first(x)
            y *= 2
            y -= 1
            y /= 3
            return self.second(input=y)

    model = Scaled()
    video = torch.randn(1, 3, 4)
    traced = insert_delta(model, video, init=1e-7)
    hidden = []
    traced.get_submodule("first").register_forward_hook(lambda *call: hidden.append(call[2]))
    with torch.no_grad():
        torch.testing.assert_close(traced(video), model(video))
        torch.testing.assert_close(hidden[0], model.first(video[0]))


class Functional(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.operation = operation

    def forward(self, x):
        return self.operation(x, self.weight)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


VECTORS = torch.randn(1, 2, 4)


@pytest.mark.parametrize(
    ("model", "clip", "message"),
    [
        (Functional(F.linear), VECTORS, "expected nn.Conv2d and nn.Linear .* linear"),
        (Functional(torch.matmul), VECTORS, "all multiplications, got .*matmul"),
        (Functional(lambda x, w: x @ w), VECTORS, "all multiplications"),
        (Functional(lambda x, w: x.matmul(w)), VECTORS, "all multiplications"),
        (nn.Sequential(nn.Conv1d(4, 4, 1)), VECTORS, "all multiplications"),
        (
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
            VECTORS,
            "expected running statistics",
        ),
        (
            Functional(lambda x, w: F.scaled_dot_product_attention(x, w, w)),
            VECTORS,
            "all multiplications, got scaled_dot_product_attention",
        ),
        (Functional(lambda x, w: F.dropout(x)), VECTORS, "expected modules to follow .* dropout"),
        (Functional(lambda x, w: x.relu_()), VECTORS, "changes no tensor in place, got relu_"),
        (Two(), VECTORS, "one input and one output tensor, got 2 inputs"),
        (nn.ReLU(), VECTORS, "nn.Conv2d or nn.Linear layers, got none"),
        (nn.Linear(4, 4), VECTORS[0], r"expected a floating-point video \[B, T"),
        (nn.Linear(4, 4), VECTORS.int(), "got torch.int32"),
        (nn.Linear(4, 4), VECTORS[:0], "expected a floating-point video"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, clip, message):
    with pytest.raises(ValueError, match=message):
        insert_delta(model, clip)


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match=r"expected granularity .* got 'pixel'"):
        insert_delta(nn.Linear(4, 4), VECTORS, granularity="pixel")  # pyright: ignore
