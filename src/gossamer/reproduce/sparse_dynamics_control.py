"""Sparse neural dynamics: prediction with few ReLUs, plans proven optimal, and pushes in pymunk.

"Model-Based Control with Sparse Neural Dynamics" (arXiv 2312.12791, NeurIPS 2023) reports that
aggressive sparsification of a dynamics network costs little accuracy, and that mixed-integer
control through it beats sampling through the dense one. No figure of it could be read, so the
criteria are ours. Measured here on one-step predictions of a box that is pushed, and closed loop.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gossamer.budgets import Density
from gossamer.data.planar_pushing import PlanarPushing
from gossamer.dynamics import (
    CEM,
    MPPI,
    ControlProblem,
    GradientShooting,
    KeypointDynamics,
    MixedIntegerController,
    Plan,
    Planner,
    Training,
    relu_milp,
)
from gossamer.reproduce import Claim
from gossamer.reproduce._pushing_networks import (
    Size,
    Trained,
    planted_error,
    train_networks,
    train_pair,
)

ABSTRACT = "abstract; no figure of the paper was at hand"
OURS = "not in the paper"
REACH = 0.3
FEW, MANY = 8, 32  # ReLUs of the models that plan
GAP = 1e-3
NOISE = 0.05  # of the planted function
STARTS = 4  # of its fit: of ten, six found all hinges and four a local minimum
PRUNED = 0.1  # density of the weights of the pruned network

_RECIPE = Training(weight_penalty=0.0)  # an L1 norm of 1e-3 would outweigh the error by far
SIZES = {
    "quick": Size(
        pushes=1000,
        width=32,
        budgets=(32, 16, 8),
        training=replace(_RECIPE, initial_epochs=15, epochs=6, finetune_epochs=8),
        seeds=1,
        horizon=2,
        plans=2,
        time_limit=5.0,
        episodes=0,
        actions=0,
    ),
    "full": Size(
        pushes=5000,
        width=64,
        budgets=(64, 32, 16, 8),
        training=_RECIPE,
        seeds=3,
        horizon=3,
        plans=3,
        time_limit=10.0,
        episodes=5,
        actions=6,
    ),
}


@dataclass(frozen=True, eq=False)
class Episode:
    """What a planner did: states [T + 1, 5, 2], and its plans."""

    states: NDArray[np.float64]
    plans: tuple[Plan, ...]

    def errors(self, goal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean distance [T + 1] of the corners from the goal's, in units of 100 px."""
        return np.linalg.norm(self.states[:, 1:] - goal, axis=-1).mean(1)


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims; "gpu" is not a scale of this paper, whose solver runs on the CPU."""
    if scale == "gpu":
        raise ValueError("scale: expected 'quick' or 'full', got 'gpu': the solvers have no GPU")
    size, threads = SIZES[scale], torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and the solver has one thread too
    try:
        yield _planted(60, seed)
        if scale == "quick":
            pair = train_pair(size, seed)
            yield _pruning(pair, size)
            yield from _plans(pair, _exact_plans(pair, FEW, size, seed), size, seed)
            return
        trained = train_networks(size, range(seed, seed + size.seeds))
        yield from _prediction(trained, size)
        first = trained[0]
        yield _pruning(first, size)
        exact = _exact_plans(first, FEW, size, seed)
        yield from _plans(first, exact, size, seed)
        yield _solve_times(exact, _exact_plans(first, MANY, size, seed), size)
        yield from _closed_loop(first, size, seed)
    finally:
        torch.set_num_threads(threads)


def _planted(epochs: int, seed: int) -> Claim:
    """Recover a function that needs three ReLUs."""
    error, relus = planted_error(epochs, NOISE, range(seed, seed + STARTS))
    return Claim(
        claim="three ReLUs reach the noise floor of a function with three hinges",
        paper=None,
        source=OURS,
        baseline=NOISE,
        ours=error,
        criterion="root mean squared error <= 1.05 x the noise (baseline), 3 ReLUs",
        holds=error <= 1.05 * NOISE and relus == 3,
        setting=f"2 inputs, 4 regions, 4,000 rows, 12 hidden units, budgets 8, 5, 3, {epochs} "
        f"epochs a phase, of {STARTS} starts the one with the least training error",
    )


def _setting(size: Size) -> str:
    training = size.training
    return (
        f"{size.pushes} pushes simulated in pymunk and turned by quarters, networks "
        f"[{size.width}, {size.width}], budgets {', '.join(map(str, size.budgets))}, "
        f"{training.initial_epochs} epochs, then {training.epochs} + {training.finetune_epochs} a "
        f"round, batch {training.batch_size}, lr {training.lr:g} and {training.logit_lr:g} of "
        f"logits, ReLU penalty {training.relu_penalty:g}, no weight penalty, one-step errors "
        "in units of 100 px"
    )


def _prediction(trained: list[Trained], size: Size) -> Iterator[Claim]:
    """Compare with networks that had as few ReLUs from the start, and trained as long."""
    names = trained[0].errors
    mean = {name: fmean(each.errors[name] for each in trained) for name in names}
    listed = "; ".join(f"{name} {error:.4f}" for name, error in mean.items())
    setting = f"{_setting(size)}; means over {len(trained)} seeds: {listed}"
    for budget in [b for b in size.budgets if b < size.budgets[0]]:
        bound = 0.85 if budget == FEW else 1.0
        ours, baseline = mean[f"sparse {budget}"], mean[f"scratch {budget}"]
        yield Claim(
            claim=f"{budget} ReLUs predict better when sparsified than when trained from scratch",
            paper="aggressive sparsification at minimal loss",
            source=ABSTRACT,
            baseline=baseline,
            ours=ours,
            criterion=f"ours <= {bound:g} x baseline, equal epochs",
            holds=ours <= bound * baseline,
            setting=f"{setting}; {ours / mean['dense']:.3f} of the dense network's error",
        )
    layers = [each.bincount(minlength=3).tolist() for each in trained[0].sparse[FEW].types.layers]
    yield Claim(
        claim=f"so they do against {FEW} ReLUs and as many identities trained from scratch",
        paper=None,
        source="not in the paper; identities alone could explain its comparison",
        baseline=mean["alike"],
        ours=mean[f"sparse {FEW}"],
        criterion="ours <= baseline, equal epochs, the same neuron types",
        holds=mean[f"sparse {FEW}"] <= mean["alike"],
        setting=f"{setting}; ReLUs, identities and zeros by layer with the first seed {layers}",
    )


def _pruning(trained: Trained, size: Size) -> Claim:
    """Count the binaries of a network whose weights were pruned instead."""
    pruned = [
        nn.Linear(layer.in_features, layer.out_features)
        if isinstance(layer, nn.Linear)
        else nn.ReLU()
        for layer in trained.dense.children()
    ]
    for layer, dense in zip(pruned, trained.dense.children(), strict=True):
        if isinstance(layer, nn.Linear) and isinstance(dense, nn.Linear):
            weight = dense.weight.detach()
            keep = Density(PRUNED, dim=None).select(weight.abs())
            layer.load_state_dict({"weight": weight * keep, "bias": dense.bias.detach()})
    box = np.array([0.85] * 8 + [REACH] * 2)
    binaries = [
        relu_milp(net, -box, box, bounds="interval").binaries
        for net in (nn.Sequential(*pruned), trained.sparse[FEW].model)
    ]
    return Claim(
        claim="pruning weights instead leaves most binaries",
        paper=None,
        source=OURS,
        baseline=binaries[0],
        ours=binaries[1],
        criterion=f"ours <= {FEW} < baseline (binaries of one step)",
        holds=binaries[1] <= FEW < binaries[0],
        setting=f"dense network pruned by magnitude to density {PRUNED:g} of each weight, interval "
        f"bounds over all corners within 85 px; {_setting(size)}",
    )


def _problem(network: nn.Module, size: Size) -> ControlProblem:
    return ControlProblem(KeypointDynamics(network), size.horizon, (-REACH, REACH))


def _controller(problem: ControlProblem, size: Size, seed: int) -> MixedIntegerController:
    start = MPPI(problem, seed=seed)
    return MixedIntegerController(problem, time_limit=size.time_limit, gap=GAP, warm_start=start)


def _planned(planner: Planner, size: Size, seed: int) -> list[Plan]:
    """Plan from the same few states."""
    env = PlanarPushing()
    states = [env.reset(seed=seed + start)[0] for start in range(size.plans)]
    return [planner.plan(state, env.goal) for state in states]


def _exact_plans(trained: Trained, relus: int, size: Size, seed: int) -> list[Plan]:
    problem = _problem(trained.sparse[relus].model, size)
    return _planned(_controller(problem, size, seed), size, seed)


def _plans(trained: Trained, exact: list[Plan], size: Size, seed: int) -> Iterator[Claim]:
    """Compare plans with those of sampling, and with the solver's on looser bounds."""
    problem = _problem(trained.sparse[FEW].model, size)
    samplers = {
        "MPPI": MPPI(problem, seed=seed),
        "CEM": CEM(problem, seed=seed),
        "gradient": GradientShooting(problem, seed=seed),
    }
    sampled = {name: _planned(sampler, size, seed) for name, sampler in samplers.items()}
    yield _optimality(exact, sampled, size)
    loose = replace(_controller(problem, size, seed), bounds="interval")
    yield _tightening(exact, _planned(loose, size, seed), size)


