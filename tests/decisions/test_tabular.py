"""The exact solutions agree with brute force: gradients, values, occupancy, J* and Nash gaps."""

from itertools import product

import pytest
import torch

from gossamer.decisions import (
    TabularCoordinationGame,
    TabularPolicy,
    ascend,
    empty_dag,
    full_dag,
    line_dag,
    nash_gap,
    optimal_objective,
    policy_gradient,
    solve,
)

FORK = torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 1, 0]])  # 0 -> 1 <- 2
DAGS = {"empty": empty_dag(3), "line": line_dag(3), "full": full_dag(3), "fork": FORK}


def slow_joint(policy, seed):
    """The product over agents, one joint action at a time."""
    n = len(policy.adjacency)
    found = torch.zeros(2**n, 2**n, dtype=torch.float64)
    for state, (index, action) in product(range(2**n), enumerate(product(range(2), repeat=n))):
        chance = 1.0
        for agent in range(n):
            column = 0
            for parent in range(n):
                if policy.adjacency[parent, agent]:
                    column = 2 * column + action[parent]
            row = policy.logits[agent][seed, state, column]
            chance *= row.softmax(0)[action[agent]].item()
        found[state, index] = chance
    return found


def deterministic_objectives(game):
    """The objectives of all 4 ** 4 deterministic joint policies of two agents."""
    for choice in product(range(4), repeat=4):
        joint = torch.zeros(1, 4, 4, dtype=torch.float64)
        joint[0, torch.arange(4), torch.tensor(choice)] = 1
        yield solve(game, joint).objective.item()


@pytest.mark.parametrize("name", DAGS)
def test_the_joint_policy_is_the_product_along_the_dag(name):
    policy = TabularPolicy.random(DAGS[name], [0, 1])
    assert torch.allclose(policy.joint()[1], slow_joint(policy, 1), atol=1e-12)


@pytest.mark.parametrize("name", DAGS)
def test_the_gradient_is_that_of_finite_differences(name):
    game, policy = TabularCoordinationGame(3), TabularPolicy.random(DAGS[name], [0, 7])
    gradient = policy_gradient(game, policy)
    draw = torch.Generator().manual_seed(0)
    for agent, table in enumerate(policy.logits):
        for _ in range(6):
            seed, s, c, a = (int(torch.randint(size, (), generator=draw)) for size in table.shape)
            found = []
            for change in (1e-5, -1e-5):
                moved = [each.clone() for each in policy.logits]
                moved[agent][seed, s, c, a] += change
                other = TabularPolicy(policy.adjacency, tuple(moved))
                found.append(solve(game, other.joint()).objective[seed].item())
            difference = (found[0] - found[1]) / 2e-5
            assert gradient[agent][seed, s, c, a].item() == pytest.approx(difference, abs=1e-6)


def test_values_and_occupancy_are_those_of_playing_on():
    game, policy = TabularCoordinationGame(2, discount=0.8), TabularPolicy.random(full_dag(2), [3])
    found = solve(game, policy.joint())
    moves = policy.joint()[0] @ game.transitions
    state, value = torch.full((4,), 0.25).double(), torch.zeros(4).double()
    occupancy = torch.zeros(4).double()
    for step in range(200):
        occupancy += 0.2 * 0.8**step * state
        state = state @ moves
        value = game.rewards + 0.8 * moves @ value
    assert torch.allclose(found.value[0], value)
    assert torch.allclose(found.occupancy[0], occupancy)
    assert found.objective.item() == pytest.approx(value.mean().item())
    action_value = game.rewards[:, None] + 0.8 * (game.transitions @ value)
    assert torch.allclose(found.action_value[0], action_value)


def test_value_iteration_finds_the_best_of_all_policies():
    game = TabularCoordinationGame(2)
    assert optimal_objective(game) == pytest.approx(max(deterministic_objectives(game)), abs=1e-9)


@pytest.mark.parametrize("n_agents", [2, 3])
def test_the_nash_gap_is_the_best_single_deviation(n_agents):
    game = TabularCoordinationGame(n_agents)
    policy = TabularPolicy.random(line_dag(n_agents), [0, 1])
    gap = nash_gap(game, policy)
    before = solve(game, policy.joint()).objective
    agent, best = 0, torch.full((2,), -torch.inf).double()
    table = policy.logits[agent]
    for choice in product(range(2), repeat=2**n_agents):  # agent 0 has no parents
        fixed = torch.zeros_like(table) - 1e3
        fixed[:, torch.arange(2**n_agents), 0, torch.tensor(choice)] = 1e3
        other = TabularPolicy(policy.adjacency, (fixed, *policy.logits[1:]))
        best = torch.maximum(best, solve(game, other.joint()).objective)
    assert bool((gap >= best - before - 1e-9).all())
    if n_agents == 2:  # the other agent's deviations: what to answer to each (state, action)
        for choice in product(range(2), repeat=8):
            fixed = torch.full((2, 4, 2, 2), -1e3, dtype=torch.float64)
            fixed[
                :, torch.arange(4).repeat(2), torch.arange(2).repeat_interleave(4), list(choice)
            ] = 1e3
            other = TabularPolicy(policy.adjacency, (policy.logits[0], fixed))
            best = torch.maximum(best, solve(game, other.joint()).objective)
        assert torch.allclose(gap, best - before, atol=1e-9)


def test_the_second_best_corner_is_a_nash_equilibrium():
    game = TabularCoordinationGame(3)
    ones = torch.tensor([-1e3, 1e3]).double().expand(1, 8, 1, 2)
    policy = TabularPolicy(empty_dag(3), (ones,) * 3)
    assert nash_gap(game, policy).item() == pytest.approx(0, abs=1e-9)
    assert solve(game, policy.joint()).objective.item() < optimal_objective(game) - 5


@pytest.mark.parametrize("name", ["empty", "full"])
def test_a_seed_goes_its_way_whatever_runs_beside_it(name):
    game = TabularCoordinationGame(3)
    together = ascend(game, TabularPolicy.random(DAGS[name], [0, 1, 2]), steps=30)
    alone = ascend(game, TabularPolicy.random(DAGS[name], [1]), steps=30)
    assert torch.allclose(together.objective[:, 1:2], alone.objective, atol=1e-10)
    assert together.steps == (0, 20, 30)


def test_a_step_is_the_clipped_gradient():
    game, policy = TabularCoordinationGame(2), TabularPolicy.random(full_dag(2), [0])
    moved = ascend(game, policy, steps=1, lr=0.5).policy
    for before, after, slope in zip(
        policy.logits, moved.logits, policy_gradient(game, policy), strict=True
    ):
        assert torch.allclose(after, before + 0.5 * slope)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TabularPolicy.random(torch.ones(2, 2), [0]), "no cycle"),
        (lambda: TabularPolicy(empty_dag(2), (torch.zeros(1, 4, 2, 2),) * 2), "logits: expected"),
        (
            lambda: ascend(TabularCoordinationGame(2), TabularPolicy.random(empty_dag(3), [0])),
            "policy: expected 2 agents like the game, got 3",
        ),
        (
            lambda: ascend(
                TabularCoordinationGame(2), TabularPolicy.random(empty_dag(2), [0]), steps=0
            ),
            "got 0 and 20",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
