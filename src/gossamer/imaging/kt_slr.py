"""Sequences of low rank, by a penalty nearer to the rank than the nuclear norm, and smooth."""

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.proximal import lengths, shrink_singular_values
from gossamer.imaging.reconstruction import (
    Callback,
    DynamicReconstruction,
    check_weights,
    relative_change,
)
from gossamer.imaging.regularizers import CASORATI
from gossamer.kernels import finite_differences, tv_adjoint

DIMS = (-3, -2, -1)
_GROWTH = 25.0  # of the couplings, from one round to the next


@torch.no_grad()
def kt_slr(
    kspace: Tensor,
    physics: Physics,
    *,
    mu: float = 1e-3,
    lambda_st: float = 1e-3,
    p: float = 0.1,
    rounds: int = 4,
    inner: int = 10,
    cg_steps: int = 5,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Minimise ``|A X - y|^2 / 2 + mu sum(s^p) / p + lambda_st TV_space_time(X)``.

    s are the singular values of frames by pixels. Alternating directions: s are thresholded by
    ``s^(p - 1)`` over the coupling, differences by its inverse, and X follows by conjugate
    gradients; couplings start at 1 and grow from round to round. Not convex.

    Based on "Accelerated dynamic MRI exploiting sparsity and low-rank structure: k-t SLR" (Lingala,
    Hu, DiBella & Jacob, IEEE Transactions on Medical Imaging 30, 2011). Weights and rounds are
    ours: the authors tune them for each data set.

    Parameters
    ----------
    kspace, physics, callback
        As for `rdledm`.
    mu, lambda_st : float
        Weights, for data whose zero-filled image peaks at 1; 0 leaves a term out.
    p : float
        Between 0 and 1, 0 excluded (paper: 0.1).
    rounds, inner, cg_steps : int
        Couplings tried, alternations for each, and conjugate gradient steps for each of those.

    Returns
    -------
    DynamicReconstruction

    Raises
    ------
    TypeError, ValueError
        As for `rdledm`.

    Examples
    --------
    >>> from gossamer.imaging import CartesianMRI, masks
    >>> image = torch.ones(6, 16, 16, dtype=torch.complex64)
    >>> physics = CartesianMRI(masks.cartesian(6, 16, 16, acceleration=2, centre=4, seed=0))
    >>> bool((kt_slr(physics.forward(image), physics).image - image).abs().max() < 0.1)
    True
    """
    kspace = physics.measured(kspace)
    check_weights(mu=mu, lambda_st=lambda_st)
    if not 0 < p <= 1:
        raise ValueError(f"p: expected above 0 and at most 1, got {p}")
    if min(rounds, inner, cg_steps) < 1:
        raise ValueError(
            f"expected rounds, inner and cg_steps of at least 1, got {rounds}, {inner}, {cg_steps}"
        )
    start = physics.adjoint(kspace)
    scale = float(start.abs().max()) or 1.0
    start = start / scale
    image, rank_gap = start, torch.zeros_like(start)
    edge_gap = start.new_zeros(len(DIMS), *start.shape)
    changes: list[float] = []
    for coupling in (_GROWTH**level for level in range(rounds)):
        for _ in range(inner):
            low = shrink_singular_values(
                image + rank_gap,
                lambda s: (s - s.clamp(min=1e-30) ** (p - 1) / coupling).clamp(min=0),  # noqa: B023
                dim=CASORATI,
            )
            edges = _shrink(finite_differences(image, DIMS) + edge_gap, 1 / coupling)

            def normal(x: Tensor) -> Tensor:
                smooth = tv_adjoint(finite_differences(x, DIMS), dims=DIMS)
                pull = coupling * (mu * x + lambda_st * smooth)  # noqa: B023
                return physics.adjoint(physics.forward(x)) + pull

            wanted = mu * (low - rank_gap) + lambda_st * tv_adjoint(edges - edge_gap, dims=DIMS)
            before = image
            image = _conjugate_gradients(normal, start + coupling * wanted, image, cg_steps)
            rank_gap = rank_gap + image - low
            edge_gap = edge_gap + finite_differences(image, DIMS) - edges
            changes.append(relative_change(image, before))
            if callback is not None:
                callback(len(changes) - 1, image * scale)
        rank_gap, edge_gap = rank_gap / _GROWTH, edge_gap / _GROWTH  # multipliers over coupling
    return DynamicReconstruction(image * scale, change=tuple(changes), converged=False)


def _shrink(edges: Tensor, threshold: float) -> Tensor:
    """Shorten every pixel's vector of differences."""
    sizes = lengths(edges)
    return edges * ((sizes - threshold).clamp(min=0) / sizes.clamp(min=1e-30))


def _conjugate_gradients(
    normal: Callable[[Tensor], Tensor], wanted: Tensor, x: Tensor, steps: int
) -> Tensor:
    """Improve x towards ``normal(x) = wanted``."""
    residual = wanted - normal(x)
    direction, size = residual, _square(residual)
    solved = torch.finfo(x.dtype).eps ** 2 * _square(wanted)
    for _ in range(steps):
        if size <= solved:
            break
        bent = normal(direction)
        length = size / torch.vdot(direction.flatten(), bent.flatten()).real
        x, residual = x + length * direction, residual - length * bent
        former, size = size, _square(residual)
        direction = residual + size / former * direction
    return x


def _square(x: Tensor) -> Tensor:
    return torch.vdot(x.flatten(), x.flatten()).real
