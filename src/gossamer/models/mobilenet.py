"""MobileNet v1 and v2, untrained: networks whose time goes into 1x1 convolutions.

"MobileNets" (arXiv 1704.04861) and "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(arXiv 1801.04381), with any width, number of input channels and classes. A small one
suits images of a few pixels.
"""

from torch import Tensor, nn

# Output channels and stride of each depth-wise separable convolution.
_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)
# Expansion, output channels, blocks, stride of the first block.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *([] if expansion == 1 else _convolution(inputs, hidden, 1)),
            *_convolution(hidden, hidden, 3, stride, groups=hidden),
            *_convolution(hidden, outputs, 1)[:-1],
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.residual else self.layers(x)


def mobilenet_v1(width: float = 1.0, *, classes: int = 1000, inputs: int = 3) -> nn.Sequential:
    """Build MobileNet v1 with random weights.

    Parameters
    ----------
    width : float, default=1.0
        Factor on the channels of every layer, rounded to multiples of 8.
    classes : int, default=1000
    inputs : int, default=3
        Channels of the images.

    Returns
    -------
    nn.Sequential
        From images [N, inputs, H, W] to logits [N, classes]; 32 positions become one.

    Raises
    ------
    ValueError
        If a size is not positive.

    Examples
    --------
    >>> sum(weight.numel() for weight in mobilenet_v1().parameters())
    4231976
    """
    _check(width, classes, inputs)
    return _separable(_V1, 32, 2, width, classes, inputs)


def mobilenet_v2(width: float = 1.0, *, classes: int = 1000, inputs: int = 3) -> nn.Sequential:
    """Build MobileNet v2 with random weights; see `mobilenet_v1`.

    Examples
    --------
    >>> sum(weight.numel() for weight in mobilenet_v2().parameters())
    3504872
    """
    _check(width, classes, inputs)
    channels = _scaled(32, width)
    layers = _convolution(inputs, channels, 3, 2)
    for expansion, outputs, blocks, stride in _V2:
        for block in range(blocks):
            following = _scaled(outputs, width)
            layers.append(_InvertedResidual(channels, following, 1 if block else stride, expansion))
            channels = following
    last = _scaled(1280, max(1.0, width))
    return nn.Sequential(*layers, *_convolution(channels, last, 1), *_classifier(last, classes))


def small_mobilenet(width: float = 1.0, *, classes: int = 10, inputs: int = 1) -> nn.Sequential:
    """Build the first layers of MobileNet v1 for images of 8 to 32 pixels, with random weights.

    Parameters
    ----------
    width, classes, inputs
        As for `mobilenet_v1`.

    Returns
    -------
    nn.Sequential
        From images [N, inputs, H, W] to logits [N, classes]; 4 x 4 positions become one.

    Examples
    --------
    >>> sum(weight.numel() for weight in small_mobilenet().parameters())
    136202
    """
    _check(width, classes, inputs)
    return _separable(
        ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)), 32, 1, width, classes, inputs
    )


def _separable(
    blocks: tuple[tuple[int, int], ...],
    first: int,
    stride: int,
    width: float,
    classes: int,
    inputs: int,
) -> nn.Sequential:
    channels = _scaled(first, width)
    layers = _convolution(inputs, channels, 3, stride)
    for outputs, step in blocks:
        layers += _convolution(channels, channels, 3, step, groups=channels)
        layers += _convolution(channels, _scaled(outputs, width), 1)
        channels = _scaled(outputs, width)
    return nn.Sequential(*layers, *_classifier(channels, classes))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


def _classifier(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _check(width: float, classes: int, inputs: int) -> None:
    if not width > 0 or min(classes, inputs) < 1:
        raise ValueError(f"expected positive sizes, got {width=}, {classes=}, {inputs=}")
