"""Learning curves show the mean and the deviation of the seeds, under the right names."""

import numpy as np
import pytest

from gossamer.report.curves import plot_curves

RUNS = np.random.default_rng(0).normal(size=(9, 4)).cumsum(1)
STEPS = [0, 20, 40, 50]


def test_line_and_band_are_mean_and_deviation(tmp_path):
    figure = plot_curves(
        {"one": {"full": RUNS}, "two": {"empty": RUNS, "full": RUNS[:1]}},
        {"one": STEPS, "two": STEPS},
        ylabel="return",
    )
    one, two = figure.axes
    (line,) = one.lines
    assert line.get_xdata().tolist() == STEPS
    assert np.allclose(line.get_ydata(), RUNS.mean(0))
    heights = one.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((RUNS.mean(0) + RUNS.std(0, ddof=1)).max())
    assert heights.min() == pytest.approx((RUNS.mean(0) - RUNS.std(0, ddof=1)).min())
    assert two.get_legend_handles_labels()[1] == ["empty", "full"]
    assert two.lines[-1].get_color() == line.get_color()  # one colour a name
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_few_seeds_are_drawn_one_by_one():
    figure = plot_curves({"one": {"full": RUNS[:3]}}, {"one": STEPS}, ylabel="return")
    assert len(figure.axes[0].lines) == 4


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "at least one curve"),
        ({"one": {}}, "at least one curve"),
        ({"one": {"full": RUNS[0]}}, r"one, full: expected finite \[seeds, 4\], got \(4,\)"),
        ({"one": {"full": RUNS[:, :3]}}, r"got \(9, 3\)"),
        ({"one": {"full": RUNS * np.nan}}, "finite"),
    ],
)
def test_refuses(panels, message):
    with pytest.raises(ValueError, match=message):
        plot_curves(panels, {"one": STEPS}, ylabel="return")
