"""The layer: its formula, its reversed gradient, what it charges, and what it refuses."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.conditional import (
    DeltaActivation,
    L1Activation,
    calibrate,
    insert_delta,
    operations_density,
    temporal_loss,
)


def video(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def grad(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


def delta(shape, threshold: torch.Tensor, **options) -> DeltaActivation:
    layer = DeltaActivation(shape, **options).double()
    with torch.no_grad():
        layer.threshold.copy_(threshold)
    return layer


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(), (3,), (3, 4, 5)]), st.integers(2, 5), st.floats(0.01, 3), st.integers(0, 9)
)
def test_values_penalty_and_density_follow_the_formula(shape, frames, init, seed):
    x = video(2, frames, 3, 4, 5, seed=seed)
    step = init * (1 + video(*shape, seed=seed + 1).abs())
    layer = delta(shape, -step, rate=0.5, fan_out=7)  # the sign of a threshold means nothing
    y = layer(x).detach()
    by_place = step.reshape(shape + (1,) * (3 - len(shape))).expand(3, 4, 5)
    changed, total = 0, 0.0
    for b, t, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        level = float(y[b, t, c, i, j] / by_place[c, i, j])
        assert abs(level - round(level)) < 1e-9
        assert abs(float(y[b, t, c, i, j] - x[b, t, c, i, j])) <= float(by_place[c, i, j]) * 0.5001
        if t:
            change = float(y[b, t, c, i, j] - y[b, t - 1, c, i, j])
            changed, total = changed + (change != 0), total + abs(change)
    count = 2 * (frames - 1) * 60
    assert layer.density == changed / count
    assert temporal_loss(layer).item() == pytest.approx(0.5 * 7 * total / count)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_gradient_is_straight_to_x_and_reversed_to_the_step(shape):
    x = video(2, 3, 3, 4).requires_grad_()
    sign = torch.where(video(*shape, seed=4) < 0, -1.0, 1.0).double()
    step = 0.3 + video(*shape, seed=1).abs()
    layer = delta(shape, sign * step)
    g = video(2, 3, 3, 4, seed=2)
    (layer(x) * g).sum().backward()
    assert torch.equal(grad(x), g)
    levels = (x.detach() / step.reshape(shape + (1,) * (2 - len(shape)))).round()
    expected = -(g * levels).sum((0, 1))
    while expected.ndim > len(shape):
        expected = expected.sum(-1)
    torch.testing.assert_close(grad(layer.threshold), sign * expected)


def test_the_true_gradient_of_the_step_has_the_other_sign():
    """Between jumps of round, y = level * step: finite differences of the real function."""
    x, g, eps = video(1, 4, 2, 6), video(1, 4, 2, 6, seed=1), 1e-7
    step = torch.tensor([0.4, 0.7], dtype=torch.float64)
    layer = delta(2, step)
    (layer(x) * g).sum().backward()
    for channel in range(2):
        shifted = []
        for change in (eps, -eps):
            moved = step.clone()
            moved[channel] += change
            with torch.no_grad():
                shifted.append(float((delta(2, moved)(x) * g).sum()))
        true = (shifted[0] - shifted[1]) / (2 * eps)
        assert float(grad(layer.threshold)[channel]) == pytest.approx(-true, rel=1e-5)


def test_descent_on_the_penalty_makes_steps_grow_and_changes_rare():
    x = video(4, 6, 2, 8)
    layer = DeltaActivation(2, init=0.2, rate=1.0).double()
    optimizer = torch.optim.SGD(layer.parameters(), 0.05)
    densities = []
    for _ in range(60):
        layer(x)
        densities.append(layer.density)
        optimizer.zero_grad()
        temporal_loss(layer).backward()
        optimizer.step()
    assert (layer.threshold > 0.4).all()
    assert densities[-1] < 0.8 * densities[0]


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30])
def test_a_step_that_vanished_passes_values_on_and_can_recover(value):
    x = video(1, 3, 2).float()
    layer = DeltaActivation(2, init=0.1)
    nn.init.constant_(layer.threshold, value)
    y = layer(x)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-7)
    y.square().sum().backward()
    assert torch.isfinite(grad(layer.threshold)).all() and grad(layer.threshold).abs().min() > 0


def test_l1_charges_activations_and_changes_nothing():
    x = video(2, 1, 3, 4).relu()
    layer = L1Activation(rate=0.5, fan_out=3)
    assert layer(x) is x
    assert temporal_loss(layer).item() == pytest.approx(1.5 * float(x.mean()))
    assert layer.density == float((x > 0).double().mean())


def test_losses_and_operations_add_up_over_layers():
    first, second = DeltaActivation((), init=1.0, rate=2.0, fan_out=3), L1Activation(rate=1.0)
    model = nn.Sequential(first, second)
    model(torch.tensor([[[0.0, 2.0], [0.0, 5.0]]]))
    assert temporal_loss(model).item() == pytest.approx(2 * 3 * 1.5 + 7 / 4)
    assert operations_density(model) == pytest.approx((3 * 1 + 2) / (3 * 2 + 4))


def test_penalty_does_not_depend_on_batch_or_length():
    x = video(1, 3, 2, 4)
    layer = DeltaActivation(2, rate=1.0).double()
    layer(x)
    once = temporal_loss(layer).item()
    layer(x.repeat(5, 1, 1, 1))
    assert temporal_loss(layer).item() == pytest.approx(once)


def test_a_trained_layer_can_be_copied_and_pickled():
    layer = DeltaActivation(2, rate=1.0).double()
    y = layer(video(1, 3, 2))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(video(1, 3, 2)), y)


def test_calibration_takes_deviations_of_quantised_data_in_order():
    torch.manual_seed(0)
    frames = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))
    clip = torch.randn(2, 5, 2, 6, 6)
    model = insert_delta(frames, clip)
    model.get_submodule("1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in frames.state_dict().items()}
    calibrate(model, clip, scale=0.5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    layers = [module for module in model.modules() if isinstance(module, DeltaActivation)]
    per_channel = clip.flatten(0, 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layers[0].threshold.data, 0.5 * per_channel.std(1, correction=0))
    with torch.no_grad():
        reached = frames.eval()[:3](layers[0](clip).flatten(0, 1)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layers[1].threshold.data, 0.5 * reached.std(1, correction=0))
    for name, value in state.items():
        assert torch.equal(frames.state_dict()[name], value)  # a copy was converted
    constant = layers[0].threshold.detach().clone()
    layers[0].set_threshold(torch.zeros(2))
    assert torch.equal(layers[0].threshold, constant)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: DeltaActivation((), init=0),
            ValueError,
            "expected init to be positive .* try 0.1",
        ),
        (lambda: DeltaActivation((), init=float("inf")), ValueError, "expected init"),
        (lambda: DeltaActivation((), rate=-1.0), ValueError, "expected rate >= 0"),
        (lambda: L1Activation(rate=float("nan")), ValueError, "expected rate >= 0"),
        (lambda: L1Activation(fan_out=0), ValueError, "fan_out >= 1"),
        (lambda: DeltaActivation((3, 0)), ValueError, r"positive sizes, got shape \[3, 0\]"),
        (lambda: DeltaActivation(4)(torch.zeros(1, 2, 3)), ValueError, r"start with \[4\]"),
        (lambda: DeltaActivation(())(torch.zeros(2, 3)), ValueError, "expected a floating-point"),
        (lambda: DeltaActivation(())(torch.zeros(1, 2, 3).int()), ValueError, "got torch.int32"),
        (
            lambda: DeltaActivation(())(torch.zeros(1, 1, 3)),
            ValueError,
            "at least 2 frames .* got 1",
        ),
        (lambda: temporal_loss(DeltaActivation(())), ValueError, "try insert_delta"),
        (
            lambda: calibrate(DeltaActivation(()), torch.zeros(1, 2, 3), scale=0),
            ValueError,
            "scale",
        ),
        (
            lambda: calibrate(nn.ReLU(), torch.zeros(1, 2, 3)),
            ValueError,
            "expected a model with delta layers, got none; try insert_delta",
        ),
        (
            lambda: calibrate(DeltaActivation(()), torch.full((1, 2, 3), torch.nan)),
            ValueError,
            "expected a finite video",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_loss_that_is_not_finite_is_refused():
    layer = DeltaActivation(())
    layer(torch.tensor([[[0.0], [torch.nan]]]))
    with pytest.raises(ValueError, match="expected finite activations"):
        temporal_loss(layer)