def _optimality(exact: list[Plan], sampled: dict[str, list[Plan]], size: Size) -> Claim:
    proven = [i for i, plan in enumerate(exact) if plan.status == "optimal"]
    below = all(
        exact[i].objective <= plans[i].objective * (1 + GAP) + 1e-9
        for plans in sampled.values()
        for i in proven
    )
    mismatch = max(plan.mismatch for plan in exact)
    listed = "; ".join(
        f"{name} {_listed(plans)} in {median(plan.seconds for plan in plans):.2f} s"
        for name, plans in {"MIP": exact, **sampled}.items()
    )
    return Claim(
        claim="proven plans cost no more than sampled ones on the same model",
        paper="better than sampling",
        source=ABSTRACT,
        baseline=_listed(sampled["MPPI"]),
        ours=_listed(exact),
        criterion=f"at each plan proven within {GAP:g}, of which there is one; costs simulated "
        "again in torch agree to 1e-5",
        holds=bool(proven) and below and mismatch <= 1e-5,
        setting=f"{FEW} ReLUs, horizon {size.horizon}, {len(proven)} of {len(exact)} proven in "
        f"{size.time_limit:g} s, L1 cost, HiGHS on one thread, greatest mismatch {mismatch:.1e}; "
        f"objectives (not at equal time) {listed}; {_setting(size)}",
    )


