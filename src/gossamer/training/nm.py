"""The choice of N of every M weights that N:M methods share."""

import torch
from torch import Tensor

from gossamer.patterns import NM

MOST_COMPARED = 8  # in a group; pairs grow with its square


def nm_mask(weight: Tensor, n: int, m: int, *, dim: int = 1) -> Tensor:
    """Keep the `n` largest of every `m` consecutive weights along `dim`; ties go to the first.

    Parameters
    ----------
    weight : Tensor [out, in, ...]
        Without NaN.
    n, m : int
        With 1 <= n <= m; `m` divides the size of `dim`.
    dim : int, default 1
        The input features or channels.

    Returns
    -------
    bool Tensor [out, in, ...]

    Raises
    ------
    TypeError
        If the weight is not of real floating-point numbers.
    ValueError
        If `n`, `m` and the shape do not fit.

    Examples
    --------
    >>> nm_mask(torch.tensor([[1.0, -2.0, 3.0, 0.5]]), 2, 4).tolist()
    [[False, True, True, False]]
    """
    NM(n, m)
    if not weight.is_floating_point():
        raise TypeError(f"expected floating-point weights, got {weight.dtype}; try .float()")
    if not -weight.ndim <= dim < weight.ndim or weight.shape[dim] % m:
        raise ValueError(f"expected a size that {m} divides in dim {dim}, got {list(weight.shape)}")
    groups = weight.detach().abs().movedim(dim, -1).unflatten(-1, (weight.shape[dim] // m, m))
    chosen = _by_comparison(groups, n) if m <= MOST_COMPARED else _one_by_one(groups, n)
    return chosen.flatten(-2).movedim(-1, dim)


def _by_comparison(groups: Tensor, n: int) -> Tensor:
    """Keep what fewer than n others precede: all pairs of a group compared, many at a time."""
    members = [member.contiguous() for member in groups.unbind(-1)]
    ranks = [torch.zeros_like(member, dtype=torch.int8) for member in members]
    for j, later in enumerate(members):
        for i in range(j):
            wins = later > members[i]  # a tie is the earlier one's
            ranks[i] += wins
            ranks[j] += ~wins
    return torch.stack([rank < n for rank in ranks], -1)


def _one_by_one(groups: Tensor, n: int) -> Tensor:
    """Take the largest out n times; argmax returns the first of equals."""
    left = groups.clone(memory_format=torch.contiguous_format)
    mask = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(n):
        largest = left.argmax(-1, keepdim=True)
        mask.scatter_(-1, largest, True)
        left.scatter_(-1, largest, -1.0)
    return mask


def check_nm_layer(name: str, shape: tuple[int, ...], m: int) -> None:
    """Refuse a weight [out, in, ...] whose inputs `m` does not divide; groups never cross rows."""
    if shape[1] % m:
        raise ValueError(
            f"expected inputs that {m} divides in {name!r}, got {shape[1]}; try skip=[{name!r}]"
        )
