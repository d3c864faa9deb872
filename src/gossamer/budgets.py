"""Budgets: how much may stay.

A budget turns scores into a bool mask of the same shape; higher scores stay, and among equal
scores the lower index. It decides over the units of a weight pattern (by default each element on
its own), in every row along `dim` or, with ``dim=None``, over the whole tensor. A larger budget
keeps a superset of a smaller one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.patterns import Unstructured, WeightPattern

ELEMENTS = Unstructured()


@dataclass(frozen=True)
class TopK:
    """Keep the `k` units of highest score in every row.

    Parameters
    ----------
    k : int
        Units to keep, at least 1 and at most a row's size. For N:M patterns a group is a row.
    dim : int or None, default -1
        Dimension of the units that makes a row; None takes all units as one row.

    Examples
    --------
    >>> TopK(2).select(torch.tensor([[1.0, 3.0, 3.0, 3.0]])).tolist()
    [[False, True, True, False]]
    """

    k: int
    dim: int | None = -1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"expected k of at least 1, got {self.k}")

    def select(self, scores: Tensor, pattern: WeightPattern = ELEMENTS) -> Tensor:
        """Return the bool mask of what stays.

        Parameters
        ----------
        scores : Tensor
            Real and without NaN; -inf marks what should stay last.
        pattern : WeightPattern, default Unstructured()
            What is kept or dropped together.

        Raises
        ------
        TypeError
            If scores are not real numbers.
        ValueError
            If scores hold NaN, a row has fewer than `k` units, or the choice breaks the pattern.
        """
        units = _units(scores, pattern)
        size = _row_size(units, self.dim)
        if self.k > size:
            raise ValueError(f"expected k of at most {size} units in a row, got {self.k}")
        return pattern.to_mask(_top(units, self.k, self.dim), scores.shape)


@dataclass(frozen=True)
class Density:
    """Keep the share `density` of the units in every row, rounded, and at least one.

    Parameters
    ----------
    density : float
        Share kept, in (0, 1].
    dim : int or None, default -1
        Dimension of the units that makes a row; None takes all units as one row.

    Examples
    --------
    >>> from gossamer.patterns import NM
    >>> Density(0.5).select(torch.tensor([4.0, 1.0, 2.0, 3.0]), NM(2, 4)).tolist()
    [True, False, False, True]
    """

    density: float
    dim: int | None = -1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"expected density in (0, 1], got {self.density}")

    def count(self, size: int) -> int:
        """Return how many of `size` units stay."""
        return min(size, max(1, round(self.density * size)))

    def select(self, scores: Tensor, pattern: WeightPattern = ELEMENTS) -> Tensor:
        """Return the bool mask of what stays; see `TopK.select`."""
        units = _units(scores, pattern)
        size = _row_size(units, self.dim)
        return pattern.to_mask(_top(units, self.count(size), self.dim), scores.shape)


@dataclass(frozen=True)
class TopP:
    """Keep the fewest units whose scores make up the share `p` of their row's sum.

    Parameters
    ----------
    p : float
        Share of the mass, in (0, 1]; sums are taken in float64. Rows of zeros keep nothing.
    dim : int or None, default -1
        Dimension of the units that makes a row; None takes all units as one row.

    Examples
    --------
    >>> TopP(0.7).select(torch.tensor([0.5, 0.125, 0.25, 0.125])).tolist()
    [True, False, True, False]
    """

    p: float
    dim: int | None = -1

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"expected p in (0, 1], got {self.p}")

    def select(self, scores: Tensor, pattern: WeightPattern = ELEMENTS) -> Tensor:
        """Return the bool mask of what stays; see `TopK.select`.

        Raises
        ------
        ValueError
            Also if a score is negative or infinite.
        """
        units = _units(scores, pattern)
        _row_size(units, self.dim)
        if bool(((units < 0) | (units == torch.inf)).any()):
            raise ValueError(
                "expected finite scores of at least 0, such as probabilities, got "
                f"{float(units.min())}..{float(units.max())}; try scores.softmax(-1)"
            )
        rows = units.flatten() if self.dim is None else units.movedim(self.dim, -1)
        mass, order = rows.double().sort(descending=True, stable=True)
        reached = mass.cumsum(-1)
        short = (reached < self.p * reached[..., -1:]).sum(-1, keepdim=True)
        chosen = (torch.arange(rows.shape[-1], device=rows.device) <= short) & (mass > 0)
        kept = torch.zeros_like(chosen).scatter(-1, order, chosen)
        kept = kept.reshape(units.shape) if self.dim is None else kept.movedim(-1, self.dim)
        return pattern.to_mask(kept, scores.shape)


@dataclass(frozen=True)
class Threshold:
    """Keep the units whose score is at most `difference` below an anchor.

    Parameters
    ----------
    difference : float
        In the scores' own units; inf keeps everything, 0 only what reaches the anchor.

    Examples
    --------
    >>> Threshold(2.0).select(torch.tensor([[9.0, 6.0, 7.0]]), torch.tensor([[9.0]])).tolist()
    [[True, False, True]]
    """

    difference: float

    def __post_init__(self) -> None:
        if self.difference != self.difference:
            raise ValueError("expected difference to be a number, got nan")

    def select(
        self, scores: Tensor, anchor: Tensor | float, pattern: WeightPattern = ELEMENTS
    ) -> Tensor:
        """Return the bool mask ``scores >= anchor - difference``; see `TopK.select`.

        Parameters
        ----------
        scores : Tensor
            Real and without NaN.
        anchor : Tensor or float
            Broadcasts to the units, for instance each row's largest score.
        pattern : WeightPattern, default Unstructured()
            What is kept or dropped together.
        """
        units = _units(scores, pattern)
        return pattern.to_mask(units >= anchor - self.difference, scores.shape)


def _units(scores: Tensor, pattern: WeightPattern) -> Tensor:
    dtype = getattr(scores, "dtype", type(scores))
    if not isinstance(dtype, torch.dtype) or dtype == torch.bool or dtype.is_complex:
        raise TypeError(f"expected a tensor of real scores, got {dtype}")
    units = pattern.units(scores)
    if bool(units.sum().isnan()) and bool(units.isnan().any()):  # a sum alone is quickest
        raise ValueError("expected scores without NaN, got at least one; mask or repair them first")
    return units


def _row_size(units: Tensor, dim: int | None) -> int:
    if dim is None:
        return units.numel()
    if not -units.ndim <= dim < units.ndim:
        raise ValueError(f"expected dim to be None or one of {units.ndim} dimensions, got {dim}")
    return units.shape[dim]


def _top(units: Tensor, k: int, dim: int | None) -> Tensor:
    """Mask of the k largest in every row, ties by lowest index, without a sort."""
    if units.numel() == 0:
        return torch.zeros_like(units, dtype=torch.bool)
    if dim is None:
        return _top_of_all(units.flatten(), k).reshape(units.shape)
    least = _least_kept(units, k, dim)
    above, tied = units > least, units == least
    room = k - above.sum(dim, keepdim=True)
    return above | (tied & (tied.cumsum(dim) <= room))


def _top_of_all(units: Tensor, k: int) -> Tensor:
    """The same for one row, which is as long as a weight is large."""
    least = _least_kept(units, k, 0)
    above = units > least
    tied = (units == least).nonzero()[: k - int(above.count_nonzero()), 0]
    return above.index_fill_(0, tied, True)


def _least_kept(units: Tensor, k: int, dim: int) -> Tensor:
    """The k-th largest of every row, with `dim` kept."""
    place = units.shape[dim] - k
    if units.device.type == "cpu" and units.dtype in (torch.float32, torch.float64):
        # numpy's partition is vectorised, up to ten times as fast as kthvalue.
        parted = torch.as_tensor(np.partition(units.detach().numpy(), place, axis=dim))
        return parted.narrow(dim, place, 1)
    return units.kthvalue(place + 1, dim, keepdim=True).values
