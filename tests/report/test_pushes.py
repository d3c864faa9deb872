"""The picture of an episode shows every box, the pusher's way and the goal."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from gossamer.report.pushes import plot_pushes

GOAL = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def test_every_state_is_drawn(tmp_path):
    states = np.stack([np.vstack([[t, 0.5], GOAL + t]) for t in range(3)])
    figure = plot_pushes({"one": states, "two": states[:1]}, GOAL, columns=1)
    one, two = figure.axes
    assert (one.get_title(), two.get_title()) == ("one", "two")
    drawn = [patch.get_xy()[:4] for patch in one.patches]
    assert np.array_equal(drawn, [GOAL, *(GOAL + t for t in range(3))])
    strength = [patch.get_alpha() for patch in one.patches[1:]]
    assert strength == sorted(strength) and strength[-1] == 1
    assert np.array_equal(one.lines[0].get_xdata(), [0, 1, 2])
    assert len(two.patches) == 2
    figure.savefig(tmp_path / "pushes.svg")
    assert "<svg" in (tmp_path / "pushes.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("episodes", "columns", "message"),
    [
        ({}, 5, "got 0 and 5"),
        ({"x": np.zeros((1, 5, 2))}, 0, "got 1 and 0"),
        ({"x": np.zeros((1, 4, 2))}, 1, r"x: expected \[T \+ 1, 5, 2\], got \(1, 4, 2\)"),
        ({"x": np.zeros((0, 5, 2))}, 1, r"got \(0, 5, 2\)"),
    ],
)
def test_refuses(episodes, columns, message):
    with pytest.raises(ValueError, match=message):
        plot_pushes(episodes, GOAL, columns=columns)
