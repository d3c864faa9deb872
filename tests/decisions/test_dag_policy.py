"""A DAG policy is the distribution it says, reads parents only, and chooses in their order."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.decisions import (
    AgentDag,
    DagPolicy,
    FixedDag,
    ParentActor,
    empty_dag,
    full_dag,
    line_dag,
)

N, OBS, ACTIONS = 4, 3, 3


def make_policy(dag=None, seed=0):
    torch.manual_seed(seed)
    actor = ParentActor(N, OBS, ACTIONS, hidden=16)
    with torch.no_grad():
        actor.heads.normal_()  # far from uniform
    return DagPolicy(dag or AgentDag(N, N * OBS), actor)


def random_dags(batch, seed):
    draw = torch.Generator().manual_seed(seed)
    upper = (torch.rand(batch, N, N, generator=draw) < 0.5).float().triu(1)
    order = torch.rand(batch, N, generator=draw).argsort(-1)
    rows = upper.gather(1, order[:, :, None].expand(-1, -1, N))
    return rows.gather(2, order[:, None].expand(-1, N, -1))


def test_probabilities_of_all_joint_actions_sum_to_one():
    policy, obs = make_policy(), torch.randn(1, N, OBS)
    joint = torch.tensor([*product(range(ACTIONS), repeat=N)])
    for adjacency in (empty_dag(N), line_dag(N), full_dag(N), random_dags(1, 5)[0]):
        logs = policy.log_prob(obs.expand(len(joint), -1, -1), joint, adjacency).sum(1)
        assert logs.exp().sum().detach().item() == pytest.approx(1, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), poisoned=st.integers(0, N - 1))
def test_actions_and_observations_of_others_than_parents_change_nothing(seed, poisoned):
    policy, batch = make_policy(), 32
    draw = torch.Generator().manual_seed(seed)
    obs = torch.randn(batch, N, OBS, generator=draw)
    actions = torch.randint(ACTIONS, (batch, N), generator=draw)
    adjacency = random_dags(batch, seed)
    before = policy.log_prob(obs, actions, adjacency)
    other = actions.clone()
    other[:, poisoned] = (other[:, poisoned] + 1) % ACTIONS
    elsewhere = obs.clone()
    elsewhere[:, poisoned] += 7.0
    child = adjacency[:, poisoned].bool()
    stranger = ~child
    stranger[:, poisoned] = False
    for after in (
        policy.log_prob(obs, other, adjacency),
        policy.log_prob(elsewhere, actions, adjacency),
    ):
        assert torch.equal(after[stranger], before[stranger])
        assert not torch.equal(after[child], before[child]) or not bool(child.any())


def test_the_choice_is_drawn_from_the_joint_distribution():
    policy, count = make_policy(FixedDag(line_dag(N))), 60_000
    obs = torch.randn(1, N, OBS, generator=torch.Generator().manual_seed(1))
    decision = policy.act(obs.expand(count, -1, -1), generator=torch.Generator().manual_seed(2))
    joint = torch.tensor([*product(range(ACTIONS), repeat=N)])
    wanted = policy.log_prob(obs.expand(len(joint), -1, -1), joint, line_dag(N)).sum(1).exp()
    place = (decision.actions * ACTIONS ** torch.arange(N - 1, -1, -1)).sum(1)
    drawn = torch.bincount(place, minlength=ACTIONS**N) / count
    assert (drawn - wanted).abs().sum().detach().item() < 0.05  # total variation of noise: 0.02


def test_log_probabilities_of_the_choice_are_those_of_evaluating_it():
    policy, obs = make_policy(), torch.randn(64, N, OBS)
    with torch.no_grad():
        decision = policy.act(obs, generator=torch.Generator().manual_seed(0))
    assert len({graph.sum().item() for graph in decision.adjacency}) > 1  # graphs differ
    again = policy.evaluate(obs, decision.actions, noise=decision.noise)
    assert torch.equal(again.adjacency, decision.adjacency)
    assert torch.allclose(again.log_prob, decision.log_prob, atol=1e-6)
    assert torch.allclose(again.entropy, decision.entropy, atol=1e-6)
    known = policy.log_prob(obs, decision.actions, decision.adjacency)
    assert torch.allclose(known, decision.log_prob, atol=1e-6)


@pytest.mark.parametrize(
    ("adjacency", "levels"), [(empty_dag(N), 1), (line_dag(N), N), (full_dag(N), N)]
)
def test_a_step_takes_one_pass_a_level(adjacency, levels, monkeypatch):
    policy, passes = make_policy(FixedDag(adjacency)), []
    forward = policy.actor.forward
    monkeypatch.setattr(
        policy.actor, "forward", lambda *args: passes.append(None) or forward(*args)
    )
    policy.act(torch.randn(10, N, OBS))
    assert len(passes) == levels


def test_deterministic_takes_the_likeliest_action_after_the_parents():
    policy, obs = make_policy(FixedDag(full_dag(N))), torch.randn(20, N, OBS)
    decision = policy.act(obs, deterministic=True)
    for agent in range(N):
        chosen = []
        for action in range(ACTIONS):
            other = decision.actions.clone()
            other[:, agent] = action
            chosen.append(policy.log_prob(obs, other, full_dag(N))[:, agent])
        assert torch.equal(torch.stack(chosen).argmax(0), decision.actions[:, agent])


def test_the_empty_dag_executes_decentralised():
    policy, obs = make_policy(), torch.randn(8, N, OBS)
    alone = policy.act(obs, adjacency=empty_dag(N), deterministic=True)
    moved = obs.clone()
    moved[:, 1:] += 5.0
    other = policy.act(moved, adjacency=empty_dag(N), deterministic=True)
    assert torch.equal(other.log_prob[:, 0], alone.log_prob[:, 0])


def test_illegal_actions_are_never_taken_and_gradients_stay_finite():
    policy, obs = make_policy(), torch.randn(500, N, OBS)
    legal = torch.rand(500, N, ACTIONS) < 0.5
    legal[..., 1] |= ~legal.any(-1)
    legal[0, 2] = torch.tensor([True, False, False])
    decision = policy.act(obs, legal)
    assert bool(legal.gather(-1, decision.actions[..., None]).all())
    assert decision.log_prob[0, 2].detach() == 0 and decision.entropy[0, 2].detach() == 0
    judged = policy.evaluate(obs, decision.actions, legal, noise=decision.noise)
    (judged.log_prob.sum() + judged.entropy.sum()).backward()
    for parameter in policy.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.act(torch.zeros(2, N, OBS + 1)), r"obs: expected \[batch, 4, 3\]"),
        (lambda p: p.act(torch.zeros(2, N - 1, OBS)), r"obs: expected \[batch, 4, 3\]"),
        (
            lambda p: p.act(torch.zeros(2, N, OBS), torch.zeros(2, N, ACTIONS, dtype=torch.bool)),
            "at least one action for every agent",
        ),
        (lambda p: p.act(torch.zeros(2, N, OBS), torch.ones(2, N, ACTIONS)), "expected bool"),
        (lambda p: p.act(torch.zeros(2, N, OBS), adjacency=torch.eye(N)), "no cycle"),
        (
            lambda p: p.log_prob(
                torch.zeros(2, N, OBS), torch.zeros(2, N, dtype=torch.int64), torch.ones(N, N)
            ),
            "no cycle",
        ),
        (lambda p: DagPolicy(FixedDag(full_dag(3)), p.actor), "got 3 and 4"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_policy())
