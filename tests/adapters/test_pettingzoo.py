"""Our games pass PettingZoo's own tests, and batches of environments play what each would play."""

import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("pettingzoo")
from gymnasium.spaces import Box, Dict, Discrete
from pettingzoo import ParallelEnv

with warnings.catch_warnings():  # its tests import a game by a name that it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import parallel_api_test, parallel_seed_test

from gossamer.adapters.pettingzoo import GameEnv, VectorEnv
from gossamer.decisions import Aloha, GameBatch, TabularCoordinationGame

GAMES = [Aloha(), TabularCoordinationGame(3)]


class Leaving(ParallelEnv):
    """Agent "a" leaves after one step, "b" after two; "a" sees two numbers and has a mask."""

    metadata = {"name": "leaving"}  # noqa: RUF012

    def __init__(self):
        self.possible_agents, self.agents, self.played = ["a", "b"], [], []

    def observation_space(self, agent):
        inner = Box(0, 1, (2,), np.float32)
        mask = Box(0, 1, (2,), np.int8)
        return Dict({"observation": inner, "action_mask": mask}) if agent == "a" else Discrete(5)

    def action_space(self, agent):
        return Discrete({"a": 2, "b": 3}[agent])

    def reset(self, seed=None, options=None):
        self.agents, self.steps = ["a", "b"], 0
        return self.seen(), {"a": {}, "b": {}}

    def seen(self):
        masked = {"observation": np.ones(2, np.float32), "action_mask": np.array([0, 1])}
        return {"a": masked, "b": np.int64(3)}

    def step(self, actions):
        self.played.append(actions)
        self.steps += 1
        live, self.agents = self.agents, ["b"][: 2 - self.steps]
        over = {agent: agent not in self.agents for agent in live}
        infos = {agent: {"action_mask": np.array([1, 0, 1])} for agent in live}
        return self.seen(), dict.fromkeys(live, 1.0), over, dict.fromkeys(live, False), infos


@pytest.mark.parametrize("game", GAMES)
def test_a_game_passes_pettingzoos_own_tests(game, capsys):
    parallel_api_test(GameEnv(game), num_cycles=60)
    parallel_seed_test(lambda: GameEnv(game), num_cycles=30)
    assert "Passed" in capsys.readouterr().out


@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_the_same_in_all_three_forms(game):
    env, vector, batch = GameEnv(game), VectorEnv([GameEnv(game)]), GameBatch(game, 1)
    seen, _ = env.reset(seed=7)
    both = vector.reset(seed=7), batch.reset(seed=7)
    draw = torch.Generator().manual_seed(0)
    for _ in range(2 * game.horizon):
        rows = np.stack([seen[agent] for agent in env.agents])
        for one in both:
            assert np.array_equal(one.features[0].numpy(), rows)
        actions = torch.randint(game.n_actions, (1, game.n_agents), generator=draw)
        named = dict(zip(env.agents, actions[0].tolist(), strict=True))
        seen, rewards, _, truncated, _ = env.step(named)
        moves = vector.step(actions), batch.step(actions)
        for move in moves:
            assert move.reward.item() == pytest.approx(rewards["agent_0"], rel=1e-6)
            assert move.ended.item() == truncated["agent_0"]
        if not env.agents:
            seen, _ = env.reset()
        both = tuple(move.observation for move in moves)


def test_padding_masks_and_agents_that_leave():
    env = Leaving()
    vector = VectorEnv([env])
    assert (vector.obs_dim, vector.n_actions) == (2, 3)
    first = vector.reset(seed=0)
    assert first.features[0].tolist() == [[1, 1], [3, 0]]
    assert first.legal is not None
    assert first.legal[0].tolist() == [[False, True, False], [True, True, True]]
    second = vector.step(torch.tensor([[1, 2]]))
    assert second.observation.legal is not None
    assert second.observation.features[0].tolist() == [[0, 0], [3, 0]]  # "a" has left
    assert second.observation.legal[0].tolist() == [[True, False, False], [True, False, True]]
    assert not second.ended.item() and second.reward.item() == 1.0
    third = vector.step(torch.tensor([[0, 2]]))
    assert env.played == [{"a": 1, "b": 2}, {"b": 2}]
    assert third.ended.item() and third.reward.item() == 0.5
    assert third.observation.features[0].tolist() == [[1, 1], [3, 0]]  # anew


def test_the_task_of_mpe2_is_padded():
    task = pytest.importorskip("mpe2.simple_speaker_listener_v4")
    vector = VectorEnv([task.parallel_env(max_cycles=5) for _ in range(2)])
    first = vector.reset(seed=0)
    assert first.features.shape == (2, 2, 11)
    assert first.legal is not None
    assert first.legal[0].sum(-1).tolist() == [3, 5]
    ends = [bool(vector.step(torch.zeros(2, 2, dtype=torch.int64)).ended.all()) for _ in range(5)]
    assert ends == [False] * 4 + [True]
    vector.close()


def test_refuses():
    env = GameEnv(TabularCoordinationGame(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Discrete\(2\) for agent_1, got None"):
        env.step({"agent_0": 1})
    with pytest.raises(ValueError, match=r"Discrete\(2\) for agent_0, got 2"):
        env.step({"agent_0": 2, "agent_1": 0})
    with pytest.raises(ValueError, match="expected at least one, got none"):
        VectorEnv([])
    with pytest.raises(ValueError, match="expected agents"):
        VectorEnv([env, GameEnv(Aloha())])
    env.action_spaces["agent_1"] = Box(0, 1)
    with pytest.raises(ValueError, match="agent_1: expected Discrete actions"):
        VectorEnv([env])
    env.action_spaces["agent_1"] = Discrete(2)
    env.observation_spaces["agent_0"] = Dict({"x": Discrete(2)})
    with pytest.raises(ValueError, match="Box or a Discrete space"):
        VectorEnv([env])
