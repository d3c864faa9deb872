"""Mixed-integer control: plans are optimal by brute force, honest, and true in the model."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from gossamer.dynamics import (
    CEM,
    MPPI,
    ControlProblem,
    GradientShooting,
    KeypointCost,
    KeypointDynamics,
    MixedIntegerController,
    Plan,
    controller,
    solvers,
    sparse_mlp,
)
from gossamer.errors import SolverError

STATE = np.array([[0.3, -0.2], [0.0, 0.0], [0.5, 0.1]])
GOAL = np.array([[0.4, 0.1], [0.8, 0.4]])
SCIP = pytest.mark.skipif(find_spec("pyscipopt") is None, reason="PySCIPOpt is not installed")


def dynamics(seed=0, hidden=(4, 4)) -> KeypointDynamics:
    torch.manual_seed(seed)
    network = sparse_mlp(6, hidden, 4)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.7)
    return KeypointDynamics(network)


def problem(horizon=2, seed=0, **options) -> ControlProblem:
    return ControlProblem(dynamics(seed), horizon, (-0.3, 0.3), **options)


def brute_force(ours: ControlProblem, points=25) -> float:
    """Least cost of two actions on a grid."""
    line = torch.linspace(-0.3, 0.3, points, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line, line, line).reshape(-1, 2, 2)
    state, goal = ours.check(STATE, GOAL)
    return float(ours.evaluate(state, goal, grid).min())


@pytest.mark.parametrize("bounds", ["lp", "interval"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_plan_on_a_grid_costs_less(seed, bounds):
    ours = problem(seed=seed)
    plan = MixedIntegerController(ours, bounds=bounds, gap=0.0).plan(STATE, GOAL)
    least = brute_force(ours)
    assert plan.status == "optimal" and plan.gap <= 1e-6
    assert least - 0.1 < plan.objective <= least + 1e-7
    assert plan.bound <= plan.objective + 1e-9


def test_the_plan_costs_what_the_model_says():
    ours = problem(horizon=3)
    plan = MixedIntegerController(ours).plan(STATE, GOAL)
    model, state, cost = dynamics().double().eval(), torch.tensor(STATE), 0.0
    with torch.no_grad():
        for t, action in enumerate(torch.tensor(plan.actions)):
            state = model(state, action)
            assert np.allclose(state, plan.states[t], atol=1e-9)
            cost += (t + 1) / 3 * float((state[1:] - torch.tensor(GOAL)).abs().sum())
    assert plan.objective == pytest.approx(cost, abs=1e-6)
    assert plan.mismatch <= 1e-6 and np.abs(plan.actions).max() <= 0.3


@pytest.mark.parametrize("sampler", [MPPI, CEM, GradientShooting])
def test_sampling_comes_near_and_claims_nothing(sampler):
    ours = problem()
    best = MixedIntegerController(ours, gap=0.0).plan(STATE, GOAL)
    plan = sampler(ours).plan(STATE, GOAL)
    assert (plan.status, plan.bound, plan.gap) == ("sampled", -np.inf, np.inf)
    assert best.objective - 1e-7 <= plan.objective <= 1.1 * best.objective
    assert plan.actions.shape == (2, 2) and np.abs(plan.actions).max() <= 0.3
    again = sampler(ours).plan(STATE, GOAL)
    assert np.array_equal(plan.actions, again.actions)


@pytest.mark.parametrize("sampler", [MPPI, CEM, GradientShooting])
def test_sampling_stops_in_time(sampler, monkeypatch):
    ours, calls = problem(), []
    evaluate = ours.evaluate
    monkeypatch.setattr(ours, "evaluate", lambda *a: calls.append(1) or evaluate(*a))
    sampler(ours, iterations=50, time_limit=1e-9).plan(STATE, GOAL)
    assert len(calls) == 1


def test_a_warm_start_is_a_solution_of_the_program():
    ours = problem(horizon=3)
    actions = MPPI(ours, samples=50, iterations=1).plan(STATE, GOAL).actions
    program = controller._Program(ours, "lp", STATE, GOAL)
    values, lp = program.values(actions), program.milp.lp()
    assert (values >= np.array(lp.col_lower_) - 1e-9).all()
    assert (values <= np.array(lp.col_upper_) + 1e-9).all()
    activity = np.zeros(lp.num_row_)
    for row, column, value in solvers._entries(lp):
        activity[row] += value * values[column]
    assert (activity >= np.array(lp.row_lower_) - 1e-9).all()
    assert (activity <= np.array(lp.row_upper_) + 1e-9).all()
    state, goal = ours.check(STATE, GOAL)
    cost = float(ours.evaluate(state, goal, torch.tensor(actions)))
    assert np.array(lp.col_cost_) @ values == pytest.approx(cost, abs=1e-9)


def test_running_out_of_time_is_not_optimal():
    ours = ControlProblem(dynamics(0, (24, 24)), 4, (-0.3, 0.3))
    start = MPPI(ours, samples=50, iterations=2)
    exact = MixedIntegerController(ours, bounds="interval", time_limit=0.5, warm_start=start)
    plan = exact.plan(STATE, GOAL)
    assert plan.status == "time_limit" and plan.bound < plan.objective
    assert plan.gap > exact.gap
    assert plan.objective <= start.plan(STATE, GOAL).objective + 1e-6


def test_a_plan_the_model_does_not_reproduce_is_refused(monkeypatch):
    ours = problem()
    monkeypatch.setattr(ours, "step", dynamics(seed=7).relative_step())
    with pytest.raises(SolverError, match=r"reproduce the plan's cost"):
        MixedIntegerController(ours).plan(STATE, GOAL)


def test_the_goal_moves_with_the_state():
    ours, away = problem(), np.array([5.0, -3.0])
    here = MixedIntegerController(ours, gap=0.0).plan(STATE, GOAL)
    there = MixedIntegerController(ours, gap=0.0).plan(STATE + away, GOAL + away)
    assert there.objective == pytest.approx(here.objective, abs=1e-6)


def test_only_the_last_step_may_count():
    ours = problem(cost=KeypointCost(steps="final"))
    plan = MixedIntegerController(ours, gap=0.0).plan(STATE, GOAL)
    assert plan.objective == pytest.approx(np.abs(plan.states[-1, 1:] - GOAL).sum(), abs=1e-6)


@SCIP
@pytest.mark.parametrize("norm", [1, 2])
def test_scip_solves_both_costs(norm):
    ours = problem(cost=KeypointCost(norm=norm))
    start = MPPI(ours, samples=100)
    exact = MixedIntegerController(ours, solver="scip", gap=1e-5, warm_start=start)
    plan = exact.plan(STATE, GOAL)
    least = brute_force(ours)
    assert plan.status == "optimal"
    assert least - 0.1 < plan.objective <= least + 1e-6
    if norm == 1:
        highs = replace(exact, solver="highs").plan(STATE, GOAL)
        assert plan.objective == pytest.approx(highs.objective, rel=1e-4)


def test_a_missing_solver_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyscipopt", None)
    with pytest.raises(ImportError, match=r"gossamer\[scip\]"):
        MixedIntegerController(problem(), solver="scip").plan(STATE, GOAL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "gurobi"}, "solver: expected one of highs, scip, got 'gurobi'"),
        ({"bounds": "data"}, "bounds: expected one of lp, interval, got 'data'"),
        ({"time_limit": 0.0}, "time_limit: .* got 0"),
        ({"time_limit": np.inf}, "time_limit: .* got inf"),
        ({"gap": -1.0}, "gap: .* got -1"),
    ],
)
def test_the_controller_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        MixedIntegerController(problem(), **options)


def test_highs_refuses_squares():
    with pytest.raises(ValueError, match=r"expected 'scip' for a quadratic cost"):
        MixedIntegerController(problem(cost=KeypointCost(norm=2)))


@pytest.mark.parametrize(
    ("state", "goal", "message"),
    [
        (STATE[:2], GOAL, r"state: expected finite \[3, 2\], got \[2, 2\]"),
        (STATE, GOAL[:1], r"goal: expected finite \[2, 2\], got \[1, 2\]"),
        (np.where(STATE == 0, np.nan, STATE), GOAL, r"state: .* with NaN"),
        (STATE, GOAL + np.inf, r"goal: .* infinity"),
    ],
)
@pytest.mark.parametrize("planner", [MixedIntegerController, MPPI, CEM, GradientShooting])
def test_planners_refuse(planner, state, goal, message):
    with pytest.raises(ValueError, match=message):
        planner(problem()).plan(state, goal)


@pytest.mark.parametrize(
    ("network", "horizon", "bounds", "error", "message"),
    [
        (nn.Linear(4, 2), 0, (-1, 1), ValueError, "horizon: expected at least 1, got 0"),
        (nn.Linear(4, 2), 1, (-np.inf, 1), ValueError, "action_bounds: expected finite"),
        (nn.Linear(4, 2), 1, (1, 1), ValueError, "finite low < high"),
        (nn.Linear(4, 3), 1, (-1, 1), ValueError, "2 k outputs for k keypoints, got 4 and 3"),
        (nn.Sequential(nn.Linear(4, 2), nn.GELU()), 1, (-1, 1), TypeError, "got GELU"),
    ],
)
def test_problems_are_checked(network, horizon, bounds, error, message):
    with pytest.raises(error, match=message):
        ControlProblem(KeypointDynamics(network), horizon, bounds)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (MPPI, {"samples": 0}, "samples and iterations"),
        (MPPI, {"sigma": 0.0}, "sigma"),
        (CEM, {"elites": 3000}, "elites <= samples"),
        (CEM, {"time_limit": 0.0}, "time_limit"),
        (GradientShooting, {"restarts": 0}, "restarts and iterations"),
        (GradientShooting, {"lr": -1.0}, "lr"),
        (KeypointCost, {"norm": 3}, "norm: expected 1 or 2, got 3"),
        (KeypointCost, {"steps": "first"}, "steps: .* got 'first'"),
    ],
)
def test_samplers_and_costs_refuse(sampler, options, message):
    first = () if sampler is KeypointCost else (problem(),)
    with pytest.raises(ValueError, match=message):
        sampler(*first, **options)


def test_a_plan_is_a_frozen_record():
    plan = MPPI(problem(), samples=5, iterations=1).plan(STATE, GOAL)
    assert isinstance(plan, Plan)
    with pytest.raises(AttributeError):
        plan.status = "optimal"  # pyright: ignore
