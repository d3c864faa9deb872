"""Which k-space samples are taken, frame by frame: sampling patterns [T, H, W].

All are in the order of `torch.fft.fft2`, with the centre of k-space at [0, 0], and drawn again
for each frame; at most the centre is sampled in all of them.
"""

import math

import torch
from torch import Tensor

from gossamer.budgets import TopK

_GOLDEN = math.pi * (math.sqrt(5) - 1) / 2  # radians between spokes, 111.25 degrees
_FLOOR = 0.02  # of the sampling density, at the edge of k-space


def cartesian(
    frames: int, height: int, width: int, *, acceleration: float, centre: int = 6, seed: int
) -> Tensor:
    """Draw whole lines (rows of k-space), more of them near the centre.

    The chance of a line at distance r from the centre, 1 at the edge, is as ``(1 - r)^2 + 0.02``.

    Parameters
    ----------
    frames, height, width : int
    acceleration : float
        Lines of a frame over lines taken, at least 1.
    centre : int, default 6
        Lines nearest to the centre that each frame takes; they count.
    seed : int

    Returns
    -------
    Tensor [frames, height, width] bool

    Raises
    ------
    ValueError
        If a size is below 1, `acceleration` below 1, or the centre has more lines than are taken.

    Examples
    --------
    >>> mask = cartesian(3, 32, 8, acceleration=4, seed=0)
    >>> mask[:, :, 0].sum(1).tolist(), bool((mask == mask[:, :, :1]).all())
    ([8, 8, 8], True)
    """
    _check(frames, height, width, acceleration)
    taken = max(1, round(height / acceleration))
    if not 0 <= centre <= taken:
        raise ValueError(f"centre: expected 0 to {taken} of the {taken} lines taken, got {centre}")
    away = torch.fft.fftfreq(height).abs() * 2
    lines = _draw(away.expand(frames, -1), taken, centre, seed)
    return lines[:, :, None].expand(-1, -1, width).contiguous()


def random(
    frames: int, height: int, width: int, *, acceleration: float, centre: int = 36, seed: int
) -> Tensor:
    """Draw single samples, more of them near the centre, as `cartesian` draws lines.

    Parameters
    ----------
    frames, height, width, acceleration, seed
        As for `cartesian`.
    centre : int, default 36
        Samples nearest to the centre that each frame takes.

    Returns
    -------
    Tensor [frames, height, width] bool

    Raises
    ------
    ValueError
        As `cartesian` does.

    Examples
    --------
    >>> random(2, 16, 16, acceleration=4, seed=0).sum((1, 2)).tolist()
    [64, 64]
    """
    _check(frames, height, width, acceleration)
    taken = max(1, round(height * width / acceleration))
    if not 0 <= centre <= taken:
        raise ValueError(f"centre: expected 0 to {taken} of the {taken} taken, got {centre}")
    rows, columns = torch.fft.fftfreq(height) * 2, torch.fft.fftfreq(width) * 2
    away = torch.hypot(rows[:, None], columns).clamp(max=1).flatten()
    chosen = _draw(away.expand(frames, -1), taken, centre, seed)
    return chosen.view(frames, height, width)


def radial(frames: int, height: int, width: int, *, spokes: int) -> Tensor:
    """Take grid points along spokes through the centre, each a golden angle after the last.

    Parameters
    ----------
    frames, height, width : int
    spokes : int
        For each frame, at least 1.

    Returns
    -------
    Tensor [frames, height, width] bool

    Raises
    ------
    ValueError
        If a size or `spokes` is below 1.

    Examples
    --------
    >>> mask = radial(4, 32, 32, spokes=8)
    >>> bool(mask[:, 0, 0].all()), bool((mask[0] != mask[1]).any())
    (True, True)
    """
    _check(frames, height, width, 1.0)
    if spokes < 1:
        raise ValueError(f"spokes: expected at least 1, got {spokes}")
    angles = (torch.arange(frames * spokes) * _GOLDEN).view(frames, spokes, 1)
    radius = torch.linspace(-1, 1, 2 * max(height, width) + 1)  # half a grid step apart
    rows = (radius * angles.sin() * (height - 1) / 2).round().long() % height
    columns = (radius * angles.cos() * (width - 1) / 2).round().long() % width
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[torch.arange(frames)[:, None, None], rows, columns] = True
    return mask


def _draw(away: Tensor, taken: int, centre: int, seed: int) -> Tensor:
    """Choose `taken` of each row without replacement, the `centre` nearest first.

    The largest of log chance plus Gumbel noise are a sample without replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = -torch.empty(away.shape).exponential_(generator=generator).log()
    scores = ((1 - away) ** 2 + _FLOOR).log() + noise
    nearest = away[0].argsort(stable=True)[:centre]
    scores[:, nearest] = torch.inf
    return TopK(taken).select(scores)


def _check(frames: int, height: int, width: int, acceleration: float) -> None:
    if min(frames, height, width) < 1:
        raise ValueError(f"expected sizes of at least 1, got {[frames, height, width]}")
    if not 1 <= acceleration < float("inf"):
        raise ValueError(f"acceleration: expected at least 1, got {acceleration}")
