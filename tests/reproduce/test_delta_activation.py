"""The evidence notices a stream that went wrong, and its quick claims hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("av")
pytest.importorskip("sklearn")
from gossamer.conditional import calibrate, insert_delta
from gossamer.data.moving_digits import MovingDigits
from gossamer.kernels import DeltaConv
from gossamer.reproduce import delta_activation, run
from gossamer.reproduce._delta_training import Arm, Size, frame_network, mean_arm


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_the_exactness_claim_notices_a_wrong_product(monkeypatch, error):
    torch.manual_seed(0)
    video = torch.rand(2, 1, 2, 48, 48).repeat(1, 4, 1, 1, 1)
    video[:, :, :, 10:20, 10:20] = torch.rand(2, 4, 2, 10, 10)
    model = insert_delta(frame_network(), video).eval()
    calibrate(model, video, scale=1.0)  # coarse: no value within rounding of an edge
    pack = DeltaConv.pack

    def wrong(weight, *rest, **options):
        return pack(weight * (1 + error), *rest, **options)

    monkeypatch.setattr(DeltaConv, "pack", wrong)
    claim = delta_activation._exact(model, MovingDigits(video, torch.zeros(2)))
    assert claim.holds == (error == 0)


def test_the_count_notices_one_product_more(monkeypatch):
    torch.manual_seed(0)
    video = torch.rand(2, 1, 2, 48, 48).repeat(1, 4, 1, 1, 1)
    video[:, :, :, 10:20, 10:20] = torch.rand(2, 4, 2, 10, 10)
    model = insert_delta(frame_network(), video).eval()
    calibrate(model, video, scale=1.0)
    test = MovingDigits(video, torch.zeros(2))
    assert delta_activation._counted(model, test).holds
    work = delta_activation.DeltaInference.step

    def one_more(self, frame):
        step = work(self, frame)
        first = replace(step.layers[0], multiply_adds=step.layers[0].multiply_adds + 1)
        return replace(step, layers=(first, *step.layers[1:]))

    monkeypatch.setattr(delta_activation.DeltaInference, "step", one_more)
    claim = delta_activation._counted(model, test)
    assert not claim.holds and claim.ours == claim.baseline + 3  # frames after the first


SIZE = Size(1, 1, 1, (0.1,), 8, 4, 1)
GOOD = {
    "dense": Arm(nn.Identity(), accuracy=0.9, density=0.5),
    "l1 0.01": Arm(nn.Identity(), accuracy=0.9, density=0.4),
    "l1 0.04": Arm(nn.Identity(), accuracy=0.8, density=0.3),
    "delta": Arm(nn.Identity(), accuracy=0.89, density=0.09, growth=1.1),
    "unreversed": Arm(nn.Identity(), accuracy=0.9, density=0.12, growth=0.9),
    "calibrated": Arm(nn.Identity(), accuracy=0.88, density=0.11),
}
# What each claim must notice: an arm, what is changed in it, and which of the three claims falls.
FAULTS = [
    ("delta", {"density": 0.11}, [False, False, True]),
    ("l1 0.04", {"density": 0.2}, [False, True, True]),
    ("l1 0.01", {"accuracy": 0.92}, [False, True, True]),
    ("delta", {"accuracy": 0.87}, [False, False, True]),
    ("delta", {"growth": 0.99}, [True, True, False]),
    ("unreversed", {"growth": 1.01}, [True, True, False]),
    ("calibrated", {"density": 0.09}, [True, False, True]),
    ("dense", {"accuracy": 0.92}, [True, False, True]),
    ("delta", {}, [True, True, True]),
]


@pytest.mark.parametrize(("arm", "change", "expected"), FAULTS)
def test_claims_on_training_notice_each_figure(arm, change, expected):
    arms = GOOD | {arm: replace(GOOD[arm], **change)}
    claims = [
        make(arms, SIZE)
        for make in (delta_activation._sparser, delta_activation._trained, delta_activation._grows)
    ]
    assert [claim.holds for claim in claims] == expected
    assert claims[0].baseline == min(arms[name].density for name in ("l1 0.01", "l1 0.04"))


def test_arms_are_averaged():
    mean = mean_arm([GOOD["delta"], GOOD["unreversed"]])
    assert (mean.accuracy, mean.density, mean.growth) == pytest.approx((0.895, 0.105, 1.0))


@pytest.mark.parametrize(
    ("density", "agreement", "holds"), [(0.5, 0.9, True), (0.51, 1.0, False), (0.3, 0.89, False)]
)
def test_the_camera_must_save_work_and_keep_the_class(monkeypatch, density, agreement, holds):
    found = delta_activation._Streamed(0.05, density, agreement, psnr=30.0)
    monkeypatch.setattr(delta_activation, "_stream", lambda *_: found)
    monkeypatch.setattr(delta_activation, "_choose_scale", lambda *_: 0.05)
    claim = delta_activation._standing_camera(nn.Identity(), [torch.zeros(1)], SIZE)
    assert claim.holds is holds and claim.ours == density


def test_shots_are_compared_at_one_step(monkeypatch):
    """A finer step for some of them would change more of their values."""
    asked = []

    def stream(model, video, scale):
        asked.append(scale)
        return delta_activation._Streamed(scale, 0.6 if video else 0.7, 1.0, psnr=30.0)

    monkeypatch.setattr(delta_activation, "prepare", lambda frames: frames)
    clip = type("Clip", (), {"frames": [1]})
    empty = type("Clip", (), {"frames": []})
    monkeypatch.setattr(
        delta_activation, "shot", lambda n: clip if n in delta_activation.STANDING else empty
    )
    monkeypatch.setattr(delta_activation, "_stream", stream)
    monkeypatch.setattr(delta_activation, "_choose_scale", lambda *_: 0.02)
    half, compared = delta_activation._real_shots(nn.Identity(), 16)
    assert not half.holds and half.ours == pytest.approx(0.6)
    assert compared.holds and (compared.ours, compared.baseline) == pytest.approx((0.6, 0.7))
    assert asked == [0.02] * 2 + [delta_activation.SHARED_SCALE] * 4


def test_steps_are_chosen_on_the_first_frames_alone():
    """The class is the sign of x: one of 0.05 keeps it at steps below 0.1, of 0.8 deviations."""
    video = torch.tensor([1.0, 0.05, -1.0, -1.0, 0.01, 0.01])[:, None]
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.copy_(torch.tensor([0.0, 1e-6]))  # zero is of the second class
    assert 0.8 < video[: delta_activation.CALIBRATION].std(correction=0) < 0.9
    assert delta_activation._choose_scale(model, video) == 0.1
    coarse = video * torch.tensor([1.0, 0.01, 1.0, 1.0, 1.0, 1.0])[:, None]
    assert delta_activation._choose_scale(model, coarse) == min(delta_activation.SCALES)


@pytest.mark.parametrize(("ours", "holds"), [(1.0, True), (3.0, False)])
def test_times_are_compared_and_what_is_timed_runs(monkeypatch, ours, holds):
    def milliseconds(functions):
        times = {}
        for name, function in functions.items():
            function()
            times[name] = {"dense": 2.0, "slower": 9.0}.get(name, ours)
        return times

    def dense(model, frame):
        return {"slower": lambda: model(frame), "dense": lambda: model(frame)}

    monkeypatch.setattr(delta_activation, "_milliseconds", milliseconds)
    monkeypatch.setattr(delta_activation, "_dense_runners", dense)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    video = torch.randn(3, 12, 12).repeat(6, 1, 1, 1)
    video[:, :, 2:4, 2:4] += torch.arange(6.0)[:, None, None, None]
    for claim in (
        delta_activation._pointwise(model.eval(), video),
        delta_activation._time(model.eval(), video),
    ):
        assert claim.holds is holds and (claim.baseline, claim.ours) == (2.0, ours)


def test_the_dense_baseline_is_the_model_without_batch_norms():
    model = nn.Sequential(frame_network(), nn.ReLU()).eval()
    nn.init.uniform_(model.get_submodule("0.1").get_buffer("running_var"), 0.5, 2)
    frames = torch.randn(2, 2, 48, 48)
    folded = delta_activation._folded(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(frames), model(frames))


def test_other_scales_are_refused():
    with pytest.raises(ValueError, match="expected quick or full for this paper, got 'gpu'"):
        next(delta_activation.reproduce("gpu", 0))


@pytest.mark.slow
def test_quick_figures_are_those_claimed():
    evidence = run("delta-activation", scale="quick", seed=0)
    assert evidence.holds
    grows, exact, counted = evidence.claims
    assert grows.baseline < 1 < grows.ours
    assert exact.ours < 1e-10
    assert 0 < counted.ours == counted.baseline
