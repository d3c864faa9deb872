"""A layer of a streamed network in plain PyTorch: computed everywhere, taken over where needed."""

import torch
from torch import Tensor
from torch.nn import functional as F


def delta_conv(
    source: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    step: Tensor,
    addend: tuple[Tensor, Tensor] | None,
    target: tuple[Tensor, Tensor, Tensor],
    *,
    geometry: tuple[int, ...],
    clamp: tuple[float, float],
    sparse_below: float,
    afresh: bool,
) -> int:
    """Update values, mask and changes of `target`; return the number of inputs multiplied."""
    values, mask, change = source
    held, held_mask, held_change = target
    stride, dilation, before = geometry[:2], geometry[2:4], geometry[4:]
    depthwise = weight.ndim == 3
    kernel = (weight[:, :, None] if depthwise else weight).permute(3, 2, 0, 1)  # [M, K, kh, kw]
    depth = held.shape[3] if depthwise else kernel.shape[1]
    # Zeros behind the image as far as the last position reads; negative where it reads less.
    behind = [
        (held.shape[1 + i] - 1) * stride[i]
        + dilation[i] * (kernel.shape[2 + i] - 1)
        + 1
        - values.shape[1 + i]
        - before[i]
        for i in (0, 1)
    ]
    zeros = (before[1], behind[1], before[0], behind[0])

    def read(images: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        padded = F.pad(images.permute(0, 3, 1, 2), zeros)
        return F.conv2d(padded, kernel, None, stride, 0, dilation, groups).permute(0, 2, 3, 1)

    def count(images: Tensor) -> Tensor:
        """Count what the taps of every position read."""
        ones = torch.ones(1, images.shape[3], *kernel.shape[2:])
        return read(images.float(), ones)[..., 0].round().long()

    needed = count(mask[..., None]) > 0
    if addend is not None:
        needed |= addend[1].bool()
    if afresh:
        needed[:] = True
    inputs = count(torch.ones_like(mask)[..., None]) * (1 if depthwise else depth)
    if not afresh and not depthwise:
        changed = count((change[..., :depth] != 0) & mask[..., None].bool())
        most = sparse_below * kernel[0].numel()
        inputs = torch.where(changed <= most, changed, inputs)
    value = read(values[..., :depth], kernel, depth if depthwise else 1) + bias
    if addend is not None:
        value = value + addend[0]
    value = ((value.clamp(*clamp) / step).round_() * step)[needed]
    difference = value - held[needed]
    held[needed], held_change[needed] = value, difference
    held_mask.zero_()
    held_mask[needed] = (difference != 0).any(-1).to(held_mask.dtype)
    return int(inputs[needed].sum())
