"""Permutations that gradients can move: Gumbel-Sinkhorn, and its straight-through rounding."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLOOR = -200.0  # of logarithms below their row's largest: no sum, nor its square, is lost


def gumbel_sinkhorn(
    scores: Tensor,
    *,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    iterations: int = 20,
) -> Tensor:
    """Turn scores into nearly doubly stochastic matrices.

    Rows and columns of ``exp((scores + noise) / temperature)`` are scaled to sum 1 in turn, in
    float64; what is more than 200 temperatures below its row's largest counts as 200.

    Based on "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (arXiv 1802.08665).

    Parameters
    ----------
    scores : Tensor [..., n, n] float
        Logarithms of how well item j suits place i.
    noise : Tensor [..., n, n], optional
        Gumbel noise for a random permutation; none for the most likely one.
    temperature : float
        The lower, the closer to a permutation, and the more iterations that takes.
    iterations : int

    Returns
    -------
    Tensor [..., n, n]
        Columns sum to 1; rows do the better the more iterations were made.

    Raises
    ------
    ValueError
        If scores are not square matrices, or the temperature or the iterations are not positive.

    Examples
    --------
    >>> gumbel_sinkhorn(torch.tensor([[9.0, 0.0], [8.0, 7.0]])).argmax(-1).tolist()
    [0, 1]
    """
    _check_square("scores", scores)
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}")
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    logs = ((scores if noise is None else scores + noise) / temperature).double()
    kernel = (logs - logs.detach().amax(-1, keepdim=True)).clamp_min(_FLOOR).exp()
    balanced: Tensor = _Balance.apply(kernel, iterations)  # pyright: ignore[reportAssignmentType]
    return balanced.to(scores.dtype)


def straight_through_permutation(soft: Tensor) -> Tensor:
    """Round to the permutation of largest overlap; gradients pass as if nothing was rounded.

    Parameters
    ----------
    soft : Tensor [..., n, n] float
        Of finite values, such as those of `gumbel_sinkhorn`.

    Returns
    -------
    Tensor [..., n, n]
        Exactly 0 and 1, one 1 in every row and column; its gradient is that of `soft`.

    Raises
    ------
    ValueError
        If `soft` does not hold square matrices.

    Examples
    --------
    >>> straight_through_permutation(torch.tensor([[0.6, 0.4], [0.6, 0.3]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    _check_square("soft", soft)
    hard = torch.zeros_like(soft).scatter_(-1, _assign(soft.detach()).unsqueeze(-1), 1.0)
    return straight_through(hard, soft)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the values of `hard` with the gradient of `soft`."""
    return hard + (soft - soft.detach())  # the bracket is exactly zero


def gumbel_noise(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return standard Gumbel noise of the dtype and on the device of `like`."""
    waiting = like.new_empty(shape).exponential_(generator=generator)
    return -waiting.clamp_min(torch.finfo(like.dtype).tiny).log()


class _Balance(torch.autograd.Function):
    """Scale rows and columns of positive matrices [..., n, n] to sum 1 in turn.

    Autograd would add up two outer products an iteration; here all come of two products.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, iterations: int) -> Tensor:
        columns = [torch.ones_like(kernel[..., :1])]
        rows: list[Tensor] = []
        for _ in range(iterations):
            rows.append(1 / (kernel @ columns[-1]))
            columns.append(1 / (kernel.mT @ rows[-1]))
        ctx.save_for_backward(kernel, torch.cat(rows, -1), torch.cat(columns, -1))
        return rows[-1] * kernel * columns[-1].mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        kernel, rows, columns = ctx.saved_tensors
        last_row, last_column = rows[..., -1:], columns[..., -1:]
        by_row = (grads[0] * kernel) @ last_column
        by_column = (grads[0] * kernel).mT @ last_row
        row_sums, column_sums = [], []  # gradients by the sums that are divided by
        for step in reversed(range(rows.shape[-1])):
            column_sums.append(-by_column * columns[..., step + 1 : step + 2].square())
            by_row = by_row + kernel @ column_sums[-1]
            row_sums.append(-by_row * rows[..., step : step + 1].square())
            by_column, by_row = kernel.mT @ row_sums[-1], torch.zeros_like(by_row)
        by_kernel = grads[0] * last_row * last_column.mT
        by_kernel += rows @ torch.cat(column_sums[::-1], -1).mT
        by_kernel += torch.cat(row_sums[::-1], -1) @ columns[..., :-1].mT
        return by_kernel, None


def _assign(gain: Tensor) -> Tensor:
    """Columns [..., n] of the rows' best assignment."""
    matrices = gain.reshape(-1, *gain.shape[-2:])
    columns = matrices.argmax(-1)
    taken = torch.zeros_like(columns).scatter_add_(-1, columns, torch.ones_like(columns))
    # Where every row's own best column is another one, that is the best assignment already.
    clash = (taken != 1).any(-1)
    if bool(clash.any()):
        columns[clash] = torch.from_numpy(_hungarian(matrices[clash].cpu().numpy())).to(columns)
    return columns.reshape(gain.shape[:-1])


def _hungarian(gains: NDArray) -> NDArray[np.int64]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("learned orders need SciPy: pip install 'gossamer[decisions]'") from error
    return np.stack([linear_sum_assignment(gain, maximize=True)[1] for gain in gains])


def _check_square(name: str, matrices: Tensor) -> None:
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"{name}: expected [..., n, n], got {tuple(matrices.shape)}")
