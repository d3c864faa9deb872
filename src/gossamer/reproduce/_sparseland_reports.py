"""Networks on digits, pruned and trained sparsely, and the reports that are made of them."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import allocations
from gossamer.bench.counting import MacCounter
from gossamer.bench.diagnosis import diagnose
from gossamer.bench.machine import commit, describe
from gossamer.bench.probes import AllocationProbe, DensityTrace
from gossamer.bench.timing import interleaved
from gossamer.budgets import Density
from gossamer.catalog.lint import LEAST_ROUNDS
from gossamer.catalog.reports import (
    Arm,
    Environment,
    Measured,
    Provenance,
    Quality,
    Report,
    Row,
    Statement,
)
from gossamer.catalog.taxonomy import Taxonomy
from gossamer.data.digits import Digits
from gossamer.layers import SparseLinear
from gossamer.scores import magnitude
from gossamer.training import SET, DenseTraining, RigL, StaticSparse, TrainingMethod, attach

HIDDEN, BATCH, LR = 256, 100, 0.05
DENSITIES = (0.2, 0.1, 0.05)
EVERY = 20  # steps from one exchange of weights to the next
HERE: Provenance = "measured_here"
QUALITY = Quality("test accuracy, digits", True, "nothing")
PRUNED = Taxonomy(
    object=("weights",),
    granularity=("unstructured",),
    density_of="weights of all layers, without biases",
    count="exact",
    allocation="erk",
    decided=("one_shot",),
    mode="static",
    needs=("dense_weights", "labels"),
    exactness="changes_model",
    peak_dense=("weights", "gradients", "optimizer_state"),
    overhead="at_hand",
    hardware=("cpu",),
    basis="reconstructed",
    data="real",
)
MOVING = Taxonomy(
    object=("weights",),
    granularity=("unstructured",),
    density_of="weights of all layers, without biases",
    count="exact",
    allocation="erk",
    decided=("sparse_to_sparse",),
    mode="dynamic_topology",
    needs=("labels",),
    exactness="changes_model",
    peak_dense=("weights", "gradients"),  # for the moment of an exchange
    overhead="at_hand",
    hardware=("cpu",),
    basis="reconstructed",
    data="real",
)


@dataclass(frozen=True, eq=False)
class Run:
    """One training: what came of it, what it cost, and what it held on the way."""

    model: nn.Sequential
    masks: dict[str, Tensor]
    accuracy: float
    training_macs: int
    peak_density: float | None = None
    exploration: float | None = None
    peak_dense: tuple[str, ...] = ()


def network(seed: int, hidden: int = HIDDEN) -> nn.Sequential:
    """Build the MLP of all cases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(64, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def train(
    data: Digits, method: TrainingMethod, seed: int, epochs: int, hidden: int = HIDDEN
) -> Run:
    """Train with weights stored sparsely where there are masks, every step counted and watched."""
    model = network(seed, hidden)
    shapes = [tuple(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    moves = not isinstance(method, DenseTraining)
    counter, probe = MacCounter(), AllocationProbe(shapes)
    with attach(model, optimizer, method, storage="sparse" if moves else "masked") as attachment:
        trace = DensityTrace(attachment)
        if moves:
            trace.record()
        for _ in range(epochs):
            with counter, probe:
                for rows in torch.randperm(len(data.train), generator=generator).split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(model(data.train[rows]), data.train_labels[rows]).backward()
                    optimizer.step()
            if moves:  # an epoch has fewer steps than there are from one exchange to the next
                trace.record()
        found = accuracy(model, data)
        masks = attachment.masks()
    if not moves:
        return Run(model, masks, found, counter.total)
    caught = {one.operator for one in probe.caught}
    held = {"gradients": "aten::mm" in caught, "weights": bool(caught - {"aten::mm"})}
    seen = tuple(term for term, was in held.items() if was) or ("none",)
    return Run(model, masks, found, counter.total, trace.peak_density, trace.exploration, seen)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Return the share of test digits that are told right."""
    return float((model(data.test).argmax(-1) == data.test_labels).double().mean())


def pruned_report(data: Digits, runs: Sequence[Run], seeds: Sequence[int], epochs: int) -> Report:
    """Prune trained networks by magnitude, at once, and run what is left in a CSR kernel."""
    cost = runs[0].training_macs
    dense = _row("dense", "dense", [run.model for run in runs], 1.0, data, cost)
    ours = _pruned_rows(data, runs, "CSR", "ours", _sparse)
    shuffled = _pruned_rows(data, runs, "shuffled", "shuffled", _shuffled)
    return Report(
        title="Magnitude pruning of an MLP, at once, on digits",
        taxonomy=PRUNED,
        quality=QUALITY,
        environment=environment(data, epochs),
        seeds=tuple(seeds),
        rows=(dense, *ours, *shuffled, _small(data, seeds, epochs, ours[0].parameters)),
        statements=(Statement("right_weights", ours[0].name, shuffled[0].name),),
    )


def timed_report(pruned: Report, data: Digits, runs: Sequence[Run]) -> Report:
    """Time the sparsest network against the dense one, and say that it is faster."""
    sparsest = _sparse(runs[0].model, _largest(runs[0].model, DENSITIES[-1]))
    with torch.no_grad():
        times = interleaved(
            {"dense": partial(runs[0].model, data.test), "ours": partial(sparsest, data.test)},
            repeats=LEAST_ROUNDS,
            warmup=3,
        )
    ours = pruned.arms("ours")[-1].name
    found = {
        name: Measured(tuple(1e3 * s for s in times[arm].values), HERE)
        for name, arm in (("dense", "dense"), (ours, "ours"))
    }
    gain = times["dense"].median / times["ours"].median
    return replace(
        pruned,
        rows=tuple(replace(row, milliseconds=found.get(row.name)) for row in pruned.rows),
        statements=(Statement("faster", ours, "dense", gain), *pruned.statements),
    )


def simulated_report(pruned: Report, data: Digits, runs: Sequence[Run]) -> Report:
    """Multiply the same masks into dense weights, and call the zeros a speed-up."""
    masked = _pruned_rows(data, runs, "masked", "ours", _masked)
    rest = (replace(row, milliseconds=None) for row in pruned.rows if row.arm != "ours")
    return replace(
        pruned,
        title="Magnitude pruning of an MLP, simulated by masks, on digits",
        taxonomy=replace(PRUNED, hardware=("none",)),
        rows=(*masked, *rest),
        statements=(Statement("faster", masked[-1].name, "dense", 1 / DENSITIES[-1]),),
    )


def moving_report(data: Digits, seeds: Sequence[int], epochs: int) -> Report:
    """Train with RigL, and beside it everything that it has to be compared with."""
    until = epochs * 12 * 3 // 4
    least = DENSITIES[-1]
    methods: dict[tuple[str, Arm, float], TrainingMethod] = {
        (f"RigL, density {d:g}", "ours", d): RigL(d, every=EVERY, until=until) for d in DENSITIES
    }
    methods |= {
        ("static, ERK", "static", least): StaticSparse(least),
        ("static, uniform", "static", least): StaticSparse(least, "uniform"),
        ("SET", "random_growth", least): SET(least, "erk", every=EVERY, until=until),
    }
    rows = []
    for (name, arm, density), method in methods.items():
        runs = [train(data, method, seed, epochs) for seed in seeds]
        decided = "before_training" if arm == "static" else "sparse_to_sparse"
        models = [_sparse(run.model, run.masks) for run in runs]
        cost = runs[0].training_macs
        row = _row(name, arm, models, density, data, cost, decided)
        peak = max(run.peak_density or 0 for run in runs)
        seen = tuple(sorted({term for run in runs for term in run.peak_dense}))
        rows.append(
            replace(row, peak_density=peak, exploration=runs[0].exploration, peak_dense=seen)
        )
    dense = [train(data, DenseTraining(), seed, epochs) for seed in seeds]
    models = [run.model for run in dense]
    rows.append(_row("dense", "dense", models, 1.0, data, dense[0].training_macs))
    rows.append(_small(data, seeds, epochs, rows[0].parameters))
    return Report(
        title="RigL, truly sparse, an MLP on digits",
        taxonomy=MOVING,
        quality=QUALITY,
        environment=environment(data, epochs),
        seeds=tuple(seeds),
        rows=tuple(rows),
    )


def cheating_report(moving: Report) -> Report:
    """Leave out of a good report what does not please, and claim more than was measured."""
    best = moving.arms("ours")[-1]
    best = replace(best, quality=best.quality[:1], training_macs=None, milliseconds=None)
    other = replace(moving.row("static, ERK"), arm="other", decided="one_shot", training_macs=None)
    dense = moving.row("dense")
    rows = (
        best,
        replace(other, quality=other.quality[:1]),
        replace(dense, quality=dense.quality[:1]),
    )
    return replace(
        moving,
        title="RigL, twenty times faster at no loss",
        taxonomy=replace(MOVING, peak_dense=("none",)),
        quality=replace(moving.quality, selected_on="test"),
        seeds=moving.seeds[:1],
        rows=rows,
        statements=(
            Statement("faster", best.name, "dense", 1 / best.density),
            Statement("right_weights", best.name, "dense"),
            Statement("less_energy", best.name, "dense", 1 / best.density),
        ),
    )


def environment(data: Digits, epochs: int) -> Environment:
    """Describe what all runs share."""
    machine = describe()
    pixels = data.train.numpy().tobytes() + data.test.numpy().tobytes()
    return Environment(
        device=machine.device,
        machine=machine.summary(),
        dtype="float32",
        threads=machine.threads,
        batch=len(data.test),
        commit=commit() or hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        data_hash=hashlib.sha256(pixels).hexdigest(),
        baseline_kernel="torch.nn.Linear",
        settings={"epochs": epochs, "lr": LR, "momentum": 0.9, "batch": BATCH, "every": EVERY},
        equal_budget=True,
    )


def _pruned_rows(
    data: Digits, runs: Sequence[Run], word: str, arm: Arm, build: Callable[..., nn.Module]
) -> list[Row]:
    """Build every network at every density from its largest weights, or from as many others."""
    rows = []
    for density in DENSITIES:
        models = [build(run.model, _largest(run.model, density)) for run in runs]
        name, cost = f"{word}, density {density:g}", runs[0].training_macs
        rows.append(_row(name, arm, models, density, data, cost, "one_shot"))
    return rows


def _row(
    name: str,
    arm: Arm,
    models: Sequence[nn.Module],
    density: float,
    data: Digits,
    training_macs: int,
    decided: str | None = None,
) -> Row:
    found = diagnose(models[0])
    stored = models[0].state_dict().values()
    # A weight that a mask drops is still there, as a zero; biases and stored values all count.
    kept = (int(p.count_nonzero()) if p.ndim > 1 else p.numel() for p in models[0].parameters())
    return Row(
        name=name,
        arm=arm,
        density=density,
        parameters=sum(kept),
        kernel="sparse" if all(layer.kernel == "sparse" for layer in found.layers) else "dense",
        quality=tuple(accuracy(model, data) for model in models),
        decided=decided,
        macs=_macs(models[0], data),
        training_macs=Measured((training_macs,), HERE),
        nbytes=Measured((sum(tensor.nbytes for tensor in stored),), HERE),
        collapsed=found.collapsed,
    )


@torch.no_grad()
def _macs(model: nn.Module, data: Digits) -> Measured:
    """Count the forward pass of one image."""
    with MacCounter() as counter:
        model(data.test[:1])
    return Measured((counter.total,), HERE)


def _small(data: Digits, seeds: Sequence[int], epochs: int, parameters: int) -> Row:
    """Train the dense network whose width gives it about as many parameters."""
    hidden = min(range(1, HIDDEN), key=lambda h: abs(h * h + 76 * h + 10 - parameters))
    runs = [train(data, DenseTraining(), seed, epochs, hidden) for seed in seeds]
    models, cost = [run.model for run in runs], runs[0].training_macs
    return _row(f"dense, width {hidden}", "small_dense", models, 1.0, data, cost)


def _largest(model: nn.Module, density: float) -> dict[str, Tensor]:
    """Keep the largest weights of each layer, spread by ERK."""
    weights = {
        name: layer.weight.detach()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    densities = allocations.erk(shapes, density)
    return {
        name: Density(densities[name], dim=None).select(magnitude(weight))
        for name, weight in weights.items()
    }


def _sparse(model: nn.Module, masks: dict[str, Tensor]) -> nn.Sequential:
    """Copy a network, storing only what the masks keep."""
    layers = (
        SparseLinear.from_dense(layer, masks[name]) if isinstance(layer, nn.Linear) else nn.ReLU()
        for name, layer in model.named_children()
    )
    return nn.Sequential(*layers)


def _shuffled(model: nn.Module, masks: dict[str, Tensor]) -> nn.Sequential:
    """Copy a network, storing as many weights a layer, at random places."""
    generator = torch.Generator().manual_seed(0)
    moved = {name: allocations.shuffled(m, generator=generator) for name, m in masks.items()}
    return _sparse(model, moved)


@torch.no_grad()
def _masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Copy a network with zeros where nothing is kept."""
    copied = copy.deepcopy(model)
    for name, mask in masks.items():
        copied.get_submodule(name).get_parameter("weight").mul_(mask)
    return copied
