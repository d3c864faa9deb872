"""Truly sparse training against dense training, end to end, as ratios within one run.

    python benchmarks/training.py [--out FILE] [--rounds N] [--steps N] [--width N]

An MLP of three hidden layers of one width, trained with SGD and momentum on clusters with noise;
all layers but the last hold a tenth of their weights, stored sparsely. A round is the same number
of whole training steps for each method (data, forward, backward, optimizer, and one update of the
masks), so that what RigL's dense gradients and mask updates cost is in the ratio. Before it is
timed, a sparse step is compared with a masked one. Test accuracy is that after all rounds.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.bench import Samples, describe, interleaved, ratio, save_json
from gossamer.training import SET, DenseTraining, RigL, StaticSparse, TrainingMethod, attach

FEATURES, CLASSES, BATCH, DENSITY, BAR = 512, 100, 128, 0.1, 1.3


@dataclass(frozen=True)
class Figure:
    """How fast a method trains, and how well."""

    name: str
    milliseconds: float
    ratio: float
    spread: float
    bar: float
    holds: bool
    accuracy: float
    parameters: int


class Run:
    """One network on its way: calling it trains some steps more."""

    def __init__(self, method: TrainingMethod, storage: str, width: int, steps: int) -> None:
        torch.manual_seed(0)
        sizes = [FEATURES, width, width, width]
        pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        hidden = [part for pair in pairs for part in pair]
        self.model = nn.Sequential(*hidden, nn.Linear(width, CLASSES))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4
        )
        attach(self.model, self.optimizer, method, storage=storage, skip=[str(len(hidden))])
        self.steps, self.seed = steps, 0

    def __call__(self) -> None:
        for x, y in batches(self.steps, self.seed):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        self.seed += 1

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of 4,096 fresh points told right."""
        right = [self.model(x).argmax(-1) == y for x, y in batches(32, seed=10**6)]
        return float(torch.cat(right).double().mean())

    def parameters(self) -> int:
        """Count what the optimizer holds."""
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])


def batches(steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw noisy points around fixed centres."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        yield centres[y] + 4.0 * torch.randn(BATCH, FEATURES, generator=generator), y


def check(width: int) -> None:
    """Refuse to time sparse layers that train another network than masks do."""
    outputs = []
    for storage in ("masked", "sparse"):
        run = Run(StaticSparse(DENSITY), storage, width, steps=2)
        run()
        outputs.append(run.model(next(batches(1, seed=5))[0]).detach())
    error = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    if not error <= 1e-4:
        raise SystemExit(f"sparse training is off by {error:.1e} after two steps: not timed")


def measure(rounds: int, steps: int, width: int) -> list[Figure]:
    """Train all methods in turn, round by round."""
    check(width)
    until = (rounds + 2) * steps
    methods: dict[str, tuple[TrainingMethod, str]] = {
        "dense": (DenseTraining(), "masked"),
        "static": (StaticSparse(DENSITY), "sparse"),
        "SET": (SET(DENSITY, every=steps), "sparse"),
        "RigL": (RigL(DENSITY, every=steps, until=until), "sparse"),
        "RigL, masks over dense weights": (RigL(DENSITY, every=steps, until=until), "masked"),
    }
    runs = {name: Run(*method, width, steps) for name, method in methods.items()}
    times = interleaved(runs, repeats=rounds, warmup=1)
    return [_figure(name, runs[name], times["dense"], seconds) for name, seconds in times.items()]


def _figure(name: str, run: Run, dense: Samples, ours: Samples) -> Figure:
    gain = ratio(dense, ours)
    bar = BAR if name in ("static", "SET", "RigL") else 0.0
    return Figure(
        name,
        1e3 * ours.median / run.steps,
        gain.median,
        gain.spread,
        bar,
        gain.median >= bar,
        run.accuracy(),
        run.parameters(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="in a round")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--json", action="store_true", help="print the JSON document instead")
    options = parser.parse_args()
    figures = measure(options.rounds, options.steps, options.width)
    machine = describe("cpu")
    document = {
        "schema": 1,
        "machine": machine.summary(),
        "versions": dict(machine.versions),
        "threads": torch.get_num_threads(),
        "network": [FEATURES, *[options.width] * 3, CLASSES],
        "batch": BATCH,
        "density": DENSITY,
        "rounds": options.rounds,
        "steps": options.steps,
        "figures": [asdict(figure) for figure in figures],
    }
    if options.out is not None:
        save_json(options.out, document)
    if options.json:
        Console().print_json(json.dumps(document))
        return
    columns = "method", "ms a step", "speed-up", "spread", "bar", "holds", "accuracy", "parameters"
    table = Table(*columns, title=f"Training, {machine.summary()}")
    for row in figures:
        table.add_row(
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.ratio:.2f}",
            f"{row.spread:.2f}",
            f"{row.bar:.2f}",
            "yes" if row.holds else "NO",
            f"{row.accuracy:.3f}",
            f"{row.parameters:,}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
