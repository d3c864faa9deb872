"""The evidence on DAG policies notices policies that are no better, and its quick claims hold."""

import numpy as np
import pytest
import torch

from gossamer.reproduce import bayesian_network_ac as module
from gossamer.reproduce import run

TINY = module.Tabular({2: 6}, steps=20, lr=0.1)


def trained(final, density=0.5, alone=0.0):
    return module.Trained(final, alone, density, trained_density=density, curve=(0.0, final))


def found(**changes):
    runs = {
        "independent": [trained(4.0), trained(5.0)],
        "auto-regressive": [trained(7.0), trained(8.0)],
        "learned": [trained(6.0), trained(7.0)],
        "annealed": [trained(6.0, 0.0), trained(6.0, 0.05)],
    }
    runs.update(changes)
    tasks = ("aloha", "speaker-listener")
    return {(task, policy): each for task in tasks for policy, each in runs.items()}


def test_the_interval_holds_the_mean_and_shrinks_with_seeds():
    gain = np.random.default_rng(0).normal(0.1, 0.2, size=400)
    low, high = module._interval(gain, 0)
    assert low < gain.mean() < high and high - low == pytest.approx(4 * 0.2 / 20, rel=0.15)
    few_low, few_high = module._interval(gain[:25], 0)
    assert few_high - few_low > 2 * (high - low)


@pytest.mark.parametrize(("swap", "holds"), [(False, True), (True, False)])
def test_the_full_dag_must_gain(swap, holds, monkeypatch):
    if swap:  # the comparison with the DAGs mixed up
        dags = {**module.DAGS, "empty": module.DAGS["full"], "full": module.DAGS["empty"]}
        monkeypatch.setattr(module, "DAGS", dags)
    size = module.Tabular({2: 49}, steps=150, lr=0.1)
    claim = module._coordination(2, size, seed=0)
    assert claim.holds is holds
    assert "line" in claim.setting and "Nash gap" in claim.setting


def test_a_policy_without_gain_fails(monkeypatch):
    monkeypatch.setattr(module, "DAGS", dict.fromkeys(module.DAGS, module.DAGS["empty"]))
    assert not module._coordination(2, TINY, seed=0).holds


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, [True, True, True]),
        ({"auto-regressive": [trained(4.9), trained(9.0)]}, [False, True, True]),
        ({"learned": [trained(6.0), trained(5.0)]}, [True, False, True]),
        ({"learned": [trained(6.0), trained(7.0, alone=7.0)]}, [True, False, True]),
        ({"annealed": [trained(6.0, 0.0), trained(6.0, 0.06)]}, [True, True, False]),
    ],
)
def test_every_seed_counts_on_aloha(changes, holds):
    claims = [*module._aloha(found(**changes))]
    assert [claim.holds for claim in claims] == holds
    assert "99840 steps" in claims[0].setting


@pytest.mark.parametrize(("learned", "holds"), [(5.1, True), (5.0, False)])
def test_every_seed_counts_on_the_task(learned, holds):
    assert module._spoken(found(learned=[trained(6.0), trained(learned)])).holds is holds


def test_returns_under_the_empty_dag_are_told():
    claims = [*module._aloha(found(annealed=[trained(6.0, 0.0, alone=3.25)] * 2))]
    assert (
        "annealed 6.00, 6.00 at density 0.00, 0.00 (under the empty DAG 3.25" in claims[2].setting
    )


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.001, False)])
def test_a_gradient_that_is_no_slope_is_noticed(monkeypatch, factor, holds):
    exact = module.policy_gradient
    monkeypatch.setattr(
        module,
        "policy_gradient",
        lambda game, policy: tuple(factor * table for table in exact(game, policy)),
    )
    assert module._gradient(2, 0).holds is holds


@pytest.mark.parametrize("heard", [0.0, 1.0])
def test_agents_that_hear_everybody_or_nobody_are_noticed(monkeypatch, heard):
    assert module._heard(3, 0).holds
    forward = module.ParentActor.forward

    def wrong(self, own, offers, actions, adjacency):
        return forward(self, own, offers, actions, torch.full_like(adjacency, heard))

    monkeypatch.setattr(module.ParentActor, "forward", wrong)
    claim = module._heard(3, 0)
    assert not claim.holds and claim.ours > 0


def test_training_is_repeatable_and_keeps_its_curve():
    job = module.Job("aloha", "learned", iterations=1, seed=3)
    one = module.train(job)
    assert one == module.train(job) and len(one.curve) == 1
    alone = module.train(module.Job("aloha", "independent", iterations=1, seed=3))
    assert alone.density == 0 and alone.final == alone.alone


def test_curves_have_a_row_a_seed():
    curves = module.learning_curves(2, range(3), steps=30)
    assert {name: curve.shape for name, curve in curves.items()} == {
        "empty": (3, 3),
        "line": (3, 3),
        "full": (3, 3),
    }
    assert all(((0 < curve) & (curve <= 1)).all() for curve in curves.values())


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("bayesian-network-ac", scale="quick", seed=0)
    assert evidence.holds
    for claim in evidence.claims[2:]:
        assert isinstance(claim.ours, float) and isinstance(claim.baseline, float)
        assert 1 >= claim.ours > claim.baseline > 0.5
