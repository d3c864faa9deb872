"""Depth-wise convolution in plain PyTorch."""

from torch import Tensor
from torch.nn import functional as F


def depthwise_conv(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    low: float,
    high: float,
) -> Tensor:
    """Return clamp(conv(image between zeros) + bias) for image [N, C, H, W], weight [C, kh, kw]."""
    padded = F.pad(image, padding)
    product = F.conv2d(padded, weight[:, None], bias, stride, groups=len(weight))
    return product.clamp(low, high).contiguous()
