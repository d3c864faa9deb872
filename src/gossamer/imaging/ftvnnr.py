"""Low-rank sequences of piecewise smooth frames: the method that RDLEDM builds on."""

from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.primal_dual import primal_dual
from gossamer.imaging.reconstruction import Callback, DynamicReconstruction, check_weights
from gossamer.imaging.regularizers import NuclearNorm, TotalVariation

_STEP = 4.0  # authors' t1: primal step t1 / (1 + t1), dual step 1 / (8 t1)


def ftvnnr(
    kspace: Tensor,
    physics: Physics,
    *,
    lambda_s: float = 1e-3,
    mu_time: float = 2.0,
    n_iter: int = 200,
    tol: float = 1e-4,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Minimise ``|A X - y|^2 / 2 + lambda_s TV_space(X) + mu_time |X_casorati|_*``.

    Based on "An efficient algorithm for dynamic MRI using low-rank and total variation
    regularizations" (Yao, Xu, Huang & Huang, Medical Image Analysis 44, 2018), FTVNNR; defaults
    and steps are those of the authors' code.

    Parameters
    ----------
    kspace, physics, n_iter, tol, callback
        As for `rdledm`.
    lambda_s, mu_time : float
        Weights of total variation and nuclear norm, for data whose zero-filled image peaks at 255;
        0 leaves a term out.

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
    >>> bool((ftvnnr(physics.forward(image), physics).image - image).abs().max() < 0.1)
    True
    """
    check_weights(lambda_s=lambda_s, mu_time=mu_time)
    steepness = physics.norm() ** 2
    return primal_dual(
        kspace,
        physics,
        primal=[NuclearNorm(mu_time) if mu_time else None],
        dual=[TotalVariation(lambda_s)] if lambda_s else [],
        peak=255.0,
        sigma=1 / (8 * _STEP),
        tau=_STEP / (1 + _STEP * steepness),
        n_iter=n_iter,
        tol=tol,
        callback=callback,
    )