def _tightening(tight: list[Plan], loose: list[Plan], size: Size) -> Claim:
    slow, fast = (median(plan.seconds for plan in plans) for plans in (loose, tight))
    return Claim(
        claim="bounds by linear programs spare binaries that interval arithmetic leaves",
        paper=None,
        source=OURS,
        baseline=fmean(plan.binaries for plan in loose),
        ours=fmean(plan.binaries for plan in tight),
        criterion="ours < baseline (mean binaries of a plan)",
        holds=fmean(p.binaries for p in tight) < fmean(p.binaries for p in loose),
        setting=f"{FEW} ReLUs, horizon {size.horizon}; median seconds of a plan {slow:.2f} with "
        f"intervals, {fast:.2f} with linear programs; {_setting(size)}",
    )


def _solve_times(few: list[Plan], many: list[Plan], size: Size) -> Claim:
    ours, baseline = (median(plan.seconds for plan in plans) for plans in (few, many))
    counts = [", ".join(str(plan.binaries) for plan in plans) for plans in (few, many)]
    statuses = ", ".join(plan.status for plan in many)
    return Claim(
        claim=f"a quarter of the ReLUs makes plans at least five times faster ({FEW} of {MANY})",
        paper="few enough for branch and bound",
        source=ABSTRACT,
        baseline=f"{baseline:.2f} s",
        ours=f"{ours:.2f} s",
        criterion="ours <= baseline / 5 (medians; a plan that runs out of time counts its limit)",
        holds=ours <= baseline / 5,
        setting=f"horizon {size.horizon}, limit {size.time_limit:g} s, binaries {counts[0]} "
        f"against {counts[1]}; with {MANY} ReLUs: {statuses}; {_setting(size)}",
    )


