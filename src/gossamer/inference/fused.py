"""Dense layers with what surrounds them folded in: padding before, batch norm and clamp after."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.kernels import depthwise_conv

Clamp = tuple[float, float]
Padding = tuple[int, int, int, int]  # left, right, top, bottom
UNCLAMPED: Clamp = (-math.inf, math.inf)


class FusedLayer(nn.Module):
    """A weight [out, ...] and a bias, copied, and the bounds that results are clamped to."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.clamp: Clamp = UNCLAMPED

    def fold_norm(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Let the weights do what a batch norm with running statistics does to the output."""
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError("expected a batch norm with running statistics, got one without")
        scale = (variance.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -mean.double() if self.bias is None else self.bias.double() - mean.double()
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach().double()
        wide = self.weight.double() * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        self.weight, self.bias = wide.to(self.weight.dtype), shift.to(self.weight.dtype)

    def fold_clamp(self, low: float, high: float) -> None:
        """Clamp what is clamped already once more."""
        before = self.clamp
        self.clamp = (min(max(before[0], low), high), max(min(before[1], high), low))

    def clamped(self, output: Tensor) -> Tensor:
        """Clamp `output` in place."""
        return output if self.clamp == UNCLAMPED else output.clamp_(*self.clamp)


class FusedLinear(FusedLayer):
    """A dense linear layer and its clamp."""

    @classmethod
    def from_module(cls, linear: nn.Linear) -> Self:
        """Copy a layer."""
        return cls(linear.weight, linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] for `input` [..., in]."""
        return self.clamped(F.linear(input, self.weight, self.bias))


class FusedConv2d(FusedLayer):
    """A dense convolution, zeros around its input and the clamp of its output.

    Parameters
    ----------
    conv : nn.Conv2d
        Its weights are copied; padded with a number of zeros.
    padding : (int, int, int, int)
        Further zeros: left, right, top, bottom.
    """

    def __init__(self, conv: nn.Conv2d, padding: Padding = (0, 0, 0, 0)) -> None:
        super().__init__(conv.weight, conv.bias)
        height, width = _own_padding(conv)
        own = (width, width, height, height)
        left, right, top, bottom = (a + b for a, b in zip(own, padding, strict=True))
        self.padding: Padding = (left, right, top, bottom)
        self.kernel_size = (conv.weight.shape[2], conv.weight.shape[3])
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        self.groups = conv.groups

    @property
    def depthwise(self) -> bool:
        """Whether `DepthwiseConv2d` can stand in."""
        return (
            self.groups == len(self.weight)
            and self.groups > 1
            and self.weight.shape[1] == 1
            and self.stride in ((1, 1), (2, 2))
            and self.dilation == (1, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, out, h, w] for `input` [N, in, H, W]."""
        left, right, top, bottom = self.padding
        if left != right or top != bottom:
            input, left, top = F.pad(input, self.padding), 0, 0
        options = (self.stride, (top, left), self.dilation, self.groups)
        return self.clamped(F.conv2d(input, self.weight, self.bias, *options))


class PointwiseConv2d(FusedLayer):
    """A dense 1x1 convolution of stride 1 as a matrix product."""

    def __init__(self, conv: FusedConv2d) -> None:
        super().__init__(conv.weight.flatten(1), conv.bias)
        self.clamp = conv.clamp

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, out, H, W] for `input` [N, in, H, W]."""
        columns = input.flatten(2)
        product = torch.matmul(self.weight, columns)
        if self.bias is not None:
            product += self.bias[:, None]
        return self.clamped(product).unflatten(2, input.shape[2:])


class DepthwiseConv2d(FusedLayer):
    """A convolution of every channel on its own, by `gossamer.kernels.depthwise_conv`."""

    def __init__(self, conv: FusedConv2d) -> None:
        super().__init__(conv.weight[:, 0], conv.bias)
        self.clamp, self.stride, self.padding = conv.clamp, conv.stride[0], conv.padding

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of what an image of that size becomes; 0 or less: none."""
        left, right, top, bottom = self.padding
        _, rows, columns = self.weight.shape
        return (
            (height + top + bottom - rows) // self.stride + 1,
            (width + left + right - columns) // self.stride + 1,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, C, h, w] for `input` [N, C, H, W]."""
        return depthwise_conv(
            input,
            self.weight,
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            clamp=self.clamp,
        )


def _own_padding(conv: nn.Conv2d) -> tuple[int, int]:
    if isinstance(conv.padding, str):
        raise ValueError(f"expected a number of zeros as padding, got {conv.padding!r}")
    height, width = conv.padding
    return height, width
