"""A dense linear layer that decodes from its weights in a narrower, lossless form."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.kernels import backend
from gossamer.kernels.library import dispatched
from gossamer.kernels.lossless_gemv import LosslessWeight, lossless_gemv, pack_lossless
from gossamer.kernels.sparse_gemv import MAX_VECTORS


class LosslessLinear(nn.Linear):
    """``input @ weight.T + bias``; up to 16 rows of input read the weight in a lossless form.

    The parameters stay what they are, so names, states and files do. The lossless form is made
    when it is first needed, beside them, and made anew when they change. Everything but float32
    inference on the CPU goes through PyTorch.

    Examples
    --------
    >>> layer = torch.nn.Linear(64, 8, bias=False).requires_grad_(False)
    >>> layer.__class__ = LosslessLinear  # what attaching an attention method does
    >>> layer.lossless_weight(), layer(torch.zeros(1, 64)).shape
    (LosslessWeight(form='float32', columns=64), torch.Size([1, 8]))
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out_features] for `input` [..., in_features]."""
        weight = self.lossless_weight() if is_decoding(input) else None
        if weight is None:
            return super().forward(input)
        product = lossless_gemv(weight, input)
        return product if self.bias is None else product + self.bias

    def lossless_weight(self) -> LosslessWeight | None:
        """Return the weight's lossless form; None where PyTorch must see the parameters.

        A change of ``weight.data`` in place leaves no trace and is not noticed.
        """
        weight = self.weight
        if torch.is_grad_enabled() and (
            weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        ):
            return None
        if weight.dtype is not torch.float32 or not weight.is_cpu or weight.is_inference():
            return None
        mark, taken = self.mark(), self.__dict__.get("_taken")
        if taken is None or taken[0] != mark:  # the weight is kept: none else may get its id
            taken = self.__dict__["_taken"] = mark, weight, pack_lossless(weight)
        return taken[2]

    def mark(self) -> tuple[int, int, int, bool]:
        """Return what changes whenever the layer's product does."""
        parameters: dict[str, Any] = self._parameters  # whose attributes cost a lookup each
        weight = parameters["weight"]
        version = 0 if weight.is_inference() else weight._version
        return id(weight), weight.data_ptr(), version, parameters["bias"] is None

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without the lossless form."""
        return {name: value for name, value in self.__dict__.items() if name != "_taken"}


def is_decoding(input: Tensor) -> bool:
    """Whether native kernels can stand in for PyTorch's product with `input` [..., in_features].

    That takes few rows of float32 on the CPU, and nobody who wants gradients, another type or to
    trace what is called.
    """
    return (
        bool(input.ndim)
        and 1 <= math.prod(input.shape[:-1]) <= MAX_VECTORS
        and input.dtype is torch.float32
        and input.is_cpu
        and not (torch.is_grad_enabled() and input.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and backend.native() is not None
        and not dispatched()
    )
