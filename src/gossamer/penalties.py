"""Penalties: what a coefficient costs, and the threshold that the cost amounts to.

A sparse code minimises ``||x - Phi r||^2 / 2 + sum_i value(r_i)``. A gradient step of length
`step` on the first term is followed by the penalty's proximal operator, `prox`: the minimiser of
``(r - z)^2 / 2 + step * value(r)``, element by element. `lam` weighs the penalty.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

_NEWTON_STEPS = 8  # float64 round-off for q in [0.01, 0.99]; convex, from the right: monotone


class Penalty(ABC):
    """What one coefficient costs, and the proximal operator of that cost."""

    convex: ClassVar[bool] = False

    @abstractmethod
    def value(self, code: Tensor, lam: float, norms: Tensor | float = 1.0) -> Tensor:
        """Return the cost of every coefficient.

        Parameters
        ----------
        code : Tensor [..., K]
        lam : float
            Weight of the penalty, above 0.
        norms : Tensor [K] or float, default 1.0
            L2 norms of the dictionary's atoms; only `CEL0` depends on them.
        """

    @abstractmethod
    def prox(self, z: Tensor, lam: float, step: float, norms: Tensor | float = 1.0) -> Tensor:
        """Return the minimiser of ``(r - z)^2 / 2 + step * value(r)``; 0 where two are equal.

        Parameters
        ----------
        z : Tensor [..., K]
        lam : float
            Weight of the penalty, above 0.
        step : float
            Length of the gradient step before, above 0.
        norms : Tensor [K] or float, default 1.0
            As for `value`.

        Raises
        ------
        ValueError
            If `lam` or `step` is not above 0, or too long for `CEL0`.
        """


@dataclass(frozen=True)
class L1(Penalty):
    """Soft thresholding, ``lam |r|``: small coefficients vanish and large ones shrink alike.

    Examples
    --------
    >>> L1().prox(torch.tensor([-3.0, 0.5]), lam=2.0, step=0.5)
    tensor([-2.,  0.])
    """

    convex = True

    def value(self, code: Tensor, lam: float, norms: Tensor | float = 1.0) -> Tensor:
        return lam * code.abs()

    def prox(self, z: Tensor, lam: float, step: float, norms: Tensor | float = 1.0) -> Tensor:
        _check_positive(lam, step)
        return torch.nn.functional.softshrink(z, lam * step)


@dataclass(frozen=True)
class L0(Penalty):
    """Hard thresholding, ``lam [r != 0]``: what passes ``sqrt(2 lam step)`` stays as it is.

    The authors' code passes ``sqrt(lam step)``: its lam is twice this one.

    Examples
    --------
    >>> L0().prox(torch.tensor([-3.0, 0.5]), lam=2.0, step=0.5)
    tensor([-3.,  0.])
    """

    def value(self, code: Tensor, lam: float, norms: Tensor | float = 1.0) -> Tensor:
        return lam * (code != 0).to(code.dtype)

    def prox(self, z: Tensor, lam: float, step: float, norms: Tensor | float = 1.0) -> Tensor:
        _check_positive(lam, step)
        return torch.nn.functional.hardshrink(z, sqrt(2 * lam * step))


@dataclass(frozen=True)
class Lq(Penalty):
    """The concave ``lam |r|^q``, between hard and soft thresholding.

    Half thresholding (q = 1/2, Xu et al. 2012) has a closed form; its lam is half the one of the
    authors' code, which leaves out the 1/2 before the squared error. Other q take Newton steps.

    Parameters
    ----------
    q : float
        Between 0 and 1, both excluded (paper: 0.5).

    Examples
    --------
    >>> Lq(0.5).prox(torch.tensor([-3.0, 0.5]), lam=2.0, step=0.5)
    tensor([-2.6955,  0.0000])
    """

    q: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q: expected 0 < q < 1, got {self.q}, try L0() or L1() at the ends")

    def value(self, code: Tensor, lam: float, norms: Tensor | float = 1.0) -> Tensor:
        return lam * code.abs() ** self.q

    def prox(self, z: Tensor, lam: float, step: float, norms: Tensor | float = 1.0) -> Tensor:
        _check_positive(lam, step)
        q, weight = self.q, lam * step
        least = (2 * weight * (1 - q)) ** (1 / (2 - q))  # the smallest value that is not zero
        threshold = least * (2 - q) / (2 * (1 - q))
        size = z.abs().clamp(min=threshold)
        if q == 0.5:
            angle = torch.acos(weight / 4 * (size / 3) ** -1.5)
            root = size * 2 / 3 * (1 + torch.cos(2 / 3 * (torch.pi - angle)))
        else:
            root = size
            for _ in range(_NEWTON_STEPS):
                slope = weight * q * root ** (q - 1)
                root = root - (root - size + slope) / (1 + slope * (q - 1) / root)
        return torch.where(z.abs() > threshold, root.copysign(z), 0.0)


@dataclass(frozen=True)
class CEL0(Penalty):
    """The continuous exact relaxation of L0 (Soubies, Blanc-Feraud & Aubert 2015).

    ``lam - a^2 / 2 (|r| - c)^2`` below ``c = sqrt(2 lam) / a`` and ``lam`` above, with a the norm
    of the coefficient's atom. It has the global minimisers of `L0` and fewer local ones. Its
    threshold ``sqrt(2 lam) a step`` needs ``a^2 step < 1``.

    Examples
    --------
    >>> CEL0().prox(torch.tensor([-3.0, 1.5, 0.5]), lam=2.0, step=0.5)
    tensor([-3.,  1.,  0.])
    """

    def value(self, code: Tensor, lam: float, norms: Tensor | float = 1.0) -> Tensor:
        short = (sqrt(2 * lam) - norms * code.abs()).clamp(min=0)
        return lam - short**2 / 2

    def prox(self, z: Tensor, lam: float, step: float, norms: Tensor | float = 1.0) -> Tensor:
        _check_positive(lam, step)
        largest = float(norms.max() if isinstance(norms, Tensor) else norms)
        if largest**2 * step >= 1:
            raise ValueError(
                f"step: expected less than 1 / (largest norm)^2 = {1 / largest**2:g}, got {step:g}"
            )
        size = z.abs()
        steep = (size - sqrt(2 * lam) * step * norms) / (1 - norms**2 * step)
        return torch.minimum(size, steep.clamp(min=0)).copysign(z)


PENALTIES: dict[str, Penalty] = {
    "soft": L1(),
    "hard": L0(),
    "half": Lq(0.5),
    "cel0": CEL0(),
}
"""The paper's four, by the names that its code gives their thresholds."""


def _check_positive(lam: float, step: float) -> None:
    if not (lam > 0 and step > 0):
        raise ValueError(f"expected lam and step above 0, got {lam=} and {step=}")
