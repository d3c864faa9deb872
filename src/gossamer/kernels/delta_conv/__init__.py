"""One layer of a network that is streamed frame by frame, where its inputs have changed."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.delta_conv import reference

LANES = 16  # channels are padded to whole vectors of the widest instruction set


@dataclass(frozen=True, eq=False)
class HeldImages:
    """Images that stay from frame to frame, and what the last frame changed in them.

    Parameters
    ----------
    values : Tensor [N, H, W, C] float32 or float64
        C is padded with zeros to a multiple of 16.
    changed : Tensor [N, H, W] uint8
        1 where any channel changed.
    change : Tensor [N, H, W, C]
        By how much, there; anything elsewhere.
    """

    values: Tensor
    changed: Tensor
    change: Tensor

    @classmethod
    def zeros(
        cls,
        images: int,
        height: int,
        width: int,
        channels: int,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Return images of zeros, nowhere changed."""
        shape = (images, height, width)
        values = torch.zeros(*shape, _padded(channels), dtype=dtype)
        return cls(values, torch.zeros(shape, dtype=torch.uint8), torch.zeros_like(values))

    @cached_property
    def native(self) -> Any:
        """The record that the native kernel reads."""
        return backend.launch("HeldImages", self.values, self.changed, self.change)


@dataclass(frozen=True, eq=False)
class DeltaConv:
    """A convolution, the clamp behind it, the steps that its output is quantised in, and its sums.

    Made by `pack`, for one place in a network and one size of images.

    Parameters
    ----------
    weight : Tensor [kh, kw, K, M] or [kh, kw, M]
        Of a whole or a depthwise convolution; M is padded to a multiple of 16.
    bias, step : Tensor [M]
    sums : Tensor [N, h, w, M], optional
        The products of the weight, held; a depthwise convolution holds none.
    geometry : tuple of int
        Strides, dilations, and the zeros above and to the left.
    clamp : (float, float)
    sparse_below : float
    """

    weight: Tensor
    bias: Tensor
    step: Tensor
    sums: Tensor | None
    geometry: tuple[int, int, int, int, int, int]
    clamp: tuple[float, float]
    sparse_below: float

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        step: Tensor,
        target: HeldImages,
        *,
        depthwise: bool = False,
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        before: tuple[int, int] = (0, 0),
        clamp: tuple[float, float] = (-math.inf, math.inf),
        sparse_below: float = 0.3,
    ) -> Self:
        """Copy the weight [M, K, kh, kw] of torch.nn.Conv2d into the order of the kernel.

        Parameters
        ----------
        weight : Tensor [M, K, kh, kw]
            K is 1 if `depthwise`: every channel has a kernel of its own.
        bias : Tensor [M], optional
        step : Tensor [M] or []
            Positive: results become multiples of it.
        target : HeldImages
            What the layer will update; gives size and type.
        depthwise : bool
        stride, dilation : (int, int)
        before : (int, int)
            Zeros above and to the left; those behind follow from the target's size.
        clamp : (float, float)
        sparse_below : float, default=0.3
            Share of what a position reads up to which, if no more has changed, only that is
            multiplied; above, all is. A product with a change costs about three of others.

        Raises
        ------
        ValueError
            If shapes do not fit or an option is out of range.
        """
        if weight.ndim != 4 or (depthwise and weight.shape[1] != 1):
            raise ValueError(
                f"expected weight [M, K, kh, kw], and K of 1 if depthwise, got {list(weight.shape)}"
            )
        rows, lanes = len(weight), target.values.shape[3]
        if lanes != _padded(rows):
            raise ValueError(f"expected a target of {rows} channels, padded, got {lanes}")
        if not bool((step > 0).all()):
            raise ValueError("expected positive steps, got one that is not")
        if min(before) < 0 or min(*stride, *dilation) < 1 or not clamp[0] <= clamp[1]:
            raise ValueError(
                f"expected zeros >= 0, stride and dilation >= 1 and an ordered clamp, got "
                f"{before}, {stride}, {dilation} and {clamp}"
            )
        if not 0 <= sparse_below <= 1:
            raise ValueError(f"expected sparse_below in 0..1, got {sparse_below}")
        packed = target.values.new_zeros(*weight.shape[2:], weight.shape[1], lanes)
        packed[..., :rows] = weight.detach().permute(2, 3, 1, 0)
        shift, steps = packed.new_zeros(lanes), packed.new_ones(lanes)
        shift[:rows] = 0 if bias is None else bias.detach()
        steps[:rows] = step.detach()
        return cls(
            packed[:, :, 0].contiguous() if depthwise else packed,
            shift,
            steps,
            None if depthwise else torch.zeros_like(target.values),
            (*stride, *dilation, *before),
            clamp,
            sparse_below,
        )

    @cached_property
    def native(self) -> Any:
        """The record that the native kernel reads."""
        tensors = (self.weight, self.bias, self.step, self.sums)
        options = (self.geometry, *self.clamp, self.sparse_below)
        return backend.launch("DeltaConv", *tensors, *options)


