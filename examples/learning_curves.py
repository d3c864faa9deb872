"""Draw how policies along three DAGs learn a game: python examples/learning_curves.py."""

import argparse
from pathlib import Path

from gossamer.report.curves import plot_curves
from gossamer.reproduce.bayesian_network_ac import learning_curves

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seeds", type=int, default=20)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--out", type=Path, default=Path("learning_curves.png"))
options = parser.parse_args()

panels = {
    f"{n_agents} agents": learning_curves(n_agents, range(options.seeds), options.steps)
    for n_agents in (2, 3, 5)
}
recorded = [*range(0, options.steps, 20), options.steps]
figure = plot_curves(
    panels, dict.fromkeys(panels, recorded), ylabel="J / J*", xlabel="step of policy gradient"
)
figure.savefig(options.out, dpi=100)
