"""Pictures of image sequences: reconstructions beside their errors, and how solvers converged."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

ERROR_GAIN = 4.0  # errors are drawn this much brighter than images


def plot_sequences(
    sequences: Mapping[str, Tensor], reference: Tensor, *, frame: int, column: int
) -> Figure:
    """Draw one frame of each sequence, its error, and a column of pixels over time.

    Parameters
    ----------
    sequences : mapping of str to Tensor [T, H, W]
        By title; magnitudes are drawn, in grey from 0 to the reference's largest.
    reference : Tensor [T, H, W]
        The truth, drawn first.
    frame, column : int
        Which frame, and which of its columns of pixels to follow.

    Returns
    -------
    matplotlib.figure.Figure
        Free of pyplot; ``savefig`` writes it.

    Raises
    ------
    ValueError
        If a shape differs from the reference's, or there is no such frame or column.

    Examples
    --------
    >>> import torch
    >>> truth = torch.ones(3, 8, 6)
    >>> len(plot_sequences({"half": truth / 2}, truth, frame=1, column=2).axes)
    6
    """
    frames, _, width = reference.shape
    if not (0 <= frame < frames and 0 <= column < width):
        raise ValueError(
            f"expected frame below {frames} and column below {width}, got {frame} and {column}"
        )
    truth = reference.abs().cpu().numpy()
    drawn = {"truth": truth}
    for name, sequence in sequences.items():
        if sequence.shape != reference.shape:
            raise ValueError(
                f"{name}: expected {list(reference.shape)}, got {list(sequence.shape)}"
            )
        drawn[name] = sequence.abs().cpu().numpy()
    peak = float(truth.max())
    rows = ("frame", f"error x {ERROR_GAIN:g}", "over time")
    figure = Figure(figsize=(1.9 * len(drawn), 5.6), layout="constrained")
    panels = figure.subplots(len(rows), len(drawn), squeeze=False)
    for index, (name, images) in enumerate(drawn.items()):
        error = ERROR_GAIN * np.abs(images[frame] - truth[frame])
        for axes, picture in zip(
            panels[:, index], (images[frame], error, images[:, :, column].T), strict=True
        ):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=peak, aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
        panels[0, index].set_title(name, fontsize=9)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=9)
    return figure


def plot_convergence(changes: Mapping[str, Sequence[float]], *, tol: float) -> Figure:
    """Draw the relative change of each iteration, on a logarithmic scale.

    Parameters
    ----------
    changes : mapping of str to sequence of float
        By method, such as ``DynamicReconstruction.change``.
    tol : float
        The tolerance, drawn as a line.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there is nothing to draw.

    Examples
    --------
    >>> figure = plot_convergence({"fast": [0.1, 0.01]}, tol=0.02)
    >>> [line.get_label() for line in figure.axes[0].lines][:1]
    ['fast']
    """
    if not any(len(values) for values in changes.values()):
        raise ValueError("changes: expected an iteration to draw, got none")
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, values in changes.items():
        steps = np.arange(1, len(values) + 1)
        moved = np.asarray(values) > 0  # a first change of 0 has no logarithm
        axes.plot(steps[moved], np.asarray(values)[moved], label=name, linewidth=1.2)
    axes.axhline(tol, color="0.6", linewidth=0.8, label="tolerance")
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel("relative change")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
