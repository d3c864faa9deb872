"""The games follow the authors' rules, and batches of them start again on time."""

import pytest
import torch

from gossamer.decisions import Aloha, GameBatch, TabularCoordinationGame
from gossamer.decisions.aloha import neighbours


def test_the_grid_is_the_released_one():
    listed = {
        0: [1, 5],
        1: [0, 2, 6],
        2: [1, 3, 7],
        3: [2, 4, 8],
        4: [3, 5, 9],
        5: [0, 4, 6],
        6: [1, 5, 7],
        7: [2, 6, 8],
        8: [3, 7, 9],
        9: [4, 8],
    }
    found = {row: neighbours()[row].nonzero()[:, 0].tolist() for row in range(10)}
    assert found == listed


def test_aloha_by_hand():
    game = Aloha(arrival=0.0)
    state = torch.tensor([[2.0, 0, 1, 0, 0, 1, 0, 3, 0, 5]])
    # 0 and 5 collide; 2 is disturbed by 7 and 7 by 2; 9 is clear; 1 and 4 have nothing to send
    actions = torch.tensor([[1, 0, 1, 0, 0, 1, 0, 1, 0, 1]])
    outcome = game.advance(state, actions, torch.Generator())
    assert outcome.reward.item() == pytest.approx(0.1 - 40)
    assert outcome.state.tolist() == [[2, 0, 1, 0, 0, 1, 0, 3, 0, 4]]
    # an empty queue that sends still disturbs, and costs nothing itself
    quiet = game.advance(state, torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]), torch.Generator())
    assert quiet.reward.item() == pytest.approx(-10)


def test_packets_arrive_up_to_the_capacity():
    game, idle = Aloha(arrival=1.0, capacity=3), torch.zeros(2, 10, dtype=torch.int64)
    state = game.initial(2, torch.Generator())
    for size in (2, 3, 3):
        state = game.advance(state, idle, torch.Generator()).state
        assert bool((state == size).all())
    generator = torch.Generator().manual_seed(0)
    arrived = Aloha().advance(torch.zeros(4000, 10), idle[:1].expand(4000, -1), generator).state
    assert arrived.mean().item() == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("n_agents", [2, 3, 5, 10])
def test_rewards_and_transitions_are_the_papers(n_agents):
    game, balance = TabularCoordinationGame(n_agents), {2: 1, 3: 1, 5: 2, 10: 3}[n_agents]
    for state, reward in enumerate(game.rewards.tolist()):
        bits = f"{state:0{n_agents}b}"
        zeros, ones = bits.count("0"), bits.count("1")
        if abs(zeros - ones) <= balance:
            assert reward == (1 if zeros < ones else 0)
        else:
            assert reward == (3 if zeros > ones else 2)
        assert game.bits[state].tolist() == [int(bit) for bit in bits]
    if n_agents < 10:
        assert game.transitions[5 % 2**n_agents, 1].item() == pytest.approx(
            {2: 0.9 * 0.9, 3: 0.1 * 0.9 * 0.9, 5: 0.1 * 0.9**4}[n_agents]
        )
    assert torch.allclose(game.transitions.sum(1), torch.ones(2**n_agents).double())


def test_played_states_follow_the_table():
    game, count = TabularCoordinationGame(3), 40_000
    state = torch.tensor([[1.0, 1, 1]]).expand(count, -1)
    actions = torch.tensor([[0, 1, 0]]).expand(count, -1)
    outcome = game.advance(state, actions, torch.Generator().manual_seed(0))
    assert bool((outcome.reward == game.rewards[7]).all())
    place = (outcome.state.long() * torch.tensor([4, 2, 1])).sum(1)
    drawn = torch.bincount(place, minlength=8).double() / count
    assert (drawn - game.transitions[2]).abs().max().item() < 0.01


@pytest.mark.parametrize("game", [Aloha(horizon=3), TabularCoordinationGame(3, horizon=3)])
def test_a_batch_starts_again_after_the_horizon_and_repeats_by_seed(game):
    def play(seed):
        games, seen = GameBatch(game, batch=5), []
        seen.append(games.reset(seed).features)
        ends = []
        for step in range(7):
            transition = games.step(torch.full((5, game.n_agents), step % 2))
            seen.append(transition.observation.features)
            ends.append(transition.ended.all().item())
        return torch.stack(seen), ends

    seen, ends = play(0)
    assert ends == [False, False, True, False, False, True, False]
    assert seen.shape == (8, 5, game.n_agents, game.obs_dim)
    assert torch.equal(seen, play(0)[0]) and not torch.equal(seen, play(1)[0])
    if isinstance(game, Aloha):
        assert bool((seen[3] == 1).all())  # anew


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Aloha(arrival=1.5), "arrival: .* got 1.5"),
        (lambda: Aloha(capacity=0), "capacity: .* got 0"),
        (lambda: Aloha(horizon=0), "horizon: .* got 0"),
        (lambda: TabularCoordinationGame(4), r"expected one of \[2, 3, 5, 10\], got 4"),
        (lambda: TabularCoordinationGame(2, flip=-0.1), "flip: .* got -0.1"),
        (lambda: TabularCoordinationGame(2, discount=1.0), "discount: .* got 1.0"),
        (lambda: TabularCoordinationGame(2, horizon=0), "horizon: .* got 0"),
        (lambda: GameBatch(Aloha(), 0), "batch: .* got 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
