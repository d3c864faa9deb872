"""Policies along learned DAGs: the paper's tabular game, its Aloha, and a task of mpe2.

"Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent Reinforcement
Learning" (arXiv 2306.01920) reports that correlated policies help on all its benchmarks, and that
annealing leaves policies that are weakly or not correlated. Only the abstract's words are compared;
StarCraft is left out, Aloha is trained for fewer steps than the authors' million.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.decisions import (
    AgentDag,
    Aloha,
    BayesianMAPPO,
    DagPolicy,
    DensityPenalty,
    Environment,
    FixedDag,
    GameBatch,
    ParentActor,
    TabularCoordinationGame,
    TabularPolicy,
    ascend,
    empty_dag,
    evaluate,
    full_dag,
    line_dag,
    nash_gap,
    optimal_objective,
    policy_gradient,
)
from gossamer.reproduce import Claim

ABSTRACT = "arXiv 2306.01920, abstract"
DAGS = {"empty": empty_dag, "line": line_dag, "full": full_dag}
RESAMPLES = 10_000
TEST_SEED = 10_000  # apart from the seeds trained on
TEST_EPISODES = 128
GAMES = 32  # side by side
THINNED = 0.05
CRITERION = "every seed of ours above every seed of the baseline, and above itself without edges"


@dataclass(frozen=True)
class Tabular:
    """How long and how often exact policy gradient is run."""

    seeds: dict[int, int]  # agents -> seeds
    steps: int
    lr: float  # in units of 2^n / n


@dataclass(frozen=True)
class Job:
    """One policy to train: "independent", "auto-regressive", "learned" or "annealed"."""

    task: str
    policy: str
    iterations: int
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a job came to; returns are means over test episodes of likeliest actions."""

    final: float
    alone: float  # the same policy under the empty DAG
    density: float
    trained_density: float  # of the last rollout, with noise
    curve: tuple[float, ...]


SIZES = {
    "quick": Tabular({2: 49, 3: 49}, steps=400, lr=0.1),
    "full": Tabular({2: 49, 3: 49, 5: 20}, steps=2000, lr=0.01),
}
ITERATIONS = {"aloha": 156, "speaker-listener": 30}
HORIZONS = {"aloha": 20, "speaker-listener": 25}
SEEDS = 2
NUDGE = 1e-4  # of a logit, for differences of the objective
PLAYED = 500  # steps, after which the discount has left nothing


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims; "quick" is the tabular game and its oracles, and "gpu" has none."""
    if scale == "gpu":
        return
    if scale == "quick":
        yield _gradient(3, seed)
        yield _heard(4, seed)
    for n_agents in SIZES[scale].seeds:
        yield _coordination(n_agents, SIZES[scale], seed)
    if scale == "full":
        jobs = [
            Job(task, policy, ITERATIONS[task], seed + index)
            for task, policies in (
                ("aloha", ("learned", "annealed", "auto-regressive", "independent")),
                ("speaker-listener", ("learned", "auto-regressive", "independent")),
            )
            for policy in policies
            for index in range(SEEDS)
        ]
        found: dict[tuple[str, str], list[Trained]] = {}
        for job, trained in zip(jobs, _train_all(jobs), strict=True):
            found.setdefault((job.task, job.policy), []).append(trained)
        yield from _aloha(found)
        yield _spoken(found)


def learning_curves(n_agents: int, seeds: Sequence[int], steps: int) -> dict[str, NDArray]:
    """Return J over J* [seeds, records] of exact policy gradient, by DAG; a record is 20 steps."""
    game = TabularCoordinationGame(n_agents)
    return {
        name: _relative(game, ascend(game, _start(name, n_agents, seeds), steps=steps).objective)
        for name in DAGS
    }


def _start(name: str, n_agents: int, seeds: Sequence[int]) -> TabularPolicy:
    return TabularPolicy.random(DAGS[name](n_agents), seeds)


def _relative(game: TabularCoordinationGame, objective: Tensor) -> NDArray:
    return (objective.T / optimal_objective(game)).numpy()


def _gradient(n_agents: int, seed: int) -> Claim:
    """Compare the exact policy gradient with differences of what playing the game earns."""
    game, error = TabularCoordinationGame(n_agents), 0.0
    for name in DAGS:
        policy = _start(name, n_agents, [seed])
        for agent, gradient in enumerate(policy_gradient(game, policy)):
            up, down = (_earned(game, policy, agent, nudge) for nudge in (NUDGE, -NUDGE))
            slope = ((up - down) / (2 * NUDGE)).reshape(gradient.shape)
            error = max(error, float((slope - gradient).abs().max() / gradient.abs().max()))
    return Claim(
        claim="the policy gradient is the slope of what the policy earns, along every DAG",
        paper="exact policy gradient",
        source="arXiv 2306.01920, tabular game",
        baseline="central differences of the discounted reward, state distributions played on",
        ours=error,
        criterion="largest difference <= 1e-5 of the largest slope of an agent's table",
        holds=error <= 1e-5,
        setting=f"{n_agents} agents, DAGs {', '.join(DAGS)}, random tables, float64, {PLAYED} "
        f"steps, logits moved by {NUDGE:g}",
    )


def _earned(
    game: TabularCoordinationGame, policy: TabularPolicy, agent: int, nudge: float
) -> Tensor:
    """Return the discounted reward [entries], each with one entry of an agent's table moved."""
    own = policy.logits[agent]
    moved = nudge * torch.eye(own.numel(), dtype=own.dtype).reshape(-1, *own.shape[1:])
    tables = [table.expand(len(moved), -1, -1, -1) for table in policy.logits]
    tables[agent] = own + moved
    moves = TabularPolicy(policy.adjacency, tuple(tables)).joint() @ game.transitions
    state = moves.new_full((len(moves), 1, moves.shape[-1]), 1 / moves.shape[-1])
    total = moves.new_zeros(len(moves))
    for step in range(PLAYED):
        total += game.discount**step * (state @ game.rewards)[:, 0]
        state = state @ moves
    return total


