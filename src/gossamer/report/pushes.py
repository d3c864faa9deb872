"""Pictures of pushed boxes: where the box and the pusher were at every step."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

try:
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

_INCHES = 2.6  # a picture's side
_GOAL, _BOX, _PUSHER = "#3c9a3c", "#2f5f9f", "#c8502f"


def plot_pushes(episodes: Mapping[str, ArrayLike], goal: ArrayLike, *, columns: int = 5) -> Figure:
    """Draw each episode seen from above, earlier boxes paler than later ones.

    Parameters
    ----------
    episodes : mapping of str to array [T + 1, 1 + k, 2]
        By title: states of the pusher, then the corners in order.
    goal : array [k, 2]
        Outlined.
    columns : int
        Pictures in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Free of pyplot; ``savefig`` writes it, as .svg too.

    Raises
    ------
    ValueError
        If there is nothing to draw, or states and goal do not belong together.

    Examples
    --------
    >>> figure = plot_pushes({"still": np.zeros((1, 5, 2))}, np.ones((4, 2)))
    >>> figure.axes[0].get_title()
    'still'
    """
    if not episodes or columns < 1:
        raise ValueError(f"expected episodes and columns >= 1, got {len(episodes)} and {columns}")
    corners = np.asarray(goal, np.float64)
    down = -(-len(episodes) // columns)
    across = min(columns, len(episodes))
    figure = Figure(figsize=(_INCHES * across, _INCHES * down + 0.2 * down), layout="constrained")
    for place, (title, episode) in enumerate(episodes.items(), 1):
        states = np.asarray(episode, np.float64)
        shape = (len(corners) + 1, 2)
        if states.ndim != 3 or not len(states) or states.shape[1:] != shape:
            raise ValueError(f"{title}: expected [T + 1, {shape[0]}, 2], got {states.shape}")
        axes = figure.add_subplot(down, across, place)
        axes.add_patch(Polygon(corners, fill=False, edgecolor=_GOAL, linestyle="--", linewidth=1.5))
        for step, state in enumerate(states):
            strength = 0.15 + 0.85 * (step + 1) / len(states)
            axes.add_patch(Polygon(state[1:], fill=False, edgecolor=_BOX, alpha=strength))
        axes.plot(*states[:, 0].T, marker="o", markersize=3, color=_PUSHER, linewidth=0.8)
        reach = np.abs(np.concatenate([states.reshape(-1, 2), corners])).max() * 1.1
        axes.set(title=title, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        axes.title.set_fontsize(8)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
