"""The measurement: Fourier coefficients of every frame at the sampled places."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor


class Physics(Protocol):
    """A linear measurement of image sequences [..., T, H, W], and its adjoint."""

    def forward(self, image: Tensor) -> Tensor:
        """Return what the scanner measures."""
        ...

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Return the adjoint's image sequence."""
        ...

    def norm(self) -> float:
        """Return the largest singular value, or a bound of it."""
        ...

    def measured(self, kspace: Tensor) -> Tensor:
        """Return the measurement checked, and zero wherever nothing was sampled."""
        ...


@dataclass(frozen=True, eq=False)
class CartesianMRI:
    """Sample the orthonormal 2-D Fourier transform of each frame on a grid.

    ``forward(x) = mask * fft2(coil_maps * x)``. k-space is in the order of `torch.fft.fft2`: the
    centre is at [0, 0], not in the middle. Apply `torch.fft.ifftshift` over the last two axes to a
    mask or to data drawn with the centre in the middle.

    Parameters
    ----------
    mask : Tensor [T, H, W] bool
        What is sampled, frame by frame; `gossamer.imaging.masks` draws some.
    coil_maps : Tensor [C, H, W] complex, optional
        Sensitivities of the receive coils; without them there is one coil that sees all alike and
        k-space has no axis for coils.

    Raises
    ------
    TypeError
        If `mask` is not bool or `coil_maps` not complex.
    ValueError
        If shapes or devices do not fit, a frame is not sampled at all, or maps are not finite.

    Examples
    --------
    >>> physics = CartesianMRI(torch.ones(3, 4, 5, dtype=torch.bool))
    >>> image = torch.randn(3, 4, 5, dtype=torch.complex64)
    >>> torch.allclose(physics.adjoint(physics.forward(image)), image, atol=1e-5)
    True
    """

    mask: Tensor
    coil_maps: Tensor | None = None

    def __post_init__(self) -> None:
        mask, maps = self.mask, self.coil_maps
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}, try mask != 0")
        if mask.ndim != 3 or not mask.numel():
            raise ValueError(f"mask: expected [T, H, W], got {list(mask.shape)}")
        sampled = mask.flatten(1).any(1)
        if not bool(sampled.all()):
            frame = int((~sampled).nonzero()[0])
            raise ValueError(f"mask: expected samples in every frame, got none in frame {frame}")
        if maps is None:
            return
        if not maps.is_complex():
            raise TypeError(f"coil_maps: expected complex, got {maps.dtype}")
        if maps.ndim != 3 or maps.shape[1:] != mask.shape[1:] or maps.device != mask.device:
            raise ValueError(
                f"coil_maps: expected [C, {mask.shape[1]}, {mask.shape[2]}] on {mask.device}, got "
                f"{list(maps.shape)} on {maps.device}"
            )
        if not bool(maps.isfinite().all()):
            raise ValueError("coil_maps: expected finite values, got NaN or infinity")

    def forward(self, image: Tensor) -> Tensor:
        """Return k-space, zero where nothing is sampled.

        Parameters
        ----------
        image : Tensor [..., T, H, W] complex

        Returns
        -------
        Tensor [..., T, H, W], or [..., C, T, H, W] with coil maps
        """
        if self.coil_maps is not None:
            image = image.unsqueeze(-4) * self.coil_maps[:, None]
        return torch.fft.fft2(image, norm="ortho").masked_fill_(self._unsampled, 0)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Return the image sequence [..., T, H, W] of k-space, samples outside the mask left out.

        Parameters
        ----------
        kspace : Tensor [..., T, H, W] complex, or [..., C, T, H, W] with coil maps
        """
        image = torch.fft.ifft2(kspace.masked_fill(self._unsampled, 0), norm="ortho")
        if self.coil_maps is not None:
            image = (image * self.coil_maps.conj()[:, None]).sum(-4)
        return image

    @cached_property
    def _unsampled(self) -> Tensor:
        return ~self.mask

    A = forward
    A_adjoint = adjoint

    def norm(self) -> float:
        """Return a bound of the largest singular value: 1 without coil maps."""
        if self.coil_maps is None:
            return 1.0
        return sqrt(float(self.coil_maps.abs().square().sum(0).max()))

    def measured(self, kspace: Tensor) -> Tensor:
        """Return k-space as a solver takes it: checked, and zero outside the mask.

        Parameters
        ----------
        kspace : Tensor [T, H, W] complex, or [C, T, H, W] with coil maps

        Raises
        ------
        TypeError
            If it is not complex, or not of the coil maps' type.
        ValueError
            If its shape or device does not fit, or a sample is not finite.
        """
        if not kspace.is_complex():
            raise TypeError(f"kspace: expected complex, got {kspace.dtype}")
        maps = self.coil_maps
        shape = self.mask.shape if maps is None else (len(maps), *self.mask.shape)
        if kspace.shape != shape or kspace.device != self.mask.device:
            raise ValueError(
                f"kspace: expected {list(shape)} on {self.mask.device}, got {list(kspace.shape)} "
                f"on {kspace.device}; try one sequence at a time"
            )
        if maps is not None and maps.dtype != kspace.dtype:
            raise TypeError(f"kspace: expected {maps.dtype} like coil_maps, got {kspace.dtype}")
        kspace = kspace.masked_fill(self._unsampled, 0)
        if not bool(kspace.isfinite().all()):
            raise ValueError("kspace: expected finite samples, got NaN or infinity")
        return kspace