@torch.no_grad()
def _heard(n_agents: int, seed: int) -> Claim:
    """Change one agent's action at a time and see whose distributions move."""
    torch.manual_seed(seed)
    wrong = pairs = 0
    for make in DAGS.values():
        dag = make(n_agents)
        policy = DagPolicy(FixedDag(dag), ParentActor(n_agents, obs_dim=3, n_actions=5))
        obs, actions = torch.randn(1, n_agents, 3), torch.zeros(1, n_agents, dtype=torch.int64)
        before = policy.log_prob(obs, actions, dag)
        for agent in range(n_agents):
            other = actions.clone()
            other[:, agent] = 1
            moves = (policy.log_prob(obs, other, dag) != before)[0]
            differs = moves != dag[agent].bool()
            differs[agent] = False  # its own action is another one now
            wrong, pairs = wrong + int(differs.sum()), pairs + n_agents - 1
    return Claim(
        claim="an agent's distribution depends on its parents' actions, and on no other agent's",
        paper="by construction",
        source="arXiv 2306.01920, Bayesian policies",
        baseline=0,
        ours=wrong,
        criterion="of all pairs of agents, none where a distribution moves without an edge, bit by "
        "bit, or stays with one",
        holds=wrong == 0,
        setting=f"{pairs} pairs, {n_agents} agents, DAGs {', '.join(DAGS)}, random networks",
    )


def _coordination(n_agents: int, size: Tabular, seed: int) -> Claim:
    """Compare the DAGs on the tabular game, seed by seed."""
    game, count = TabularCoordinationGame(n_agents), size.seeds[n_agents]
    lr = size.lr * 2**n_agents / n_agents
    reached, said = {}, []
    for name in DAGS:
        policy = _start(name, n_agents, range(seed, seed + count))
        run = ascend(game, policy, steps=size.steps, lr=lr, record_every=size.steps)
        reached[name] = _relative(game, run.objective)[:, -1]
        gap = nash_gap(game, run.policy)
        said.append(
            f"{name} {reached[name].mean():.3f} ± {reached[name].std(ddof=1):.3f}, Nash gap "
            f"{float(gap.mean()):.2f} of J* {optimal_objective(game):.1f}"
        )
    gain = reached["full"] - reached["empty"]
    low, high = _interval(gain, seed)
    return Claim(
        claim=f"with {n_agents} agents, auto-regressive policies come closer to the optimum than "
        "independent ones",
        paper="correlated policies help",
        source=ABSTRACT,
        baseline=float(reached["empty"].mean()),
        ours=float(reached["full"].mean()),
        criterion="paired bootstrap 95 % interval of ours - baseline (J / J*) above 0",
        holds=low > 0,
        setting=f"gain {gain.mean():.3f}, interval [{low:.3f}, {high:.3f}]; J / J*, mean ± "
        f"deviation of {count} seeds: {'; '.join(said)}; exact policy gradient, {size.steps} "
        f"steps of {lr:.3g}, float64; the true line i -> i + 1, which at n = 2 is the full DAG",
    )


