"""Low-rank, piecewise smooth sequences apart from sparse errors: double TV and nuclear norm."""

from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.primal_dual import primal_dual
from gossamer.imaging.reconstruction import Callback, DynamicReconstruction, check_weights
from gossamer.imaging.regularizers import (
    CASORATI,
    ROWS,
    SPACE,
    TIME,
    Magnitude,
    NuclearNorm,
    TotalVariation,
)


def rdledm(
    kspace: Tensor,
    physics: Physics,
    *,
    lambda_s: float = 2e-3,
    lambda_t: float = 6e-3,
    mu_time: float = 0.1,
    mu_space: float = 0.05,
    gamma: float = 0.01,
    n_iter: int = 200,
    tol: float = 1e-4,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Reconstruct a sequence X apart from an error image E that is sparse.

    Minimises ``|A(X + E) - y|^2 / 2 + lambda_s TV_space(X) + lambda_t TV_time(X)
    + mu_time |X_casorati|_* + mu_space |X_rows|_* + gamma |E|_1`` by `primal_dual`: X is low-rank
    and changes in few places of space and time; E takes what is neither, such as flashes and
    spikes. On data without any, E costs some accuracy: leave it out with ``gamma=0``.

    Based on "Robust Depth Linear Error Decomposition with Double Total Variation and Nuclear Norm
    for Dynamic MRI Reconstruction" (arXiv 2310.14934). **Only its abstract could be read.** It
    names the linear decomposition with an error in the image domain, two total variations, two
    nuclear norms and a primal-dual algorithm. Which unfoldings and norms they are, the weights and
    the steps are a reconstruction from those words and from the method it builds on (`ftvnnr`).

    Parameters
    ----------
    kspace : Tensor [T, H, W] complex64 or complex128, or [C, T, H, W] with coils
        One sequence; samples outside the mask are ignored.
    physics : Physics
        Such as `CartesianMRI`.
    lambda_s, lambda_t : float
        Weights of the isotropic total variation of frames and of the total variation over time.
    mu_time, mu_space : float
        Weights of the nuclear norms of frames by pixels and of image rows by everything else. They
        suit some 80,000 pixels; singular values grow with the square root of their number.
    gamma : float
        Weight of the error's magnitudes. As every weight, it is for data whose zero-filled image
        peaks at 1 (data are scaled to that and back; defaults: ours), and 0 leaves its term out.
    n_iter : int
    tol : float
        Stop when the image's relative change is below it.
    callback : callable, optional
        Called with each iteration and its image.

    Returns
    -------
    DynamicReconstruction
        `image` is X alone; `error` is E, None without one.

    Raises
    ------
    TypeError
        If data are not complex.
    ValueError
        If data do not fit `physics` or are not finite, a weight is negative, or there is no time
        to vary over.

    Examples
    --------
    >>> import torch
    >>> from gossamer.imaging import CartesianMRI, masks
    >>> image = torch.ones(6, 16, 16, dtype=torch.complex64)
    >>> physics = CartesianMRI(masks.cartesian(6, 16, 16, acceleration=2, centre=4, seed=0))
    >>> found = rdledm(physics.forward(image), physics)
    >>> bool((found.image - image).abs().max() < 0.1)
    True
    """
    check_weights(
        lambda_s=lambda_s, lambda_t=lambda_t, mu_time=mu_time, mu_space=mu_space, gamma=gamma
    )
    if lambda_t and kspace.shape[-3] < 2:
        raise ValueError(f"lambda_t: expected 0 for a single frame, got {lambda_t}")
    image = NuclearNorm(mu_time, CASORATI) if mu_time else None
    dual = (
        TotalVariation(lambda_s, SPACE),
        TotalVariation(lambda_t, TIME),
        NuclearNorm(mu_space, ROWS),
    )
    return primal_dual(
        kspace,
        physics,
        primal=(image, Magnitude(gamma)) if gamma else (image,),
        dual=[term for term in dual if term.weight],
        n_iter=n_iter,
        tol=tol,
        callback=callback,
    )
