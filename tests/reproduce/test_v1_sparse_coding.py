"""The evidence on sparse coding: its claims notice a penalty that is no better, and hold."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
from gossamer.estimators import SparseCoding
from gossamer.reproduce import run
from gossamer.reproduce import v1_sparse_coding as module

TINY = module._Size(side=6, n_components=40, batches=3, test_patches=100)
FOUND = module._Found(error=0.1, debiased=0.08, density=0.05, active=2.0)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.normal(size=(60, 60)).cumsum(0) for _ in range(2)]


def worse(by):
    return module._Found(error=by * 0.1, debiased=0.1, density=0.05, active=2.0)


@pytest.mark.parametrize(("soft", "holds"), [(2.1, True), (1.9, False)])
def test_every_seed_must_reach_the_ratio(soft, holds):
    found = {"soft": [worse(3.0), worse(soft)], "half": [worse(1.3)] * 2, "cel0": [FOUND] * 2}
    claim, *_ = module._ratios(found, TINY)
    assert claim.holds is holds
    assert f"{soft:.2f}" in claim.setting


@pytest.mark.parametrize(("hard", "holds"), [(1.1, True), (0.9, False)])
def test_cel0_must_be_best_for_every_seed(hard, holds):
    found = {"soft": [worse(3.0)], "half": [worse(1.2)], "hard": [worse(hard)], "cel0": [FOUND]}
    assert [claim.holds for claim in module._ratios(found, TINY)] == [True, True, holds]


def test_an_error_is_a_share_of_variance_at_the_target_density(images):
    model, test = module._learn(images, TINY, "cel0", 0), module._test_patches(images, TINY, 0)
    found = module._measure(model, test)
    codes = model.transform(test)
    lost = ((test - codes @ model.components_) ** 2).sum() / (test**2).sum()
    assert found.error == pytest.approx(lost, rel=1e-4)
    assert found.density == pytest.approx(0.05, rel=0.0101)
    assert found.active == pytest.approx(found.density * 40)
    assert found.debiased <= found.error
    assert module._measure(model, test, target_density=0.1).density == pytest.approx(
        0.1, rel=0.0101
    )


def test_test_patches_are_not_those_learnt_from(images):
    learnt = module.random_patches(images, 250, size=6, seed=0)
    assert not np.array_equal(module._test_patches(images, TINY, 0), learnt[:100])


def test_overcompleteness_compares_by_share_and_by_number(images, monkeypatch):
    densities = []

    def measure(model, test, target_density=0.05):
        densities.append((model.n_components, target_density))
        return FOUND if model.penalty == "cel0" else worse(0.5 if target_density == 0.05 else 3)

    def learn(images, size, penalty, seed, n_components):
        return SparseCoding(n_components, penalty=penalty)

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "_learn", learn)
    share, number = module._overcompleteness(images, TINY, np.empty(0), 0)
    assert densities == [(36, 0.05), (144, 0.05), (144, 0.0125)]
    assert not share.holds and number.holds


@pytest.mark.parametrize(("shape", "holds"), [(0.0, True), (9.0, False)])
def test_fields_count_the_gabor_fits(images, monkeypatch, shape, holds):
    monkeypatch.setattr(module, "GABOR_BATCHES", (4, 5))
    row, column = np.mgrid[:6, :6]
    wave = np.cos(column) * np.exp(-((row - 2.5) ** 2) / 4)
    noise = np.random.default_rng(0).normal(size=(4, 36)) * shape
    model = module._learn(images, TINY, "cel0", 0)

    def freeze(batch):
        model.n_iter_ += 1
        model.components_ = wave.ravel() + noise

    monkeypatch.setattr(model, "partial_fit", freeze, raising=True)
    monkeypatch.setattr(module, "GOOD_FIT", 0.9)
    claim = module._fields(images, TINY, model, 0)
    assert claim.holds is holds and model.n_iter_ == 5


def test_throughput_counts_patches(images):
    claim = module._throughput(images, 0, device="cpu", n_components=20, side=6, n=50)
    assert isinstance(claim.ours, float) and isinstance(claim.baseline, float)
    assert claim.ours > 0 and claim.baseline > 0
    first, second = claim.setting.split("errors ")[1].split(" and ")
    assert first == second


@pytest.mark.parametrize("name", module.COMPARED)
def test_a_threshold_that_is_off_is_noticed(monkeypatch, name):
    assert module._thresholds().holds
    penalty = type(module.PENALTIES[name])
    prox = penalty.prox
    monkeypatch.setattr(penalty, "prox", lambda self, z, *rest: 1.001 * prox(self, z, *rest))
    assert not module._thresholds().holds


def test_codes_that_stop_early_are_noticed(images, monkeypatch):
    test = module._test_patches(images, TINY, 0)
    assert module._optimal(test, TINY, 0).holds
    early = partial(module.ISTACoder, module.PENALTIES["soft"], step=None, tol=0.1)
    monkeypatch.setattr(module, "ISTACoder", lambda *_, **options: early())
    assert not module._optimal(test, TINY, 0).holds


@pytest.mark.parametrize(("density", "holds"), [(0.0505, True), (0.052, False)])
def test_a_density_that_was_missed_is_noticed(monkeypatch, density, holds):
    found = module._Found(error=0.1, debiased=0.08, density=density, active=2.0)
    monkeypatch.setattr(module, "_measure", lambda model, test: found)
    assert module._counted(SparseCoding(), np.empty(0), TINY).holds is holds


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("v1-sparse-coding", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 3
