"""Depth-wise convolution: the dense layer that stands between the sparse ones of a MobileNet."""

import math

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.depthwise_conv import reference
from gossamer.kernels.library import register


def depthwise_conv(
    image: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    clamp: tuple[float, float] = (-math.inf, math.inf),
    impl: backend.Impl = "auto",
) -> Tensor:
    """Filter every channel of images with a kernel of its own; bias and clamp on the way out.

    Images stay channel by channel, the layout in which `spmm` runs 1x1 convolutions.

    Parameters
    ----------
    image : Tensor [N, C, H, W] float32
    weight : Tensor [C, kh, kw] float32
        ``conv.weight[:, 0]`` of a torch.nn.Conv2d with ``groups=C``.
    bias : Tensor [C] float32, optional
    stride : {1, 2}
        Between results, in rows and in columns.
    padding : (int, int, int, int)
        Columns of zeros left and right, rows of zeros above and below, as in torch.nn.ZeroPad2d.
    clamp : (float, float)
        Results outside are set to the nearer bound (ReLU6 is ``(0, 6)``); NaN stays.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [N, C, (H + top + bottom - kh) // stride + 1, (W + left + right - kw) // stride + 1]

    Raises
    ------
    TypeError
        If a tensor is not float32.
    ValueError
        If shapes, stride, padding, clamp or devices do not fit, or a gradient would be needed.

    Examples
    --------
    >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> depthwise_conv(image, torch.ones(1, 3, 3), padding=(0, 1, 1, 0)).tolist()
    [[[[15.0, 12.0], [36.0, 27.0]]]]
    """
    _check(image, weight, bias)
    if stride not in (1, 2):
        raise ValueError(f"expected stride 1 or 2, got {stride}; try torch.nn.functional.conv2d")
    if len(padding) != 4 or min(padding) < 0:
        raise ValueError(
            f"expected padding (left, right, top, bottom) of at least 0, got {padding}"
        )
    low, high = clamp
    if not low <= high:
        raise ValueError(f"expected clamp to be (low, high) with low <= high, got {clamp}")
    if min(_output_size(image, weight, stride, padding)) < 1:
        raise ValueError(
            f"expected an image of at least {list(weight.shape[1:])}, padding included, got "
            f"{list(image.shape[2:])} and padding {padding}"
        )
    chosen = backend.choose(impl, image.device, backend.WITHOUT_TRITON)
    return torch.ops.gossamer.depthwise_conv(
        image, weight, bias, stride, list(padding), low, high, chosen
    )


def _check(image: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if image.ndim != 4 or weight.ndim != 3 or image.shape[1] != len(weight):
        raise ValueError(
            f"expected image [N, C, H, W] and weight [C, kh, kw], got {list(image.shape)} and "
            f"{list(weight.shape)}; try conv.weight[:, 0]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias [{len(weight)}], got {list(bias.shape)}")
    if min(weight.shape[1:]) < 1:
        raise ValueError(f"expected a kernel of at least 1 x 1, got {list(weight.shape[1:])}")
    for name, tensor in (("image", image), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32:
            raise TypeError(f"expected {name} to be float32, got {tensor.dtype}")
        if tensor.device != image.device:
            raise ValueError(
                f"expected one device, got image on {image.device}, {name} on {tensor.device}"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but this kernel is for inference; "
                "try torch.no_grad() or .detach()"
            )


def _output_size(
    image: Tensor, weight: Tensor, stride: int, padding: tuple[int, ...] | list[int]
) -> tuple[int, int]:
    left, right, top, bottom = padding
    height = (image.shape[2] + top + bottom - weight.shape[1]) // stride + 1
    width = (image.shape[3] + left + right - weight.shape[2]) // stride + 1
    return height, width


def _depthwise_conv(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    low: float,
    high: float,
    impl: str,
) -> Tensor:
    if impl != "cpu":
        return reference.depthwise_conv(image, weight, bias, stride, padding, low, high)
    out = _empty(image, weight, bias, stride, padding)
    left, _, top, _ = padding
    backend.launch(
        "depthwise_conv",
        image.contiguous(),
        weight.contiguous(),
        out,
        None if bias is None else bias.contiguous(),
        stride,
        left,
        top,
        low,
        high,
        torch.get_num_threads(),
    )
    return out


def _empty(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    *rest: object,
) -> Tensor:
    return image.new_empty(*image.shape[:2], *_output_size(image, weight, stride, padding))


register(
    "depthwise_conv(Tensor image, Tensor weight, Tensor? bias, int stride, int[] padding, "
    "float low, float high, str impl) -> Tensor",
    _depthwise_conv,
    _empty,
)
