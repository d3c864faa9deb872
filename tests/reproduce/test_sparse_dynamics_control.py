"""The evidence on sparse dynamics: wrong figures are noticed, and the quick claims hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("highspy")
pytest.importorskip("pymunk")
from gossamer.data.planar_pushing import PlanarPushing, Pushes
from gossamer.dynamics import MPPI, NeuronTypes, Plan, Sparsified, Training, sparse_mlp
from gossamer.reproduce import _pushing_networks as networks
from gossamer.reproduce import run
from gossamer.reproduce import sparse_dynamics_control as module

TINY = replace(
    module.SIZES["quick"],
    pushes=40,
    width=16,
    training=Training(1, 1, 1, weight_penalty=0.0),
    episodes=2,
    actions=2,
    time_limit=1.0,
)
ERRORS = {
    "sparse 32": 0.03, "scratch 32": 0.03, "sparse 16": 0.04, "scratch 16": 0.04,
    "sparse 8": 0.0425, "scratch 8": 0.05, "dense": 0.02, "alike": 0.045, "copy": 0.08,
}  # fmt: skip


def sparsified(budget=8, seed=0) -> Sparsified:
    torch.manual_seed(seed)
    model = sparse_mlp(networks.INPUTS, (16, 16), networks.OUTPUTS).eval()
    keep = torch.arange(32) < budget
    for layer, kept in zip((model[1], model[3]), keep.split(16), strict=True):
        layer.freeze(kept)
    return Sparsified(budget, model, NeuronTypes.of(model), 3)


def trained(**errors) -> networks.Trained:
    sparse = {budget: sparsified(budget) for budget in (32, 16, 8)}
    return networks.Trained(sparse, sparsified(32, seed=1).model, {**ERRORS, **errors})


def plan(objective=1.0, status="optimal", seconds=1.0, mismatch=0.0, binaries=5) -> Plan:
    states = np.zeros((1, 5, 2))
    return Plan(np.zeros((1, 2)), objective, 0.0, 0.0, status, seconds, states, mismatch, binaries)


SETTLED = replace(TINY, budgets=(64, 32, 16, 8))


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"sparse 8": 0.0426}, [True, True, False, True]),
        ({"scratch 32": 0.0299}, [False, True, True, True]),
        ({"alike": 0.0424}, [True, True, True, False]),
    ],
)
def test_prediction_needs_every_margin(errors, expected):
    claims = [*module._prediction([trained(**errors)], SETTLED)]
    assert [claim.holds for claim in claims] == expected


def test_prediction_takes_means_over_seeds():
    claims = [*module._prediction([trained(), trained(**{"sparse 8": 0.0435})], SETTLED)]
    assert claims[2].ours == pytest.approx(0.043) and not claims[2].holds
    assert claims[2].baseline == pytest.approx(0.05)


def test_pruned_weights_leave_binaries(monkeypatch):
    monkeypatch.setattr(module, "PRUNED", 0.5)
    claim = module._pruning(trained(), TINY)
    assert claim.holds and isinstance(claim.ours, int) and claim.ours <= 8


@pytest.mark.parametrize(
    ("exact", "mppi", "holds"),
    [
        (plan(1.0), plan(1.0), True),
        (plan(1.002), plan(1.0), False),
        (plan(1.002, status="time_limit"), plan(1.0), False),  # nothing was proven
        (plan(1.0, mismatch=2e-5), plan(1.0), False),
    ],
)
def test_optimality_is_checked_where_it_is_claimed(exact, mppi, holds):
    claim = module._optimality([exact], {"MPPI": [mppi]}, TINY)
    assert claim.holds is holds


def test_an_unproven_plan_may_cost_more_than_a_sampled_one():
    claim = module._optimality(
        [plan(1.0), plan(2.0, status="time_limit")], {"MPPI": [plan(1.0), plan(1.0)]}, TINY
    )
    assert claim.holds and "1 of 2 proven" in claim.setting


@pytest.mark.parametrize(("seconds", "holds"), [(5.0, True), (4.9, False)])
def test_solve_times_are_medians(seconds, holds):
    many = [plan(seconds=9.0), plan(seconds=seconds), plan(seconds=0.1)]
    assert module._solve_times([plan(seconds=1.0)] * 3, many, TINY).holds is holds


@pytest.mark.parametrize(("loose", "holds"), [(6, True), (5, False)])
def test_tightening_must_spare_binaries(loose, holds):
    assert module._tightening([plan()], [plan(binaries=loose)], TINY).holds is holds


def test_closed_loop_gives_sampling_the_solvers_seconds(monkeypatch):
    limits, seen = [], []

    class Exact:
        def plan(self, state, goal):
            seen.append(state)
            return plan(seconds=0.25 + len(seen))

    def sampled(self, state, goal):
        limits.append(self.time_limit)
        return plan(seconds=0.0)

    monkeypatch.setattr(module, "_controller", lambda *arguments: Exact())
    monkeypatch.setattr(MPPI, "plan", sampled)
    better, same = module._closed_loop(trained(), TINY, seed=0)
    assert limits == [1.25, 2.25, 1.25, 2.25, 3.25, 4.25, 3.25, 4.25]
    assert better.ours == better.baseline and not better.holds  # nobody moved
    assert same.ours == same.baseline and not same.holds


def test_an_episode_looks_again_after_each_action():
    env = PlanarPushing()
    first, _ = env.reset(seed=4)
    actions = np.array([[0.1, 0.0], [0.0, -0.2]])
    after = [env.step(action)[0] for action in actions]
    seen = []

    class Planner:
        def plan(self, state, goal):
            seen.append(state)
            return replace(plan(), actions=actions[len(seen) - 1][None])

    found = module.episode(Planner(), 4, 2)
    assert np.array_equal(found.states, [first, *after])
    assert np.array_equal(seen, found.states[:2])
    distance = np.linalg.norm(after[-1][1:] - env.goal, axis=1).mean()
    assert found.errors(env.goal)[-1] == pytest.approx(distance)


def test_the_data_are_relative_corners_and_displacements():
    states = np.arange(10.0).reshape(1, 5, 2)
    inputs, targets = networks.pushing_data(Pushes(states, np.array([[0.1, 0.2]]), states + 1))
    assert inputs.tolist()[0] == pytest.approx([2, 2, 4, 4, 6, 6, 8, 8, 0.1, 0.2])
    assert targets.tolist() == [[1.0] * 8]


def test_every_control_has_the_neurons_it_should(monkeypatch):
    made = []

    def remember(model, data, size, epochs, seed):
        made.append((model, epochs))
        return model

    monkeypatch.setattr(networks, "_trained", remember)
    (found,) = networks.train_networks(TINY, range(1))
    counts = [NeuronTypes.of(model).count(0) for model, _ in made]
    assert counts == [32, 16, 8, 8]  # dense, from scratch, and alike
    epochs = {budget: each.epochs for budget, each in found.sparse.items()}
    assert [e for _, e in made] == [epochs[8], epochs[16], epochs[8], epochs[8]]
    types = NeuronTypes.of(made[-1][0]).layers
    assert all(map(torch.equal, types, found.sparse[8].types.layers))
    assert set(found.errors) == {
        "sparse 32", "sparse 16", "sparse 8", "copy", "scratch 16", "scratch 8", "dense", "alike",
    }  # fmt: skip


def test_there_is_no_gpu_scale():
    with pytest.raises(ValueError, match="got 'gpu'"):
        next(module.reproduce("gpu", 0))


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("sparse-dynamics-control", scale="quick")
    assert evidence.holds
    _, pruned, proven, tightened = evidence.claims
    assert pruned.ours <= 8 < pruned.baseline and tightened.ours < tightened.baseline
    assert "2 of 2 proven" in proven.setting
