"""Sequences that change seldom: total variation over time alone."""

from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.primal_dual import primal_dual
from gossamer.imaging.reconstruction import Callback, DynamicReconstruction, check_weights
from gossamer.imaging.regularizers import TIME, TotalVariation


def temporal_tv(
    kspace: Tensor,
    physics: Physics,
    *,
    lambda_t: float = 0.01,
    n_iter: int = 200,
    tol: float = 1e-4,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Minimise ``|A X - y|^2 / 2 + lambda_t TV_time(X)``.

    The objective of GRASP (Feng et al., Magnetic Resonance in Medicine 72, 2014), on a Cartesian
    grid.

    Parameters
    ----------
    kspace, physics, n_iter, tol, callback
        As for `rdledm`.
    lambda_t : float
        Weight, for data whose zero-filled image peaks at 1.

    Returns
    -------
    DynamicReconstruction

    Raises
    ------
    TypeError, ValueError
        As for `rdledm`.

    Examples
    --------
    >>> import torch
    >>> from gossamer.imaging import CartesianMRI, masks
    >>> image = torch.ones(6, 16, 16, dtype=torch.complex64)
    >>> physics = CartesianMRI(masks.cartesian(6, 16, 16, acceleration=2, centre=4, seed=0))
    >>> bool((temporal_tv(physics.forward(image), physics).image - image).abs().max() < 0.2)
    True
    """
    check_weights(lambda_t=lambda_t)
    if kspace.shape[-3] < 2:
        raise ValueError(f"kspace: expected two frames or more, got {kspace.shape[-3]}")
    return primal_dual(
        kspace,
        physics,
        primal=[None],
        dual=[TotalVariation(lambda_t, TIME)] if lambda_t else [],
        n_iter=n_iter,
        tol=tol,
        callback=callback,
    )
