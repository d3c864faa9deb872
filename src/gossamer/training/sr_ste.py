"""SR-STE: N of every M weights kept, chosen anew at every forward pass."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer.patterns import NM
from gossamer.training.base import ProjectedTraining
from gossamer.training.nm import check_nm_layer, nm_mask

DecayIn = Literal["gradient", "weight"]


@dataclass(frozen=True)
class SRSTE(ProjectedTraining):
    """Train a dense weight W and compute with the `n` largest of every `m`, along the inputs.

    With E the mask of what is kept and g the gradient of the loss with respect to ``W * E``, the
    optimizer gets ``g + decay * (1 - E) * W`` for all of W: dropped weights go on learning, and
    are pulled to zero, so that the mask settles. ``decay=0`` is the plain straight-through
    estimator.

    Based on "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch"
    (arXiv 2102.04010). There all convolutions are sparse and the last linear layer is dense: name
    it in `attach`'s `skip`.

    Limits: training costs what dense training does; the speed comes afterwards, from
    ``gossamer.layers.PackedLinear.from_dense(layer, NM(2, 4))``. The decay joins the gradient once
    a step, after clipping, unscaling and all-reduce.

    Parameters
    ----------
    n, m : int, default 2 and 4
        Weights kept of every `m` consecutive input features or channels; `m` divides them.
    decay : float, default 2e-4
        Pull on dropped weights, the paper's best. Negative values push them away.
    decay_in : {"gradient", "weight"}, default "gradient"
        Whether the pull passes through the optimizer, as in the paper, or shrinks dropped weights
        by ``lr * decay`` beside it, which suits Adam (the STEP paper reports a loss otherwise).

    Examples
    --------
    >>> SRSTE(1, 2).mask(torch.tensor([[3.0, -4.0, 0.0, 0.0]])).tolist()
    [[False, True, True, False]]
    """

    n: int = 2
    m: int = 4
    decay: float = 2e-4
    decay_in: DecayIn = "gradient"

    def __post_init__(self) -> None:
        NM(self.n, self.m)
        if not abs(self.decay) < torch.inf:
            raise ValueError(f"expected a finite decay, got {self.decay}")
        if self.decay_in not in get_args(DecayIn):
            raise ValueError(
                f"expected decay_in to be 'gradient' or 'weight', got {self.decay_in!r}"
            )

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        check_nm_layer(name, shape, self.m)

    def mask(self, weight: Tensor) -> Tensor:
        return nm_mask(weight, self.n, self.m)

    def regularize(self, weight: Tensor, mask: Tensor, lr: float) -> None:
        if self.decay_in == "weight":
            weight.sub_(weight.masked_fill(mask, 0), alpha=lr * self.decay)
        elif weight.grad is not None:
            weight.grad.add_(weight.masked_fill(mask, 0), alpha=self.decay)
