"""The evidence on the lessons: the four cases notice a rule that sleeps or cries wolf."""

import pytest

pytest.importorskip("sklearn")
from dataclasses import replace

from gossamer.catalog.lint import check
from gossamer.data.digits import digits
from gossamer.reproduce import _sparseland_reports as made
from gossamer.reproduce import run
from gossamer.reproduce import sparseland as module
from gossamer.training import DenseTraining, RigL, StaticSparse

EXACT = {name: 64 * width + width * width + 10 * width for name, width in (("d", 256), ("s", 64))}


@pytest.fixture(scope="module")
def dense():
    return [made.train(digits(), DenseTraining(), seed, 2) for seed in range(3)]


@pytest.fixture(scope="module")
def pruned(dense):
    return made.pruned_report(digits(), dense, range(3), 2)


def test_the_claims_about_counting_hold():
    assert module._counted().holds and module._caught().holds


def test_training_is_counted_and_watched():
    data = digits()
    dense = made.train(data, DenseTraining(), 0, 1)
    # The first layer's input needs no gradient: two products there, three in the others.
    assert dense.training_macs == 1200 * (3 * EXACT["d"] - 64 * 256)
    still = made.train(data, StaticSparse(0.1), 0, 1)
    assert still.peak_dense == ("none",) and still.exploration == pytest.approx(0.1, abs=1e-4)
    kept = {name: int(mask.sum()) for name, mask in still.masks.items()}
    assert still.training_macs == 1200 * (3 * sum(kept.values()) - kept["0"])
    moving = made.train(data, RigL(0.1, every=4, until=9), 0, 1)
    assert set(moving.peak_dense) == {"gradients", "weights"}
    assert moving.exploration > 0.1 and moving.peak_density == pytest.approx(0.1, abs=1e-4)


def test_pruned_networks_run_sparsely_and_lose_by_shuffling(pruned):
    dense, *ours = [row for row in pruned.rows if row.arm in ("dense", "ours")]
    assert dense.macs.median == EXACT["d"] and dense.kernel == "dense"
    for row in ours:
        assert row.kernel == "sparse"
        assert row.macs.median == pytest.approx(row.density * EXACT["d"], abs=2)
        assert row.nbytes.median < dense.nbytes.median
    (small,) = pruned.arms("small_dense")
    assert small.parameters == pytest.approx(ours[0].parameters, rel=0.1)
    assert module._shuffling(pruned, "").holds
    assert check(pruned) == ()


def test_a_speed_up_is_timed_before_it_is_said(pruned, dense):
    timed = made.timed_report(pruned, digits(), dense)
    assert [row.name for row in timed.rows if row.milliseconds] == ["dense", "CSR, density 0.05"]
    assert [one.kind for one in timed.statements] == ["faster", "right_weights"]
    assert {one.lesson for one in check(timed)} <= {"L2"}, "timings alone may be questioned"


def test_masks_are_seen_through(pruned, dense):
    simulated = made.simulated_report(pruned, digits(), dense)
    rows = simulated.arms("ours")
    for masked, stored in zip(rows, pruned.arms("ours"), strict=True):
        assert masked.quality == pytest.approx(stored.quality, abs=2 / 597), "the same masks"
    assert all(row.kernel == "dense" and row.macs.median == EXACT["d"] for row in rows)
    findings = {(one.severity, one.lesson) for one in check(simulated)}
    assert findings == {("note", "L10"), ("error", "L10"), ("error", "L2")}


def test_a_case_fails_for_one_finding_too_many_or_too_few(pruned):
    quiet = replace(pruned, statements=())
    assert module._case("c", quiet, set(), "s").holds
    assert not module._case("c", quiet, {("error", "L1")}, "s").holds
    loud = replace(quiet, seeds=(0, 0, 0))
    assert not module._case("c", loud, set(), "s").holds
    assert module._case("c", loud, {("error", "L9")}, "s").holds
    assert module._case("c", loud, set(), "s", may={("error", "L9")}).holds


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("sparseland", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 6
