"""Learning curves with their spread: what several seeds came to, step by step."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

_COLOURS = ("#12766c", "#d39a3c", "#7d8a9c", "#a3485f")  # told apart in grey print too
_INK, _RULE = "#1d2430", "#dde1e6"
_BAND = 0.18  # opacity
_FEW = 5  # seeds up to which each is drawn as well


def plot_curves(
    panels: Mapping[str, Mapping[str, ArrayLike]],
    steps: Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    xlabel: str = "step",
) -> Figure:
    """Draw the mean and one standard deviation of runs, one panel beside the other.

    Parameters
    ----------
    panels : mapping of str to mapping of str to array [seeds, records]
        Title of a panel to its curves by name; the same name has one colour throughout.
    steps : mapping of str to sequence of float
        Where the records of each panel were taken.
    ylabel, xlabel : str

    Returns
    -------
    matplotlib.figure.Figure
        Free of pyplot; ``savefig`` writes it.

    Raises
    ------
    ValueError
        If there is nothing to draw, or a curve is not finite or not as long as its steps.

    Examples
    --------
    >>> runs = {"full": [[0.1, 0.5], [0.2, 0.9]]}
    >>> plot_curves({"a game": runs}, {"a game": [0, 20]}, ylabel="return").axes[0].get_title()
    'a game'
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels: expected at least one curve in each, got none")
    figure = Figure(figsize=(0.6 + 3.6 * len(panels), 3.2), layout="constrained")
    colours = dict(zip({n: 0 for curves in panels.values() for n in curves}, cycle(_COLOURS)))
    for axes, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        where = np.asarray(steps[title], dtype=np.float64)
        for name, curve in curves.items():
            runs = np.asarray(curve, dtype=np.float64)
            if runs.ndim != 2 or runs.shape[1] != len(where) or not np.isfinite(runs).all():
                raise ValueError(
                    f"{title}, {name}: expected finite [seeds, {len(where)}], got {runs.shape}"
                )
            mean, spread = runs.mean(0), runs.std(0, ddof=1) if len(runs) > 1 else 0.0
            axes.fill_between(
                where, mean - spread, mean + spread, color=colours[name], alpha=_BAND, linewidth=0
            )
            if len(runs) <= _FEW:
                axes.plot(where, runs.T, color=colours[name], linewidth=0.5, alpha=0.6)
            axes.plot(where, mean, color=colours[name], linewidth=1.6, label=name)
        axes.set_title(title, fontsize=10, color=_INK)
        axes.set_xlabel(xlabel, fontsize=9)
        axes.tick_params(labelsize=8, length=0)
        axes.grid(color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel(ylabel, fontsize=9)
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure
