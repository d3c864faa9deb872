"""The solver that the convex reconstructions share: Condat-Vu primal-dual splitting."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gossamer.imaging.mri import Physics
from gossamer.imaging.reconstruction import (
    Callback,
    DynamicReconstruction,
    check_iterations,
    relative_change,
)

OBJECTIVE_EVERY = 20  # iterations: it costs about as much as one of them
SIGMA = 0.04  # dual step, for images that peak at 1: lowers the objective of RDLEDM fastest
_MARGIN = 0.99  # of the longest step, which must not be reached
_LEAST_ITERATIONS = 10  # the start fits the data, and with duals of zero nothing pulls at first


class Primal(Protocol):
    """A penalty of one block, used through its proximal operator."""

    def value(self, x: Tensor) -> float: ...
    def prox(self, x: Tensor, step: float) -> Tensor: ...


class Dual(Protocol):
    """A penalty of a linear map of the first block, used through its conjugate."""

    @property
    def norm_squared(self) -> float: ...
    def value(self, x: Tensor) -> float: ...
    def start(self, x: Tensor) -> Tensor: ...
    def adjoint(self, dual: Tensor) -> Tensor: ...
    def ascend(self, dual: Tensor, x: Tensor, step: float) -> Tensor: ...


@torch.no_grad()
def primal_dual(
    kspace: Tensor,
    physics: Physics,
    *,
    primal: Sequence[Primal | None],
    dual: Sequence[Dual],
    peak: float = 1.0,
    sigma: float = SIGMA,
    tau: float | None = None,
    n_iter: int = 200,
    tol: float = 1e-4,
    callback: Callback | None = None,
) -> DynamicReconstruction:
    """Minimise ``|A(sum of blocks) - y|^2 / 2 + primal + dual`` penalties.

    L. Condat (2013), B. C. Vu (2013): a gradient step on the data term, the proximal operator of
    each block, then a step of every dual along ``2 x_new - x``. The first block is the image,
    started at the adjoint of the data; a second one, started at zero, is the error. Dual penalties
    bear on the first.

    Parameters
    ----------
    kspace : Tensor [T, H, W] complex, or [C, T, H, W] with coils
        One sequence.
    physics : Physics
    primal : sequence of penalties, or None for a block without one
        One a block, one or two.
    dual : sequence of penalties
    peak : float, default 1.0
        Largest magnitude of ``A* y`` that the penalties' weights are meant for: data are scaled to
        it, and the result is scaled back.
    sigma : float, default 0.04
        Dual step.
    tau : float, optional
        Primal step; None takes nearly the longest that is sure to converge.
    n_iter : int, default 200
    tol : float, default 1e-4
        Stop when the image's relative change is below it.
    callback : callable, optional

    Returns
    -------
    DynamicReconstruction

    Raises
    ------
    TypeError, ValueError
        If the data do not fit `physics`, the steps are too long to converge, or a setting is out
        of range.
    """
    kspace = physics.measured(kspace)
    check_iterations(n_iter, tol)
    steepness = len(primal) * physics.norm() ** 2 / 2
    coupling = sum(term.norm_squared for term in dual)
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma: expected above 0, got {sigma}")
    longest = 1 / (steepness + sigma * coupling)
    if tau is None:
        tau = _MARGIN * longest if dual else longest / 2  # without duals, the step that fits best
    if not 0 < tau < longest:
        raise ValueError(f"tau: expected less than {longest:.4g} to converge, got {tau:.4g}")

    start = physics.adjoint(kspace)
    scale = float(start.abs().max()) / peak or 1.0  # of all-zero data, any
    kspace = kspace / scale
    blocks = [start / scale, *(torch.zeros_like(start) for _ in primal[1:])]
    duals = [term.start(start) for term in dual]
    changes: list[float] = []
    objectives: list[float] = []
    converged = False
    while len(changes) < n_iter and not converged:
        residual = physics.forward(sum(blocks[1:], blocks[0])) - kspace
        if len(changes) % OBJECTIVE_EVERY == 0:
            penalties = [p.value(x) for p, x in zip(primal, blocks, strict=True) if p is not None]
            penalties += [term.value(blocks[0]) for term in dual]
            objectives.append(float(residual.abs().square().sum()) / 2 + sum(penalties))
        gradient = physics.adjoint(residual)
        pull = sum((term.adjoint(v) for term, v in zip(dual, duals, strict=True)), gradient)
        image, *errors = blocks
        blocks = [
            _prox(penalty, torch.sub(x, slope, alpha=tau), tau)
            for penalty, x, slope in zip(
                primal, blocks, [pull, *(gradient for _ in errors)], strict=True
            )
        ]
        ahead = torch.lerp(image, blocks[0], 2.0)
        duals = [
            term.ascend(variable, ahead, sigma) for term, variable in zip(dual, duals, strict=True)
        ]
        changes.append(relative_change(blocks[0], image))
        converged = changes[-1] < tol and len(changes) >= _LEAST_ITERATIONS
        if callback is not None:
            callback(len(changes) - 1, blocks[0] * scale)
    image, *errors = (block * scale for block in blocks)
    return DynamicReconstruction(
        image,
        error=errors[0] if errors else None,
        change=tuple(changes),
        objective=tuple(objectives),
        converged=converged,
    )


def _prox(penalty: Primal | None, x: Tensor, step: float) -> Tensor:
    return x if penalty is None else penalty.prox(x, step)