def _closed_loop(trained: Trained, size: Size, seed: int) -> Iterator[Claim]:
    """Push the box in pymunk, replanning at every action, with the same seconds for each."""
    sparse, dense = _problem(trained.sparse[FEW].model, size), _problem(trained.dense, size)
    goal = PlanarPushing().goal
    episodes: dict[str, list[Episode]] = {"mip": [], "dense": [], "sparse": []}
    for start in range(seed, seed + size.episodes):
        exact = episode(_controller(sparse, size, seed), start, size.actions)
        episodes["mip"].append(exact)
        for name, problem in (("dense", dense), ("sparse", sparse)):
            mppi = MPPI(problem, iterations=10**6, seed=seed)
            turns = [replace(mppi, time_limit=plan.seconds) for plan in exact.plans]
            episodes[name].append(episode(turns, start, size.actions))
    errors = {name: [each.errors(goal) for each in runs] for name, runs in episodes.items()}
    plans = [plan for each in episodes["mip"] for plan in each.plans]
    proven = sum(plan.status == "optimal" for plan in plans)
    final = {name: fmean(float(run[-1]) for run in runs) for name, runs in errors.items()}
    total = {name: fmean(float(run[1:].sum()) for run in runs) for name, runs in errors.items()}
    setting = (
        f"{size.episodes} starts x {size.actions} actions, horizon {size.horizon}, {proven} of "
        f"{len(plans)} plans proven, median {median(p.seconds for p in plans):.2f} s; mean final "
        f"error {_named(final)} from {fmean(float(run[0]) for run in errors['mip']):.3f}; mean sum "
        f"over the episode {_named(total)}; final errors by start: "
        + ", ".join(
            f"{name} {' '.join(f'{run[-1]:.3f}' for run in runs)}" for name, runs in errors.items()
        )
        + f"; {_setting(size)}"
    )
    yield Claim(
        claim="closed loop, proven plans of the sparse model beat MPPI on the dense one",
        paper="better closed-loop performance",
        source=ABSTRACT,
        baseline=final["dense"],
        ours=final["mip"],
        criterion="ours < baseline: mean final distance of the corners, the same seconds a plan",
        holds=final["mip"] < final["dense"],
        setting=setting,
    )
    yield Claim(
        claim="closed loop, proven plans cost less than MPPI's on the same sparse model",
        paper=None,
        source=OURS,
        baseline=total["sparse"],
        ours=total["mip"],
        criterion="ours < baseline: distance summed over the episode, the same seconds a plan",
        holds=total["mip"] < total["sparse"],
        setting=setting,
    )


def episode(planner: Planner | list[MPPI], start: int, actions: int) -> Episode:
    """Push from the start of a seed: plan, do the first action, look, and plan again.

    Parameters
    ----------
    planner : Planner or list of MPPI
        One for all actions, or one for each.
    start : int
        Seed of the environment.
    actions : int
    """
    env = PlanarPushing()
    state, _ = env.reset(seed=start)
    states, plans = [state], []
    for turn in range(actions):
        current = planner[turn] if isinstance(planner, list) else planner
        plans.append(current.plan(state, env.goal))
        state, *_ = env.step(plans[-1].actions[0])
        states.append(state)
    return Episode(np.array(states), tuple(plans))


def _listed(plans: list[Plan]) -> str:
    return ", ".join(f"{plan.objective:.4f}" for plan in plans)


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
