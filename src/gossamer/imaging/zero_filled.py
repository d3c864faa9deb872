"""The reconstruction that knows nothing of images: the adjoint of the data."""

from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.reconstruction import DynamicReconstruction


def zero_filled(kspace: Tensor, physics: Physics) -> DynamicReconstruction:
    """Take what was not sampled for zero: the adjoint of the data.

    Parameters
    ----------
    kspace : Tensor [T, H, W] complex, or [C, T, H, W] with coils
    physics : Physics

    Returns
    -------
    DynamicReconstruction

    Raises
    ------
    TypeError, ValueError
        If the data do not fit `physics` or are not finite.

    Examples
    --------
    >>> import torch
    >>> from gossamer.imaging import CartesianMRI
    >>> physics = CartesianMRI(torch.ones(2, 4, 4, dtype=torch.bool))
    >>> image = torch.ones(2, 4, 4, dtype=torch.complex64)
    >>> torch.allclose(zero_filled(physics.forward(image), physics).image, image)
    True
    """
    return DynamicReconstruction(physics.adjoint(physics.measured(kspace)))
