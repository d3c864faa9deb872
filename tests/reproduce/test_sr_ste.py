"""The evidence on SR-STE: its claims notice masks that do not settle and accuracy that is lost."""

import pytest
import torch

pytest.importorskip("sklearn")
from gossamer.data.digits import digits
from gossamer.reproduce import run
from gossamer.reproduce import sr_ste as module
from gossamer.training import SRSTE, DenseTraining


def trained(accuracy=96.0, loss=0.1, flipped=0.04):
    return module._Trained(accuracy, loss, flipped)


def sweep(**changes):
    """Five decays as the paper has them, with one figure of one of them replaced."""
    found = {
        -2e-2: [trained(70.0, 2.0, 0.11)],
        0.0: [trained(96.0, 0.12, 0.044)],
        2e-4: [trained(96.2, 0.11, 0.041)],
        2e-3: [trained(96.1, 0.12, 0.030)],
        2e-2: [trained(95.9, 0.13, 0.008)],
    }
    for decay, run_ in changes.get("found", {}).items():
        found[decay] = [run_]
    return [claim.holds for claim in module._sweep(found)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, [True, True, True, True]),
        ({2e-4: trained(96.2, 0.1225, 0.041)}, [False, True, True, True]),
        ({2e-4: trained(96.2, 0.11, 0.044)}, [True, False, False, True]),
        ({2e-2: trained(95.9, 0.13, 0.03)}, [True, True, False, True]),
        ({-2e-2: trained(92.0, 0.2, 0.11)}, [True, True, True, False]),
    ],
)
def test_each_claim_notices_its_own_figure(found, expected):
    assert sweep(found=found) == expected


@pytest.mark.parametrize(("lost", "holds"), [(0.9, True), (1.1, False)])
def test_two_of_four_must_come_within_a_point_of_dense(monkeypatch, lost, holds):
    monkeypatch.setattr(
        module,
        "_runs",
        lambda data, method, seeds: [trained(97 if method == DenseTraining() else 97 - lost)],
    )
    assert module._two_of_four(None, range(1)).holds is holds


@pytest.mark.parametrize(("ours", "holds"), [(95.6, True), (95.4, False)])
def test_from_scratch_must_reach_the_retrained_network(monkeypatch, ours, holds):
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "_runs", lambda *_: [trained(ours)])
    monkeypatch.setattr(
        module, "_train", lambda data, method, seed, model=None: (module._network(0), trained())
    )
    claim = module._fixed_mask(digits(), range(1))
    assert claim.holds is holds and "without training again" in claim.setting


def test_training_learns_and_flips(monkeypatch):
    monkeypatch.setattr(module, "EPOCHS", 5)
    data = digits()
    _, dense = module._train(data, DenseTraining(), 0)
    model, sparse = module._train(data, SRSTE(2, 4), 0)
    assert dense.flipped == 0.0 < sparse.flipped < 0.5
    assert min(dense.accuracy, sparse.accuracy) > 60
    assert int(model[0].weight.count_nonzero()) == 256 * 32
    assert int(model[4].weight.count_nonzero()) == 10 * 256


def test_digits_are_dealt_out_without_overlap():
    data = digits()
    assert (
        (len(data.train), len(data.test))
        == (1200, 597)
        == (
            len(data.train_labels),
            len(data.test_labels),
        )
    )
    assert 0 == data.train.min() and data.train.max() == 1
    rows = {tuple(row.tolist()) for row in data.train}
    assert not rows & {tuple(row.tolist()) for row in data.test}


def test_speed_compares_layers_that_are_equal():
    claim = module._speed(0, 64)
    assert isinstance(claim.ours, float) and claim.ours > 0
    assert "with 64 rows" in claim.setting


def test_masks_that_stay_are_noticed(monkeypatch):
    assert module._kept(digits(), 0).holds
    first: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def kept(self, weight):
        return first.setdefault((self.n, self.m, *weight.shape), module.nm_mask(weight, 2, 4))

    monkeypatch.setattr(SRSTE, "mask", kept)
    claim = module._kept(digits(), 0)
    assert not claim.holds and claim.ours > 0


def test_a_step_without_the_pull_is_noticed(monkeypatch):
    assert module._gradient(digits(), 0).holds
    monkeypatch.setattr(SRSTE, "regularize", lambda self, weight, mask, lr: None)
    assert not module._gradient(digits(), 0).holds


def test_a_masked_layer_in_place_of_a_packed_one_is_noticed(monkeypatch):
    assert module._packed(0, 64).holds
    monkeypatch.setattr(module.PackedLinear, "from_dense", lambda layer, pattern: layer)
    claim = module._packed(0, 64)
    assert not claim.holds and claim.ours == 1.0


def test_quick_claims_hold():
    evidence = run("sr-ste", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 3
