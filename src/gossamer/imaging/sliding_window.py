"""Samples borrowed from the frames nearest in time."""

import torch
from torch import Tensor

from gossamer.imaging.mri import CartesianMRI
from gossamer.imaging.reconstruction import DynamicReconstruction


def sliding_window(kspace: Tensor, physics: CartesianMRI) -> DynamicReconstruction:
    """Fill each missing sample with the one that was taken there nearest in time.

    Of two equally near the earlier one; a place that no frame samples stays zero. Also known as
    view sharing.

    Parameters
    ----------
    kspace : Tensor [T, H, W] complex, or [C, T, H, W] with coils
    physics : CartesianMRI

    Returns
    -------
    DynamicReconstruction

    Raises
    ------
    TypeError, ValueError
        If the data do not fit `physics` or are not finite.

    Examples
    --------
    >>> from gossamer.imaging import CartesianMRI, masks
    >>> physics = CartesianMRI(masks.cartesian(8, 16, 16, acceleration=2, centre=4, seed=0))
    >>> image = torch.ones(8, 16, 16, dtype=torch.complex64)
    >>> torch.allclose(sliding_window(physics.forward(image), physics).image, image, atol=1e-5)
    True
    """
    kspace = physics.measured(kspace)
    mask, frames = physics.mask, len(physics.mask)
    time = torch.arange(frames, device=mask.device)
    away = (time[:, None] - time).abs()  # [to, from]
    order = (2 * away + (time[:, None] < time)).argsort(1)  # [to, nearest first]
    filled, known = kspace, mask
    for nearest in order.T[1:]:
        known_there = mask[nearest] & ~known
        filled = torch.where(known_there, kspace[..., nearest, :, :], filled)
        known = known | known_there
    everywhere = CartesianMRI(torch.ones_like(mask), physics.coil_maps)
    return DynamicReconstruction(everywhere.adjoint(filled))
