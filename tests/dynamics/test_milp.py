"""Programs: bounds that no input leaves, binaries only where a sign is open, and true outputs."""

import highspy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.dynamics import PiecewiseAffine, ReluProgram, relu_milp, sparse_mlp
from gossamer.dynamics.solvers import quiet_highs, solve
from gossamer.errors import SolverError


def network(seed=0, inputs=3, hidden=(6, 6), outputs=2) -> nn.Sequential:
    torch.manual_seed(seed)
    return sparse_mlp(inputs, hidden, outputs).double().eval()


def extreme(model, output, sense) -> float:
    """Least (1) or greatest (-1) output, by the solver."""
    lp = model.lp
    cost = np.zeros(lp.num_col_)
    cost[model.outputs[output]] = sense
    lp.col_cost_ = cost
    solution = solve(lp, quadratic=np.zeros(lp.num_col_), solver="highs", time_limit=20.0, gap=1e-6)
    assert solution.status == "optimal"
    return sense * solution.objective


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.floats(0.01, 3.0))
def test_bounds_hold_all_that_inputs_reach(seed, radius):
    folded = PiecewiseAffine.from_module(network(seed))
    centre = np.random.default_rng(seed).normal(size=3)
    x = np.random.default_rng(seed).uniform(centre - radius, centre + radius, (2000, 3))
    y = folded.preactivations(x)
    widths = []
    for how in ("interval", "lp"):
        model = relu_milp(folded, centre - radius, centre + radius, bounds=how)
        low, high = model.relus.bounds.T
        assert (y >= low).all() and (y <= high).all()
        open_ = (low < 0) & (high > 0)
        assert ((model.relus.binary >= 0) == open_).all() and model.binaries == open_.sum()
        widths.append(high - low)
    assert (widths[1] <= widths[0] + 1e-5).all()


def test_linear_programs_bound_tighter_than_intervals():
    folded = PiecewiseAffine.from_module(network(0, hidden=(8, 8, 8)))
    box = -np.ones(3), np.ones(3)
    widths = [
        np.ptp(relu_milp(folded, *box, bounds=how).relus.bounds, axis=1).sum()
        for how in ("interval", "lp")
    ]
    assert widths[1] < 0.9 * widths[0]


@pytest.mark.parametrize("bounds", ["lp", "interval"])
def test_the_program_is_the_network(bounds):
    net = network(1)
    model = relu_milp(net, -np.ones(3), np.ones(3), bounds=bounds)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 3), -1).reshape(-1, 3)
    values = net(torch.from_numpy(grid)).detach().numpy()
    for output in range(2):
        least, greatest = (extreme(model, output, sense) for sense in (1, -1))
        assert least <= values[:, output].min() + 1e-7
        assert greatest >= values[:, output].max() - 1e-7
        assert least > values[:, output].min() - 0.1  # nor is it a relaxation's
        assert greatest < values[:, output].max() + 0.1


def test_neurons_without_a_relu_leave_no_binary():
    net = network(2, hidden=(20,))
    assert relu_milp(net, [-9.0] * 3, [9.0] * 3).binaries >= 15
    net[1].types[:] = torch.tensor([1, 2] * 10)
    model = relu_milp(net, [-9.0] * 3, [9.0] * 3)
    assert model.binaries == 0 and len(model.relus.post) == 0
    assert highspy.HighsVarType.kInteger not in list(model.lp.integrality_)


def test_bounds_from_data_are_flagged():
    folded = PiecewiseAffine.from_module(network(3))
    y = folded.preactivations(np.random.default_rng(0).uniform(-0.1, 0.1, (50, 3)))
    seen = np.stack([y.min(0), y.max(0)], 1)
    ours = relu_milp(folded, -np.ones(3), np.ones(3))
    theirs = relu_milp(folded, -np.ones(3), np.ones(3), bounds=seen)
    assert ours.sound and not theirs.sound
    assert theirs.binaries < ours.binaries
    assert np.array_equal(theirs.relus.bounds, seen)


@pytest.mark.parametrize("suffix", [".mps", ".lp"])
def test_a_file_holds_the_program(tmp_path, suffix):
    model = relu_milp(network(4), -np.ones(3), np.ones(3))
    path = tmp_path / f"network{suffix}"
    model.write(path)
    read = quiet_highs()
    read.readModel(str(path))
    lp = read.getLp()
    integers = [kind == highspy.HighsVarType.kInteger for kind in lp.integrality_]
    assert (lp.num_col_, sum(integers)) == (model.lp.num_col_, model.binaries)
    with pytest.raises(ValueError, match=r"\.mps or \.lp"):
        model.write(tmp_path / "network.txt")
    with pytest.raises(FileNotFoundError):
        model.write(tmp_path / "no" / "such" / f"folder{suffix}")


def test_an_infeasible_program_is_said_to_be():
    program = ReluProgram()
    x = program.add_columns(0.0, 1.0)
    program.add_rows([[1.0]], x, [2.0], [3.0])
    with pytest.raises(SolverError, match=r"without a solution: .*[Ii]nfeasible"):
        solve(program.lp(), quadratic=np.zeros(1), solver="highs", time_limit=1.0, gap=0.0)


@pytest.mark.parametrize(
    ("lower", "upper", "bounds", "message"),
    [
        ([0.0] * 2, [1.0] * 2, "lp", r"input box: expected two vectors of 3, got \(2,\)"),
        ([0.0] * 3, [np.inf] * 3, "lp", "input box: expected finite"),
        ([0.0] * 3, [-1.0] * 3, "lp", "lower <= upper"),
        ([0.0] * 3, [1.0] * 3, "tight", r"bounds: expected one of lp, interval, got 'tight'"),
        ([0.0] * 3, [1.0] * 3, np.zeros((2, 2)), "bounds: expected two vectors of 12"),
    ],
)
def test_refuses(lower, upper, bounds, message):
    with pytest.raises(ValueError, match=message):
        relu_milp(network(), lower, upper, bounds=bounds)
