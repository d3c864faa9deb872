"""A convolution for inference with a packed sparse weight, on images stored channel by channel."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from gossamer.kernels import PackedWeight, pack, spmm
from gossamer.layers.packed_storage import UNCLAMPED, PackedStorage
from gossamer.patterns import WeightPattern

Pair = tuple[int, int]
STRIP_BYTES = 1 << 20  # of unfolded image at a time: it stays in the second-level cache


class PackedConv2d(PackedStorage):
    """Convolution, bias and clamp as one product of a packed weight with [N, C, H, W] images.

    The operation of "Fast Sparse ConvNets" (arXiv 1911.09723): weights are sparse, activations
    dense and channel by channel. A 1x1 kernel reads the image where it lies, or every stride-th
    position of it; any other unfolds a strip of rows at a time. Grouped convolutions are refused.

    Parameters
    ----------
    weight : PackedWeight [out_channels, in_channels * kh * kw]
    bias : Tensor [out_channels], optional
        Kept in float32.
    kernel_size, stride, dilation : (int, int)
        As in torch.nn.Conv2d.
    padding : (int, int, int, int)
        Columns of zeros left and right, rows of zeros above and below, as in torch.nn.ZeroPad2d.
    clamp : (float, float), default=(-inf, inf)
        Results outside are set to the nearer bound; ReLU6 is ``(0, 6)``.

    Raises
    ------
    TypeError, ValueError
        If parts do not fit, or a conversion to another dtype than the weight's is asked for.

    Examples
    --------
    >>> layer = PackedConv2d.from_dense(torch.nn.Conv2d(4, 8, 1), clamp=(0.0, 6.0))
    >>> layer(torch.zeros(2, 4, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        kernel_size: Pair = (1, 1),
        stride: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        clamp: tuple[float, float] = UNCLAMPED,
    ) -> None:
        super().__init__(weight, bias, clamp)
        area = kernel_size[0] * kernel_size[1]
        self.out_channels, columns = weight.shape
        if area < 1 or columns % area:
            raise ValueError(
                f"expected a weight of in_channels * {area} columns for kernel {kernel_size}, "
                f"got {columns}"
            )
        if min(padding) < 0:
            raise ValueError(f"expected padding of at least 0, got {padding}")
        self.in_channels = columns // area
        self.kernel_size, self.stride = kernel_size, stride
        self.padding, self.dilation = padding, dilation

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        pattern: WeightPattern | None = None,
        dtype: torch.dtype | None = None,
        *,
        clamp: tuple[float, float] = UNCLAMPED,
    ) -> Self:
        """Pack the non-zero weights of a layer; `pattern` is one of the weight [out, in * kh * kw].

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
        height, width = _pair(conv.padding)
        return cls(
            pack(conv.weight.flatten(1), pattern, dtype),
            conv.bias,
            kernel_size=_pair(conv.kernel_size),
            stride=_pair(conv.stride),
            padding=(width, width, height, height),
            dilation=_pair(conv.dilation),
            clamp=clamp,
        )

    def to_dense(self) -> nn.Module:
        """Return the layer with its zeros, as a copy; a clamp is left out.

        Returns
        -------
        nn.Conv2d
            After an nn.ZeroPad2d, in an nn.Sequential, where the padding has two sides.
        """
        left, right, top, bottom = self.padding
        even = left == right and top == bottom
        dense: nn.Conv2d = skip_init(  # draws no random numbers
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=(top, left) if even else 0,
            dilation=self.dilation,
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )  # pyright: ignore[reportAssignmentType]
        with torch.no_grad():
            dense.weight.copy_(self.weight.to_dense().view_as(dense.weight))
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
        return dense if even else nn.Sequential(nn.ZeroPad2d(self.padding), dense)

    def forward(self, input: Tensor) -> Tensor:
        """Return [batch, out_channels, height, width] for `input` [batch, in_channels, h, w]."""
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ValueError(
                f"expected input of [batch, {self.in_channels}, height, width], got "
                f"{list(input.shape)}"
            )
        height, width = self.output_size(*input.shape[2:])
        padded = F.pad(input, self.padding) if any(self.padding) else input
        if self.kernel_size == (1, 1):
            picked = padded[:, :, :: self.stride[0], :: self.stride[1]]
            return self._multiply(picked.flatten(2)).unflatten(2, (height, width))
        output = input.new_empty(len(input), self.out_channels, height, width)
        row_bytes = self.weight.shape[1] * width * input.element_size() * max(1, len(input))
        step = max(1, STRIP_BYTES // max(1, row_bytes))
        reach = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        for row in range(0, height, step):
            end = min(row + step, height)
            rows = padded[:, :, row * self.stride[0] : (end - 1) * self.stride[0] + reach]
            strip = F.unfold(rows, self.kernel_size, self.dilation, 0, self.stride)
            output[:, :, row:end] = self._multiply(strip).unflatten(2, (end - row, width))
        return output

    def output_size(self, height: int, width: int) -> Pair:
        """Return the height and width of what an image of that size becomes.

        Raises
        ------
        ValueError
            If the padded image is smaller than the kernel.
        """
        left, right, top, bottom = self.padding
        sizes = []
        for axis, size in ((0, height + top + bottom), (1, width + left + right)):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            if size < reach:
                raise ValueError(
                    f"expected an image of at least {reach} rows or columns, padding included, "
                    f"got {size}"
                )
            sizes.append((size - reach) // self.stride[axis] + 1)
        return sizes[0], sizes[1]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"{super().extra_repr()}"
        )

    def _multiply(self, dense: Tensor) -> Tensor:
        return spmm(self.weight, dense, bias=self.bias, clamp=self.clamp)


def _pair(sizes: tuple[int, ...]) -> Pair:
    height, width = sizes
    return height, width
