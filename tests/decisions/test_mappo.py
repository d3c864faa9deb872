"""The trainer: ratios of 1 at first, advantages by definition, penalties obeyed, and learning."""

from functools import partial

import pytest
import torch

from gossamer.decisions import (
    AgentDag,
    Aloha,
    BayesianMAPPO,
    DagPolicy,
    DensityPenalty,
    FixedDag,
    GameBatch,
    Outcome,
    ParentActor,
    TabularCoordinationGame,
    empty_dag,
    evaluate,
    full_dag,
)
from gossamer.decisions.rollouts import gae
from gossamer.schedules import Constant


class Match:
    """Two agents see nothing and earn 1 for different actions: sure only if one sees the other."""

    n_agents, obs_dim, obs_high, n_actions, horizon = 2, 1, 1.0, 2, 5

    def initial(self, batch, generator):
        return torch.zeros(batch, 1)

    def observe(self, state):
        return state[:, None].expand(-1, 2, -1)

    def advance(self, state, actions, generator):
        return Outcome((actions[:, 0] != actions[:, 1]).float(), state)


def make_trainer(make_dag, game=None, *, batch=8, seed=0, **options):
    torch.manual_seed(seed)
    game = game or TabularCoordinationGame(3)
    actor = ParentActor(game.n_agents, game.obs_dim, game.n_actions, hidden=16)
    policy = DagPolicy(make_dag(), actor)
    options.setdefault("hidden", 16)
    return BayesianMAPPO(policy, GameBatch(game, batch), horizon=game.horizon, seed=seed, **options)


@pytest.mark.parametrize("dag", [lambda: AgentDag(3, 9), lambda: FixedDag(full_dag(3))])
def test_every_ratio_is_one_in_the_first_epoch(dag):
    trainer = make_trainer(dag, epochs=3, lr=1e-2)
    before = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    for _ in range(3):
        assert trainer.iterate().first_ratio_error < 1e-5
    after = trainer.policy.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_its_noise_the_ratio_would_not_be_one():
    trainer = make_trainer(lambda: AgentDag(3, 9))
    with torch.no_grad():
        trainer.policy.actor.heads.normal_()
        rollout = trainer._player.play(25)
        now = trainer.policy.evaluate(
            rollout.obs.flatten(0, 1),
            rollout.actions.flatten(0, 1),
            noise=trainer.policy.dag.draw_noise(25 * 8),
        )
    ratio = (now.log_prob - rollout.log_prob.flatten(0, 1)).exp()
    assert float((ratio - 1).abs().max()) > 0.1


def test_the_generator_learns_through_the_ratio():
    trainer = make_trainer(lambda: AgentDag(3, 9), epochs=1)
    before = [weight.detach().clone() for weight in trainer.policy.dag.parameters()]
    trainer.iterate()
    after = trainer.policy.dag.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_advantages_are_discounted_sums_of_surprises():
    draw = torch.Generator().manual_seed(0)
    reward, values = torch.randn(6, 2, generator=draw), torch.randn(7, 2, generator=draw)
    ended = torch.zeros(6, 2, dtype=torch.bool)
    ended[2, 0] = ended[5, 1] = True
    found = gae(reward, values, ended, 0.9, 0.8)
    for game in range(2):
        for start in range(6):
            total, weight = 0.0, 1.0
            for step in range(start, 6):
                over = bool(ended[step, game])
                later = 0.0 if over else 0.9 * values[step + 1, game].item()
                total += weight * (reward[step, game].item() + later - values[step, game].item())
                weight *= 0.9 * 0.8
                if over:
                    break
            assert found[start, game].item() == pytest.approx(total, abs=1e-5)


def test_returns_count_whole_episodes():
    class Pays(Match):
        def advance(self, state, actions, generator):
            return Outcome(torch.full((len(state),), 2.0), state)

    trainer = make_trainer(lambda: FixedDag(empty_dag(2)), Pays(), epochs=1)
    trainer.horizon = 7  # an episode of 5 and a part of the next
    assert [trainer.iterate().episode_return for _ in range(3)] == [10.0] * 3
    assert trainer.iterate().steps == 4 * 7 * 8


def test_agents_that_see_each_other_learn_what_others_cannot():
    # the entropy wanted keeps both agents at the dice, whose sums only an edge can coordinate
    returns = {}
    for make in (empty_dag, full_dag):
        dag = partial(FixedDag, make(2))
        trainer = make_trainer(dag, Match(), batch=32, epochs=5, lr=2e-2, entropy=1.0)
        returns[make] = trainer.train(15)[-1].episode_return
    assert returns[full_dag] > returns[empty_dag] + 0.3


def test_it_learns_the_coordination_game():
    trainer = make_trainer(lambda: AgentDag(3, 9), batch=16, lr=5e-3, epochs=5)
    returns = [progress.episode_return for progress in trainer.train(20)]
    assert sum(returns[-3:]) / 3 > returns[0] + 6


def test_the_penalty_thins_the_graphs_out():
    penalty = DensityPenalty(target=Constant(0.0), weight=Constant(1.0))
    trainer = make_trainer(lambda: AgentDag(3, 9), lr=1e-2, epochs=5, penalty=penalty)
    progress = trainer.train(12)
    assert progress[0].edge_density > 0.3 and progress[0].penalty > 0
    assert progress[-1].edge_density < 0.05


def test_training_repeats_by_seed():
    runs = [make_trainer(lambda: AgentDag(10, 10), Aloha(), epochs=2).train(2) for _ in range(2)]
    assert runs[0] == runs[1]


def test_evaluation_plays_the_given_graph():
    policy = make_trainer(lambda: FixedDag(full_dag(3))).policy
    games = GameBatch(TabularCoordinationGame(3), 4)
    assert evaluate(policy, games, episodes=6).edge_density == 1
    alone = evaluate(policy, games, episodes=6, adjacency=empty_dag(3))
    assert alone.edge_density == 0
    assert evaluate(policy, games, episodes=6, adjacency=empty_dag(3)) == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: .* got 0"),
        ({"hidden": 0}, "hidden: .* got 0"),
        ({"lr": 0.0}, "lr: .* got 0.0"),
        ({"clip": -0.2}, "clip: .* got -0.2"),
        ({"discount": 1.1}, "discount: .* got 1.1"),
        ({"gae_lambda": -1.0}, "gae_lambda: .* got -1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(lambda: FixedDag(full_dag(3)), **options)


def test_refuses_a_policy_for_another_game():
    policy = DagPolicy(FixedDag(full_dag(3)), ParentActor(3, 2, 2))
    with pytest.raises(ValueError, match=r"\(10, 1, 2\) like the environment, got \(3, 2, 2\)"):
        BayesianMAPPO(policy, GameBatch(Aloha(), 2), horizon=20)
    with pytest.raises(ValueError, match=r"episodes: .* got 0"):
        evaluate(policy, GameBatch(Aloha(), 2), episodes=0)
