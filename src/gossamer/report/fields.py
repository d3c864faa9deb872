"""Pictures of learnt dictionaries: every atom as the patch that it stands for."""

from math import ceil, isqrt

import numpy as np
from numpy.typing import ArrayLike

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

_GAP = 1  # pixels between fields
_INCHES = 0.35  # a field's side


def plot_fields(components: ArrayLike, *, columns: int | None = None, title: str = "") -> Figure:
    """Draw the atoms of a dictionary as a grid of square patches.

    Parameters
    ----------
    components : array [K, size * size]
        Atoms, such as ``SparseCoding.components_``. Each is scaled by its largest magnitude; grey
        is zero.
    columns : int, optional
        Fields in a row; None makes the grid about square.
    title : str, default ""

    Returns
    -------
    matplotlib.figure.Figure
        Free of pyplot; ``savefig`` writes it.

    Raises
    ------
    ValueError
        If an atom is not a square patch or not finite, or there is nothing to draw.

    Examples
    --------
    >>> plot_fields(np.eye(9)).axes[0].images[0].get_array().shape
    (13, 13)
    """
    atoms = np.asarray(components, dtype=np.float64)
    if atoms.ndim != 2 or not atoms.size or isqrt(atoms.shape[1]) ** 2 != atoms.shape[1]:
        raise ValueError(f"components: expected [K, size * size], got {atoms.shape}")
    if not np.isfinite(atoms).all():
        raise ValueError("components: expected finite values, got NaN or infinity")
    if columns is not None and columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    count, size = len(atoms), isqrt(atoms.shape[1])
    across = columns or ceil(count**0.5)
    down = ceil(count / across)
    picture = np.full((down * (size + _GAP) + _GAP, across * (size + _GAP) + _GAP), np.nan)
    for index, atom in enumerate(atoms):
        top, left = ((size + _GAP) * place + _GAP for place in divmod(index, across))
        largest = np.abs(atom).max()
        field = atom.reshape(size, size) / (largest if largest else 1)
        picture[top : top + size, left : left + size] = field
    figure = Figure(figsize=(_INCHES * across, _INCHES * down + 0.3), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)
    return figure