def delta_conv(
    source: HeldImages,
    layer: DeltaConv,
    target: HeldImages,
    *,
    addend: HeldImages | None = None,
    afresh: bool = False,
    impl: backend.Impl = "auto",
) -> int:
    """Bring ``step * round(clamp(conv(source) + addend) / step)`` in `target` up to date.

    Positions are touched that read a change, or whose addend has changed; the others are held.
    Their sums are brought up to date from the changes, or afresh where too much has changed; sum,
    clamp, quantisation, comparison with what was held and the record of what has changed follow in
    the same pass. A depthwise convolution computes them afresh.

    No operator of torch: it changes records that outlive the call.

    Parameters
    ----------
    source : HeldImages
    layer : DeltaConv
    target : HeldImages
        Updated in place.
    addend : HeldImages, optional
        Of the target's shape.
    afresh : bool
        Compute every position from the source, as for a first frame.
    impl : {"auto", "reference", "cpu"}
        float64 runs on the reference only.

    Returns
    -------
    int
        Inputs multiplied, each with as many weights as the layer has rows (depthwise: inputs of
        one channel, each with one weight a channel). Padding is not counted.

    Raises
    ------
    ValueError
        If the three do not fit each other.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> source, target = HeldImages.zeros(1, 2, 2, 1), HeldImages.zeros(1, 2, 2, 1)
    >>> layer = DeltaConv.pack(torch.ones(1, 1, 1, 1), None, torch.tensor(0.5), target)
    >>> source.values[0, 1, 0, 0] = source.change[0, 1, 0, 0] = 0.7
    >>> source.changed[0, 1, 0] = 1
    >>> delta_conv(source, layer, target), target.values[..., 0].tolist()
    (1, [[[0.0, 0.0], [0.5, 0.0]]])
    """
    _check(source, layer, target, addend)
    double = target.values.dtype == torch.float64 and impl == "auto"
    chosen = backend.choose(
        "reference" if double else impl, target.values.device, backend.WITHOUT_TRITON
    )
    if chosen == "cpu":
        if target.values.dtype != torch.float32:
            raise backend.BackendError("impl='cpu' needs float32; try impl='auto'")
        products = torch.zeros(1, dtype=torch.int64)
        backend.launch(
            "delta_conv",
            source.native,
            layer.native,
            None if addend is None else addend.native,
            target.native,
            torch.tensor([afresh], dtype=torch.uint8),
            products,
            torch.get_num_threads(),
        )
        return int(products)
    return reference.delta_conv(
        (source.values, source.changed, source.change),
        layer.weight,
        layer.bias,
        layer.step,
        None if addend is None else (addend.values, addend.changed),
        (target.values, target.changed, target.change),
        geometry=layer.geometry,
        clamp=layer.clamp,
        sparse_below=layer.sparse_below,
        afresh=afresh,
    )


def _padded(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES


def _check(
    source: HeldImages, layer: DeltaConv, target: HeldImages, addend: HeldImages | None
) -> None:
    features, shape = layer.weight.shape[-1], target.values.shape
    reads = features if layer.weight.ndim == 3 else layer.weight.shape[2]
    if source.values.shape[3] != _padded(reads) or source.values.shape[0] != shape[0]:
        raise ValueError(
            f"expected a source of {shape[0]} images and {reads} channels, padded, got "
            f"{list(source.values.shape)}"
        )
    if shape[3] != features or (layer.sums is not None and layer.sums.shape != shape):
        raise ValueError(f"expected the target that the layer was packed for, got {list(shape)}")
    if addend is not None and addend.values.shape != shape:
        raise ValueError(f"expected an addend {list(shape)}, got {list(addend.values.shape)}")
    if any(part.values.dtype != layer.weight.dtype for part in (source, target, addend or target)):
        raise ValueError(f"expected source, target and addend in {layer.weight.dtype}")
