"""What reconstructions penalise: total variation, nuclear norms and magnitudes, as records.

A regularizer has a `value`, and serves a primal-dual solver from one or both sides: `prox` for a
block of the image, or `norm_squared`, `start`, `adjoint` and `ascend` for a linear map of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.imaging.proximal import lengths, singular_values, soft, svt
from gossamer.kernels import finite_differences, tv_adjoint, tv_dual_ascent

SPACE, TIME = (-2, -1), (-3,)
CASORATI, ROWS = -3, -2


@dataclass(frozen=True)
class Magnitude:
    """``weight * sum |x|``.

    Examples
    --------
    >>> Magnitude(2.0).value(torch.tensor([3j, 1 + 0j]))
    8.0
    """

    weight: float

    def value(self, x: Tensor) -> float:
        """Return the penalty of x."""
        return self.weight * float(x.abs().sum())

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Return the minimiser of ``|z - x|^2 / 2 + step * value(z)``."""
        return soft(x, step * self.weight)


@dataclass(frozen=True)
class NuclearNorm:
    """``weight`` times the sum of the singular values of an unfolding of [T, H, W].

    Parameters
    ----------
    weight : float
    dim : int, default -3
        -3 unfolds into frames by pixels (Casorati), -2 into image rows by everything else.

    Examples
    --------
    >>> round(NuclearNorm(0.5).value(torch.ones(4, 3, 3, dtype=torch.complex64)), 4)
    3.0
    """

    weight: float
    dim: int = CASORATI

    norm_squared = 1.0  # of the identity, for the dual side

    def value(self, x: Tensor) -> float:
        """Return the penalty of x."""
        return self.weight * float(singular_values(x, dim=self.dim).sum())

    def prox(self, x: Tensor, step: float) -> Tensor:
        """Return the minimiser of ``|z - x|^2 / 2 + step * value(z)``."""
        return svt(x, step * self.weight, dim=self.dim)

    def start(self, x: Tensor) -> Tensor:
        """Return a dual of zeros for images like x."""
        return torch.zeros_like(x)

    def adjoint(self, dual: Tensor) -> Tensor:
        """Return the dual's pull on the image."""
        return dual

    def ascend(self, dual: Tensor, x: Tensor, step: float) -> Tensor:
        """Return the dual after a step along x and the conjugate's proximal operator (Moreau)."""
        risen = torch.add(dual, x, alpha=step)
        return risen - svt(risen, self.weight, dim=self.dim)


@dataclass(frozen=True)
class TotalVariation:
    """``weight`` times the sum over pixels of the length of their differences over `dims`.

    Differences are forward ones and 0 behind the last pixel or frame.

    Parameters
    ----------
    weight : float
    dims : tuple of int, default (-2, -1)
        (-2, -1) is isotropic in space; (-3,) is over time.

    Examples
    --------
    >>> x = torch.tensor([[[0, 3]], [[4, 3]]], dtype=torch.complex64)
    >>> TotalVariation(1.0).value(x), TotalVariation(1.0, TIME).value(x)
    (4.0, 4.0)
    """

    weight: float
    dims: tuple[int, ...] = SPACE

    @property
    def norm_squared(self) -> float:
        """A bound of the squared norm of the differences."""
        return 4.0 * len(self.dims)

    def value(self, x: Tensor) -> float:
        """Return the penalty of x."""
        return self.weight * float(lengths(finite_differences(x, self.dims)).sum())

    def start(self, x: Tensor) -> Tensor:
        """Return a dual [len(dims), *x.shape] of zeros."""
        return x.new_zeros(len(self.dims), *x.shape)

    def adjoint(self, dual: Tensor) -> Tensor:
        """Return the dual's pull on the image."""
        return tv_adjoint(dual, dims=self.dims)

    def ascend(self, dual: Tensor, x: Tensor, step: float) -> Tensor:
        """Return the dual after a step along the differences of x, projected."""
        return tv_dual_ascent(dual, x, dims=self.dims, step=step, radius=self.weight)