def _interval(gain: NDArray, seed: int) -> tuple[float, float]:
    draw = np.random.default_rng(seed)
    means = gain[draw.integers(len(gain), size=(RESAMPLES, len(gain)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _train_all(jobs: Sequence[Job]) -> list[Trained]:
    """Train on two processes of one thread each: the networks are too small for more threads."""
    with ProcessPoolExecutor(
        2, get_context("spawn"), initializer=partial(torch.set_num_threads, 1)
    ) as pool:
        return list(pool.map(train, jobs))


def train(job: Job) -> Trained:
    """Train one policy as the authors' Aloha runs are, and test it."""
    torch.manual_seed(job.seed)  # of the initial weights
    environment = _environment(job.task)
    n, obs_dim = environment.n_agents, environment.obs_dim
    dag = {
        "independent": lambda: FixedDag(empty_dag(n)),
        "auto-regressive": lambda: FixedDag(full_dag(n)),
    }.get(job.policy, lambda: AgentDag(n, n * obs_dim))()
    policy = DagPolicy(dag, ParentActor(n, obs_dim, environment.n_actions))
    annealed = job.policy == "annealed"
    trainer = BayesianMAPPO(
        policy,
        environment,
        horizon=HORIZONS[job.task],
        epochs=5,
        lr=7e-4,
        penalty=DensityPenalty.annealed(job.iterations) if annealed else None,
        seed=job.seed,
    )
    progress = trainer.train(job.iterations)
    test = partial(evaluate, policy, environment, episodes=TEST_EPISODES, seed=TEST_SEED)
    result = test()
    return Trained(
        final=result.episode_return,
        alone=test(adjacency=empty_dag(n)).episode_return,
        density=result.edge_density,
        trained_density=progress[-1].edge_density,
        curve=tuple(each.episode_return for each in progress),
    )


def _environment(task: str) -> Environment:
    if task == "aloha":
        return GameBatch(Aloha(), GAMES)
    from gossamer.adapters.pettingzoo import VectorEnv

    games = import_module("mpe2.simple_speaker_listener_v4")
    return VectorEnv([games.parallel_env(max_cycles=25) for _ in range(GAMES)])


def _said(runs: Sequence[Trained]) -> str:
    return (
        f"{', '.join(f'{run.final:.2f}' for run in runs)} at density "
        f"{', '.join(f'{run.density:.2f}' for run in runs)} (under the empty DAG "
        f"{', '.join(f'{run.alone:.2f}' for run in runs)})"
    )


def _mean(runs: Sequence[Trained]) -> float:
    return float(np.mean([run.final for run in runs]))


def _gains(ours: Sequence[Trained], baseline: Sequence[Trained]) -> bool:
    """Whether ours earns more, and by its edges."""
    better = min(run.final for run in ours) > max(run.final for run in baseline)
    return better and all(run.final > run.alone for run in ours)


def _aloha(found: dict[tuple[str, str], list[Trained]]) -> Iterator[Claim]:
    """Compare the policies on Aloha, then what annealing leaves."""
    runs = {policy: trained for (task, policy), trained in found.items() if task == "aloha"}
    steps = ITERATIONS["aloha"] * HORIZONS["aloha"] * GAMES
    setting = (
        f"10 stations, {steps} steps (authors: 1,000,000), {GAMES} games, {SEEDS} seeds, "
        f"{TEST_EPISODES} test episodes of likeliest DAGs and actions; return of each seed: "
        + "; ".join(f"{policy} {_said(trained)}" for policy, trained in runs.items())
    )
    for policy in ("auto-regressive", "learned"):
        yield Claim(
            claim=f"{policy} DAGs earn more than independent agents on Aloha",
            paper="correlated policies help",
            source=ABSTRACT,
            baseline=_mean(runs["independent"]),
            ours=_mean(runs[policy]),
            criterion=CRITERION,
            holds=_gains(runs[policy], runs["independent"]),
            setting=setting,
        )
    density = max(run.density for run in runs["annealed"])
    noisy = ", ".join(f"{run.trained_density:.3f}" for run in runs["annealed"])
    yield Claim(
        claim="annealing leaves a policy with hardly an edge",
        paper="weakly or purely independent policies",
        source=ABSTRACT,
        baseline=float(np.mean([run.density for run in runs["learned"]])),
        ours=density,
        criterion=f"edge density of every seed <= {THINNED}",
        holds=density <= THINNED,
        setting=f"density with sampling noise {noisy}; weight 0.1, at the end 1; {setting}",
    )


def _spoken(found: dict[tuple[str, str], list[Trained]]) -> Claim:
    """Compare the policies on the task of mpe2."""
    runs = {p: trained for (task, p), trained in found.items() if task == "speaker-listener"}
    steps = ITERATIONS["speaker-listener"] * HORIZONS["speaker-listener"] * GAMES
    return Claim(
        claim="learned DAGs earn more than independent agents on simple_speaker_listener",
        paper="correlated policies help",
        source=f"{ABSTRACT}; the task is PettingZoo's, not the paper's",
        baseline=_mean(runs["independent"]),
        ours=_mean(runs["learned"]),
        criterion=CRITERION,
        holds=_gains(runs["learned"], runs["independent"]),
        setting=f"mpe2 simple_speaker_listener_v4, {steps} steps, {GAMES} games, {SEEDS} "
        f"seeds, {TEST_EPISODES} test episodes; an edge also tells the child what its parent "
        "observes, here the goal; return of each seed: "
        + "; ".join(f"{policy} {_said(trained)}" for policy, trained in runs.items()),
    )
