"""Permutations that gradients can move: Gumbel-Sinkhorn, and its straight-through rounding."""

import torch
from torch import Tensor


def gumbel_sinkhorn(
    scores: Tensor,
    *,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    iterations: int = 20,
) -> Tensor:
    """Turn scores into nearly doubly stochastic matrices.

    Rows and columns of ``exp((scores + noise) / temperature)`` are scaled to sum 1 in turn. Based
    on "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (arXiv 1802.08665).

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
    logs = (scores if noise is None else scores + noise) / temperature
    for _ in range(iterations):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


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


def _assign(gain: Tensor) -> Tensor:
    """Columns [..., n] of the rows' best assignment."""
    matrices = gain.reshape(-1, *gain.shape[-2:])
    columns = matrices.argmax(-1)
    taken = torch.zeros_like(columns).scatter_add_(-1, columns, torch.ones_like(columns))
    # Where every row's own best column is another one, that is the best assignment already.
    for index in (taken != 1).any(-1).nonzero()[:, 0].tolist():
        columns[index] = _hungarian(matrices[index])
    return columns.reshape(gain.shape[:-1])


def _hungarian(gain: Tensor) -> Tensor:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("learned orders need SciPy: pip install 'gossamer[decisions]'") from error
    return torch.as_tensor(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1])


def _check_square(name: str, matrices: Tensor) -> None:
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"{name}: expected [..., n, n], got {tuple(matrices.shape)}")
