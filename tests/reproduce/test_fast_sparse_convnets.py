"""The evidence on sparse convolutions: its claims notice a slower kernel and a wrong output."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from gossamer.bench.timing import Samples
from gossamer.inference.fused import FusedLinear
from gossamer.models.mobilenet import mobilenet_v2
from gossamer.reproduce import _cnn_rivals, run
from gossamer.reproduce import fast_sparse_convnets as module


def times(**milliseconds):
    return lambda functions, **options: {
        name: Samples((milliseconds.get(name.split()[0], 9.0) / 1e3,)) for name in functions
    }


def small():
    torch.manual_seed(0)
    return mobilenet_v2(0.25, classes=10)


@pytest.fixture
def no_engines(monkeypatch):
    monkeypatch.setattr(_cnn_rivals, "find_spec", lambda name: None)


def test_pruning_keeps_the_largest_weights_of_1x1_convolutions_only():
    model, whole = small(), small()
    module.prune(model, 0.15)
    for mine, theirs in zip(model.modules(), whole.modules(), strict=True):
        if isinstance(mine, nn.Conv2d) and mine.kernel_size == (1, 1):
            kept = mine.weight != 0
            assert int(kept.sum()) == round(0.15 * kept.numel())
            assert theirs.weight[kept].abs().min() >= theirs.weight[~kept].abs().max()
        elif hasattr(mine, "weight"):
            assert torch.equal(mine.weight, theirs.weight)


@pytest.mark.parametrize(("ours", "holds"), [(3.0, True), (8.0, False)])
def test_a_network_must_beat_the_best_of_torch(ours, holds, monkeypatch, no_engines):
    monkeypatch.setattr(module, "interleaved", times(ours=ours))
    exact, faster, half = module._network("small", small(), 64, 0, module.ENGINES)
    assert exact.holds and 0 < exact.ours < 1e-4
    assert faster.holds is holds and faster.baseline == 9.0 and faster.ours == ours
    assert half.holds and half.setting.endswith(
        "not installed: onnx, onnxscript, onnxruntime, ai_edge_litert, flatbuffers"
    )


@pytest.mark.parametrize(("ours", "holds"), [(3.0, True), (5.0, False)])
def test_it_must_beat_the_best_setting_of_litert(ours, holds, monkeypatch):
    def engines(model, image, expected):
        assert expected.shape == (1, 10)
        return dict.fromkeys(("onnxruntime", "litert one", "litert two")), ""

    def timed(functions, **options):
        seconds = {"ours": ours / 1e3, "litert two": 4e-3}
        return {name: Samples((seconds.get(name, 9e-3),)) for name in functions}

    monkeypatch.setattr(module, "engine_runners", engines)
    monkeypatch.setattr(module, "interleaved", timed)
    claims = list(module._network("small", small(), 64, 0, module.ENGINES))
    (claim,) = (claim for claim in claims if "LiteRT" in claim.claim)
    assert claim.holds is holds and (claim.baseline, claim.ours) == (4.0, ours)


def test_engines_are_installed_or_named_and_compute_the_network(monkeypatch):
    packages = (("onnx", "onnxruntime"), ("ai_edge_litert", "litert"))
    here = [engine for package, engine in packages if find_spec(package) is not None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
    runners, absent = _cnn_rivals.engine_runners(model, image, expected)
    assert {name.split()[0] for name in runners} == set(here)
    assert all(package in absent for package, engine in packages if engine not in here)
    if runners:
        with pytest.raises(AssertionError, match="not close"):
            _cnn_rivals.engine_runners(model, image, expected + 0.01 * expected.abs().max())


def test_a_wrong_output_is_noticed(monkeypatch, no_engines):
    real = module.inference.compile

    def broken(model, image):
        sparse = real(model, image)
        (linear,) = (part for part in sparse.modules() if isinstance(part, FusedLinear))
        linear.bias[3] += 0.01 * sparse(image).abs().max()
        return sparse

    monkeypatch.setattr(module, "interleaved", times(ours=1.0))
    monkeypatch.setattr(module.inference, "compile", broken)
    exact, *_ = module._network("small", small(), 64, 0, module.ENGINES)
    assert not exact.holds and exact.ours > 1e-3


@pytest.mark.parametrize(("ours", "held"), [(1.0, 5), (4.0, 4), (9.0, 1)])
def test_a_layer_must_reach_its_bars(ours, held, monkeypatch):
    monkeypatch.setattr(module, "interleaved", times(ours=ours))
    claims = list(module._kernels(((16, 16, 32),), 0))
    assert sum(claim.holds for claim in claims) == held
    assert claims[0].ours == pytest.approx(9.0 / ours)


def test_a_network_with_dense_kernels_is_noticed(monkeypatch):
    assert [claim.holds for claim in module._small_network(small(), 64, 0)] == [True, True]
    real = module.inference.compile
    monkeypatch.setattr(
        module.inference, "compile", lambda model, image, kernel: real(model, image, kernel="dense")
    )
    exact, counted = module._small_network(small(), 64, 0)
    assert exact.holds and not counted.holds and counted.ours > counted.baseline


def test_pruned_training_ends_at_its_density(monkeypatch):
    seen = []
    real = module.inference.compile

    def watch(model, image, **options):
        seen.append(real(model, image, **options))
        return seen[-1]

    monkeypatch.setattr(module.inference, "compile", watch)
    accuracy, multiplications = module._train(1.0, 0.1, seed=0, steps=12)
    _, whole = module._train(1.0, 1.0, seed=0, steps=2)
    report = seen[0].report()
    sparse = [layer for layer in report if layer.kernel == "spmm"]
    assert len(sparse) == 5
    assert all(layer.density == pytest.approx(0.1, abs=1e-3) for layer in sparse)
    assert 0.05 < accuracy <= 1.0 and multiplications < 0.2 * whole
    width = module._equal_width(multiplications)
    _, narrow = module._train(width, 1.0, seed=0, steps=2)
    assert multiplications <= narrow < 1.5 * multiplications


@pytest.mark.parametrize(("pruned", "holds"), [(0.9, True), (0.7, False)])
def test_accuracy_is_compared_at_equal_work(pruned, holds, monkeypatch):
    def train(width, density, seed, steps):
        return (0.8 if density == 1 else pruned, 100_000)

    monkeypatch.setattr(module, "_train", train)
    (claim,) = module._accuracy((0.1,), range(3), steps=7)
    assert claim.holds is holds and claim.baseline == pytest.approx(0.8)
    assert claim.criterion.endswith("3 seeds") and "7 steps" in claim.setting


def test_digits_are_split_and_shifted():
    images, labels, test_images, test_labels = module._digits(0)
    assert len(images) == len(labels) == 1000 and len(test_images) == len(test_labels) == 797
    assert images.max() == 1.0 and images.shape[1:] == (1, 8, 8)
    moved = module._shifted(images[:3], torch.Generator().manual_seed(1))
    assert moved.shape == images[:3].shape
    spots = torch.nn.functional.pad(images[:3], (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    spots = spots.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)
    assert any(torch.equal(moved, spot) for spot in spots)


def test_the_paper_says_nothing_about_gpus():
    assert list(module.reproduce("gpu", 0)) == []


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("fast-sparse-convnets", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 3
