"""A linear layer for inference with a packed sparse weight."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from gossamer.kernels import PackedWeight, pack, sparse_gemv, spmm
from gossamer.kernels.sparse_gemv import MAX_VECTORS
from gossamer.layers.packed_storage import UNCLAMPED, PackedStorage
from gossamer.patterns import WeightPattern


class PackedLinear(PackedStorage):
    """``(input @ weight.T + bias).clamp(*clamp)`` with a packed weight [out, in], without gradient.

    Up to 16 rows of input read the weight once, as decoding does (`sparse_gemv`); more go through
    `spmm`, which turns them into columns first.

    Parameters
    ----------
    weight : PackedWeight [out_features, in_features]
    bias : Tensor [out_features], optional
        Kept in float32.
    clamp : (float, float), default=(-inf, inf)
        Results outside are set to the nearer bound; ReLU is ``(0, inf)``.

    Raises
    ------
    TypeError, ValueError
        If parts do not fit, or a conversion to another dtype than the weight's is asked for.

    Examples
    --------
    >>> layer = PackedLinear.from_dense(torch.nn.Linear(3, 2))
    >>> layer.density(), layer(torch.zeros(5, 3)).shape
    (1.0, torch.Size([5, 2]))
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        clamp: tuple[float, float] = UNCLAMPED,
    ) -> None:
        super().__init__(weight, bias, clamp)
        self.out_features, self.in_features = weight.shape

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        pattern: WeightPattern | None = None,
        dtype: torch.dtype | None = None,
        *,
        clamp: tuple[float, float] = UNCLAMPED,
    ) -> Self:
        """Pack the non-zero weights of a layer; see `gossamer.kernels.pack`."""
        return cls(pack(linear.weight, pattern, dtype), linear.bias, clamp=clamp)

    def to_dense(self) -> nn.Linear:
        """Return the layer with its zeros, as a copy; a clamp is left out."""
        dense: nn.Linear = skip_init(  # draws no random numbers
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )  # pyright: ignore[reportAssignmentType]
        with torch.no_grad():
            dense.weight.copy_(self.weight.to_dense())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out_features] for `input` [..., in_features]."""
        if not input.ndim or input.shape[-1] != self.in_features:
            raise ValueError(
                f"expected input of [..., {self.in_features}], got {list(input.shape)}"
            )
        if not 0 < math.prod(input.shape[:-1]) <= MAX_VECTORS:
            columns = input.reshape(-1, self.in_features).mT
            product = spmm(self.weight, columns, bias=self.bias, clamp=self.clamp).mT
            return product.reshape(*input.shape[:-1], self.out_features)
        product = sparse_gemv(self.weight, input)
        if self.bias is not None:
            product = product + self.bias.to(product.dtype)
        if self.clamp != UNCLAMPED:
            product = product.clamp(*self.clamp)
        return product

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"
