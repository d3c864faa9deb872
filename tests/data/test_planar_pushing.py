"""The table: gymnasium's interface, physics that repeat, and the symmetry that turns pushes."""

import numpy as np
import pytest

pytest.importorskip("pymunk")
pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env

from gossamer.data.planar_pushing import (
    PlanarPushing,
    Pushes,
    box_corners,
    quarter_turns,
    random_pushes,
)


def test_it_passes_gymnasiums_own_checks():
    check_env(PlanarPushing(render_mode="rgb_array"), skip_render_check=True)


def test_the_same_actions_lead_to_the_same_place_whatever_came_before():
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (4, 2))

    def states(env):
        first, _ = env.reset(seed=3)
        return [first, *(env.step(action)[0] for action in actions)]

    env = PlanarPushing()
    once = states(env)
    assert np.array_equal(once, states(env))
    assert np.array_equal(once, states(PlanarPushing()))


def test_a_push_moves_the_box_and_a_miss_does_not():
    env = PlanarPushing()
    for pusher, moves in (([-0.35, 0.0], True), ([-0.35, 0.5], False)):
        before, _ = env.reset(options={"pusher": pusher, "box": [0.0, 0.0, 0.0]})
        after, reward, terminated, truncated, _ = env.step(np.array([0.3, 0.0]))
        assert np.allclose(after[0], before[0] + [0.3, 0.0], atol=1e-6)
        if moves:
            assert np.allclose(after[1:] - before[1:], [0.24, 0.0], atol=0.03)
        else:
            assert np.array_equal(after[1:], before[1:])
        distance = np.linalg.norm(after[1:] - env.goal, axis=1).mean()
        assert reward == pytest.approx(-distance) and not (terminated or truncated)


def test_the_box_keeps_its_shape_and_stops():
    env = PlanarPushing()
    env.reset(options={"pusher": [-0.35, 0.15], "box": [0.0, 0.0, 0.2]})
    pushed = env.step(np.array([0.3, 0.0]))[0]
    sides = np.linalg.norm(np.diff(pushed[[1, 2, 3, 4, 1]], axis=0), axis=1)
    assert np.allclose(sides, 0.5)
    rested = env.step(np.array([-0.3, 0.0]))[0]
    later = env.step(np.array([-0.3, 0.0]))[0]
    assert np.allclose(rested[1:], later[1:], atol=1e-3)


def test_starts_are_behind_the_box_and_episodes_end():
    env = PlanarPushing(max_steps=2)
    for seed in range(20):
        state, _ = env.reset(seed=seed)
        box = state[1:].mean(0)
        assert 0.3 <= np.linalg.norm(box) <= 0.5
        assert np.linalg.norm(state[0]) > np.linalg.norm(box)
        assert np.abs(state[0] - box).max() > 0.25
    assert [env.step(np.zeros(2))[3] for _ in range(2)] == [False, True]


def test_turned_pushes_are_what_the_table_does():
    pushes = random_pushes(30, seed=1)
    turned = quarter_turns(pushes)
    assert len(turned.actions) == 120 and np.abs(turned.actions).max() <= 0.3
    env, worst = PlanarPushing(), []
    for row in range(30, 120):
        state = turned.states[row]
        edge = state[2] - state[1]
        box = [*state[1:].mean(0), np.arctan2(edge[1], edge[0])]
        start, _ = env.reset(options={"pusher": state[0], "box": box})
        assert np.allclose(start, state)
        worst.append(np.abs(env.step(turned.actions[row])[0] - turned.after[row]).max())
    assert np.quantile(worst, 0.9) < 1e-6  # contacts at a corner may go either way


def test_random_pushes_repeat_with_their_seed():
    first, second, other = (random_pushes(8, seed=seed) for seed in (0, 0, 1))
    assert all(
        np.array_equal(getattr(first, n), getattr(second, n)) for n in Pushes.__annotations__
    )
    assert not np.array_equal(first.actions, other.actions)


def test_the_rendering_shows_what_is_where():
    env = PlanarPushing(render_mode="rgb_array")
    env.reset(options={"pusher": [-0.9, 0.9], "box": [0.6, -0.6, 0.0]})
    image = env.render()
    assert image is not None and image.shape == (240, 240, 3)
    side = 240 / 2.4
    at = {
        name: tuple(image[int((1.2 - y) * side), int((x + 1.2) * side)])
        for name, (x, y) in {
            "pusher": (-0.9, 0.9), "box": (0.6, -0.6), "goal": (0.0, 0.0), "table": (0.9, 0.9),
        }.items()
    }  # fmt: skip
    assert len(set(at.values())) == 4
    box = (image == image[int(1.8 * side), int(1.8 * side)]).all(-1)
    assert box.sum() == pytest.approx((0.5 * side) ** 2, rel=0.05)
    assert PlanarPushing().render() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PlanarPushing(max_steps=0), "max_steps: expected at least 1, got 0"),
        (lambda: PlanarPushing(render_mode="human"), "render_mode: .* got 'human'"),
        (lambda: PlanarPushing().reset(options={"ball": 1}), r"options: .* got \['ball'\]"),
        (lambda: PlanarPushing().reset(options={"box": [0, 0]}), "box: expected 3 finite"),
        (lambda: random_pushes(0, seed=0), "count: expected at least 1, got 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("action", [[0.4, 0.0], [np.nan, 0.0], [0.1]])
def test_refuses_actions(action):
    env = PlanarPushing()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected"):
        env.step(action)


def test_corners_go_around_the_box():
    corners = box_corners(1.0, 2.0, np.pi / 2)
    assert np.allclose(corners, [[1.25, 1.75], [1.25, 2.25], [0.75, 2.25], [0.75, 1.75]])
