"""A convolution that stores, trains and moves its non-zero weights only."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from gossamer.kernels import SparseWeight, sparse_linear
from gossamer.layers.storage import SparseStorage

Pair = tuple[int, int]


class SparseConv2d(SparseStorage):
    """Convolution as a sparse matrix times the image's patches (im2col).

    A 1x1 kernel reads the image where it lies; any other first unfolds it, kh * kw times its
    memory. Grouped convolutions are refused: they are small, and sparse already.

    Parameters
    ----------
    weight : SparseWeight [out_channels, in_channels * kh * kw] float32
    bias : Tensor [out_channels], optional
    kernel_size, stride, padding, dilation : (int, int)
        As in torch.nn.Conv2d; zeros pad.

    Raises
    ------
    TypeError, ValueError
        If parts do not fit, or a conversion to another dtype than float32 is asked for.

    Examples
    --------
    >>> dense = torch.nn.Conv2d(4, 8, 3, padding=1)
    >>> layer = SparseConv2d.from_dense(dense, dense.weight.abs() > 0.1)
    >>> layer(torch.zeros(2, 4, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        weight: SparseWeight,
        bias: Tensor | None = None,
        *,
        kernel_size: Pair,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
    ) -> None:
        super().__init__(weight, bias)
        area = kernel_size[0] * kernel_size[1]
        self.out_channels, columns = weight.pattern.shape
        if area < 1 or columns % area:
            raise ValueError(
                f"expected a weight of in_channels * {area} columns for kernel {kernel_size}, "
                f"got {columns}"
            )
        self.in_channels = columns // area
        self.kernel_size, self.stride = kernel_size, stride
        self.padding, self.dilation = padding, dilation

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None) -> Self:
        """Copy what `mask` [out, in, kh, kw] keeps of a layer's weight, by default its non-zeros.

        Raises
        ------
        ValueError
            If the layer is grouped, or pads otherwise than with a number of zeros.
        """
        if conv.groups != 1:
            raise ValueError(f"expected one group, got {conv.groups}; leave this layer dense")
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"expected a number of zeros as padding, got {conv.padding!r} of mode "
                f"{conv.padding_mode!r}; try torch.nn.functional.pad before the layer"
            )
        if mask is not None and mask.shape != conv.weight.shape:
            raise ValueError(
                f"expected a mask of shape {list(conv.weight.shape)}, got {list(mask.shape)}"
            )
        flat = None if mask is None else mask.flatten(1)
        return cls(
            SparseWeight.from_dense(conv.weight.detach().flatten(1), flat),
            conv.bias,
            kernel_size=_pair(conv.kernel_size),
            stride=_pair(conv.stride),
            padding=_pair(conv.padding),
            dilation=_pair(conv.dilation),
        )

    def to_dense(self) -> nn.Conv2d:
        """Return the layer with its zeros, as a copy."""
        dense = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=self.bias is not None,
            device="meta",  # draws no random numbers
            dtype=self.values.dtype,
        ).to_empty(device=self.values.device)
        with torch.no_grad():
            dense.weight.copy_(self.weight.to_dense().view_as(dense.weight))
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
        return dense

    def forward(self, input: Tensor) -> Tensor:
        """Return [batch, out_channels, height, width] for `input` [batch, in_channels, h, w]."""
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ValueError(
                f"expected input of [batch, {self.in_channels}, height, width], got "
                f"{list(input.shape)}"
            )
        height, width = (self._extent(input.shape[2 + axis], axis) for axis in (0, 1))
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            patches = input[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            patches = unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
        output = sparse_linear(patches.mT, self.weight, self.bias)
        return output.mT.unflatten(2, (height, width))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"{super().extra_repr()}"
        )

    def _extent(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def _pair(sizes: tuple[int, ...]) -> Pair:
    height, width = sizes
    return height, width
