"""A linear layer that stores, trains and moves its non-zero weights only."""

from typing import Self

import torch
from torch import Tensor, nn

from gossamer.kernels import SparseWeight, sparse_linear
from gossamer.layers.storage import SparseStorage


class SparseLinear(SparseStorage):
    """``input @ weight.T + bias`` with a sparse weight [out_features, in_features].

    The parameter `values` holds the non-zeros, so that gradients and optimizer states are as small
    as the weight; nothing of the dense weight's size is made in a training step.

    Parameters
    ----------
    weight : SparseWeight [out_features, in_features] float32
    bias : Tensor [out_features], optional

    Raises
    ------
    TypeError, ValueError
        If the bias does not fit, or a conversion to another dtype than float32 is asked for
        (float64 runs the reference kernel, to check gradients with).

    Examples
    --------
    >>> dense = torch.nn.Linear(3, 2)
    >>> layer = SparseLinear.from_dense(dense, torch.eye(2, 3) > 0)
    >>> layer.values.shape, layer(torch.zeros(5, 3)).shape
    (torch.Size([2]), torch.Size([5, 2]))
    """

    def __init__(self, weight: SparseWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self.out_features, self.in_features = weight.pattern.shape

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | None = None) -> Self:
        """Copy what `mask` [out, in] keeps of a layer's weight, by default its non-zeros."""
        return cls(SparseWeight.from_dense(linear.weight.detach(), mask), linear.bias)

    def to_dense(self) -> nn.Linear:
        """Return the layer with its zeros, as a copy."""
        dense = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device="meta",  # draws no random numbers
            dtype=self.values.dtype,
        ).to_empty(device=self.values.device)
        with torch.no_grad():
            dense.weight.copy_(self.weight.to_dense())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out_features] for `input` [..., in_features]."""
        return sparse_linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"
