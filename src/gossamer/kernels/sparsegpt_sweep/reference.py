"""The column sweep of one block, in plain PyTorch."""

from torch import Tensor

from gossamer.budgets import TopK
from gossamer.patterns import NM


def sweep_block(
    weight: Tensor, factor: Tensor, mask: Tensor, errors: Tensor, loss: Tensor, n: int, m: int
) -> None:
    """Prune the columns of a block in order, each error spread over those behind it; in place.

    Parameters
    ----------
    weight : Tensor [out, width]
        Becomes the pruned block.
    factor : Tensor [width, width]
        The block's diagonal part of the upper Cholesky factor of the inverse Hessian.
    mask : Tensor [out, width] bool
        What stays; written where `m` is not 0.
    errors : Tensor [out, width]
        Receives each column's error over the factor's diagonal.
    loss : Tensor [out]
        Grows by half the sum of the squared errors.
    n, m : int
        Weights kept of each group, chosen when the sweep reaches it; 0 and 0 for a given mask.
    """
    diagonal = factor.diagonal()
    for i in range(weight.shape[1]):
        if m and i % m == 0:
            scores = (weight[:, i : i + m] / diagonal[i : i + m]).abs()
            mask[:, i : i + m] = TopK(n).select(scores, NM(n, m))
        error = (weight[:, i] / diagonal[i]).masked_fill(mask[:, i], 0.0)
        errors[:, i] = error
        loss += 0.5 * error.square()
        weight[:, i + 1 :] -= error.outer(factor[i, i + 1 :])
        weight[:, i].masked_fill_(~mask[:, i], 0.0)
