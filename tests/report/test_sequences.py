"""The pictures hold the frame, the error and the column that they name."""

import numpy as np
import pytest
import torch

from gossamer.report.sequences import ERROR_GAIN, plot_convergence, plot_sequences


def test_each_row_is_what_it_says(tmp_path):
    truth = torch.rand(4, 9, 7) + 0.5
    other = truth * torch.polar(torch.full((4, 9, 7), 0.9), torch.rand(4, 9, 7))
    figure = plot_sequences({"other": other}, truth, frame=2, column=5)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 6
    frame, magnitude = truth[2].numpy(), other.abs().numpy()
    for picture, wanted in zip(
        shown,
        [
            *(frame, magnitude[2]),
            *(0 * frame, ERROR_GAIN * np.abs(magnitude[2] - frame)),
            *(truth[:, :, 5].numpy().T, magnitude[:, :, 5].T),
        ],
        strict=True,
    ):
        np.testing.assert_allclose(picture, wanted, rtol=1e-6)
    limits = {(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in figure.axes}
    assert limits == {(0, float(truth.max()))}
    assert [axes.get_title() for axes in figure.axes[:2]] == ["truth", "other"]
    figure.savefig(tmp_path / "sequences.png")
    assert (tmp_path / "sequences.png").read_bytes().startswith(b"\x89PNG")


def test_changes_are_drawn_at_their_iterations():
    figure = plot_convergence({"a": [0.0, 0.1, 0.01], "b": [1.0]}, tol=0.05)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["a"].get_xdata()) == [2, 3]
    assert list(lines["a"].get_ydata()) == [0.1, 0.01]
    assert set(lines["tolerance"].get_ydata()) == {0.05}
    assert figure.axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    ("sequences", "frame", "column", "message"),
    [
        ({"a": torch.ones(3, 4, 4)}, 0, 0, r"a: expected \[2, 4, 4\], got \[3, 4, 4\]"),
        ({}, 2, 0, "frame below 2 and column below 4, got 2 and 0"),
        ({}, 0, -1, "got 0 and -1"),
    ],
)
def test_refuses(sequences, frame, column, message):
    with pytest.raises(ValueError, match=message):
        plot_sequences(sequences, torch.ones(2, 4, 4), frame=frame, column=column)


def test_refuses_nothing_to_draw():
    with pytest.raises(ValueError, match="expected an iteration to draw, got none"):
        plot_convergence({"a": []}, tol=0.1)
