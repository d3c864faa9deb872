"""Train sparse dynamics, push a box with them and draw it: python examples/push_box.py."""

import argparse
from pathlib import Path

import torch

from gossamer.data.planar_pushing import PlanarPushing, quarter_turns, random_pushes
from gossamer.dynamics import (
    MPPI,
    ControlProblem,
    KeypointDynamics,
    MixedIntegerController,
    Training,
    sparse_mlp,
    sparsify_activations,
)
from gossamer.report.pushes import plot_pushes
from gossamer.reproduce._pushing_networks import pushing_data
from gossamer.reproduce.sparse_dynamics_control import episode

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--pushes", type=int, default=3000)
parser.add_argument("--relus", type=int, default=8)
parser.add_argument("--horizon", type=int, default=3)
parser.add_argument("--starts", type=int, default=4)
parser.add_argument("--out", type=Path, default=Path("push_box.png"))
options = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
data = pushing_data(quarter_turns(random_pushes(options.pushes, seed=0)))
training = Training(weight_penalty=0.0)
budgets = [relus for relus in (64, 32, 16) if relus > options.relus] + [options.relus]
*_, found = sparsify_activations(sparse_mlp(10, (64, 64), 8), data, budgets, training=training)
problem = ControlProblem(KeypointDynamics(found.model), options.horizon, (-0.3, 0.3))
mppi = MPPI(problem)
planners = {"MIP": MixedIntegerController(problem, time_limit=5, warm_start=mppi), "MPPI": mppi}
goal = PlanarPushing().goal
pictures = {}
for name, planner in planners.items():
    for start in range(options.starts):
        run = episode(planner, start, actions=6)
        pictures[f"{name}, start {start}: {run.errors(goal)[-1]:.2f}"] = run.states
plot_pushes(pictures, goal, columns=options.starts).savefig(options.out, dpi=100)
