"""Low-rank background plus dynamics that few temporal frequencies carry."""

import torch
from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.proximal import shrink_singular_values, soft
from gossamer.imaging.reconstruction import (
    Callback,
    DynamicReconstruction,
    check_iterations,
    check_weights,
    relative_change,
)
from gossamer.imaging.regularizers import CASORATI


@torch.no_grad()
def l_plus_s(
    kspace: Tensor,
    physics: Physics,
    *,
    lambda_l: float = 0.01,
    lambda_s: float = 0.0025,
    n_iter: int = 50,
    tol: float = 2.5e-3,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Split a sequence into a low-rank L and an S that is sparse over temporal frequencies.

    Proximal gradient steps on ``|A(L + S) - y|^2 / 2``: singular values of L lose `lambda_l` times
    the largest of them, temporal frequencies of S lose `lambda_s` times the zero-filled image's
    peak.

    Based on "Low-rank plus sparse matrix decomposition for accelerated dynamic MRI with separation
    of background and dynamic components" (Otazo, Candes & Sodickson, Magnetic Resonance in Medicine
    73, 2015); defaults are those of the authors' cardiac cine example with a stationary background
    (0.0025 and 0.00125 for a background that moves).

    Parameters
    ----------
    kspace, physics, n_iter, tol, callback
        As for `rdledm`.
    lambda_l, lambda_s : float
        Thresholds, as shares of the largest singular value and of the peak.

    Returns
    -------
    DynamicReconstruction
        `image` is L + S, `dynamic` is S.

    Raises
    ------
    TypeError, ValueError
        As for `rdledm`.

    Examples
    --------
    >>> from gossamer.imaging import CartesianMRI, masks
    >>> image = torch.ones(6, 16, 16, dtype=torch.complex64)
    >>> physics = CartesianMRI(masks.cartesian(6, 16, 16, acceleration=2, centre=4, seed=0))
    >>> bool((l_plus_s(physics.forward(image), physics).image - image).abs().max() < 0.1)
    True
    """
    kspace = physics.measured(kspace)
    check_weights(lambda_l=lambda_l, lambda_s=lambda_s)
    check_iterations(n_iter, tol)
    step = 1 / physics.norm() ** 2
    both = physics.adjoint(kspace) * step
    low, sparse = both, torch.zeros_like(both)
    threshold = lambda_s * float(both.abs().max())
    changes: list[float] = []
    while len(changes) < n_iter and not (changes and changes[-1] < tol):
        before, former = both, low
        low = shrink_singular_values(
            both - sparse, lambda s: (s - lambda_l * s[-1]).clamp(min=0), dim=CASORATI
        )
        waves = torch.fft.fft(both - former, dim=CASORATI, norm="ortho")
        sparse = torch.fft.ifft(soft(waves, threshold), dim=CASORATI, norm="ortho")
        residual = physics.forward(low + sparse) - kspace
        both = low + sparse - step * physics.adjoint(residual)
        changes.append(relative_change(both, before))
        if callback is not None:
            callback(len(changes) - 1, low + sparse)
    return DynamicReconstruction(
        low + sparse, dynamic=sparse, change=tuple(changes), converged=changes[-1] < tol
    )
