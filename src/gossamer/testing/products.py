"""What a product with a sparse weight must satisfy: a bound for every element."""

import torch
from torch import Tensor

from gossamer.testing.bounds import TINY

ROUNDING = 2.0**-24  # of float32, in which sums are kept


def check_product(
    actual: Tensor, weight: Tensor, dense: Tensor, *, bias: Tensor | None = None
) -> float:
    """Check weight @ dense, element by element, against float64.

    With k non-zeros in a row, a float32 sum in any order is off by at most gamma_{k+2} (|W||X|),
    gamma_k = k u / (1 - k u); a result in a lower precision is rounded once more. A sum of nothing
    is exactly zero.

    Parameters
    ----------
    actual : Tensor [..., M, P]
    weight : Tensor [M, K]
        Dense.
    dense : Tensor [..., K, P]
    bias : Tensor [M], optional
        One more term of every sum.

    Returns
    -------
    float
        The largest error as a share of its bound.

    Raises
    ------
    AssertionError
        Naming the worst element.

    Examples
    --------
    >>> check_product(torch.tensor([[6.0]]), torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    0.0
    """
    weight, dense = weight.double(), dense.double()
    extra = 0.0 if bias is None else bias.double()[:, None]
    exact = weight @ dense + extra
    if actual.shape != exact.shape:
        raise AssertionError(f"expected a product of shape {exact.shape}, got {actual.shape}")
    terms = ((weight != 0).sum(1, keepdim=True) + 2 + (bias is not None)) * ROUNDING
    sizes = weight.abs() @ dense.abs() + abs(extra)
    bound = terms / (1 - terms) * sizes
    if actual.dtype != torch.float32:
        bound = bound + torch.finfo(actual.dtype).eps * (exact.abs() + bound)
    bound = torch.where(sizes == 0, 0.0, bound + TINY)
    error = (actual.double() - exact).abs().nan_to_num(nan=torch.inf)
    if bool((error > bound).any()):
        worst = (error - bound).argmax()
        place = [int(i) for i in torch.unravel_index(worst, error.shape)]
        found, wanted = (float(part.flatten()[worst]) for part in (actual, exact))
        raise AssertionError(
            f"expected {wanted!r} within {float(bound.flatten()[worst]):.3g} at {place}, "
            f"got {found!r}"
        )
    return float((error / bound).nan_to_num(nan=0.0).max()) if error.numel() else 0.0
