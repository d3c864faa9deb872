"""Kernel calls recorded once and run together: what a step costs besides its kernel is nothing.

A call of a kernel through Python takes tens of microseconds, as long as a small layer runs.
"""

from threading import Lock

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from gossamer.kernels import backend
from gossamer.kernels.delta_conv import DeltaConv, HeldImages
from gossamer.kernels.packed import PackedWeight


class Program:
    """A sequence of kernel calls on fixed tensors, but for the first input and the last output.

    Trusts what it is given: float32, contiguous, of the shapes that the kernels check in public.

    Parameters
    ----------
    source : Tensor
        Stands for the input: steps that read it read what `run` is given.
    target : Tensor
        Stands for the output in the same way.

    Examples
    --------
    >>> source, target = torch.zeros(3), torch.zeros(3)
    >>> if backend.native():
    ...     program = Program(source, target)
    ...     program.add(source, source, target)
    ...     result = torch.empty(3)
    ...     program.run(torch.ones(3), result)
    """

    def __init__(self, source: Tensor, target: Tensor) -> None:
        self._native = backend.native_module().Program(
            *(to_dlpack(tensor) for tensor in (source, target))
        )
        self._lock = Lock()

    def spmm(
        self,
        weight: PackedWeight,
        dense: Tensor,
        out: Tensor,
        bias: Tensor | None,
        clamp: tuple[float, float],
    ) -> None:
        """Add ``out = clamp(weight @ dense + bias)`` for dense [N, K, P]."""
        self._record("spmm", weight.native_panels, dense, out, bias, *clamp)

    def depthwise_conv(
        self,
        image: Tensor,
        weight: Tensor,
        out: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: tuple[int, int, int, int],
        clamp: tuple[float, float],
    ) -> None:
        """Add a depth-wise convolution of image [N, C, H, W]."""
        left, _, top, _ = padding
        self._record("depthwise_conv", image, weight, out, bias, stride, left, top, *clamp)

    def delta_conv(
        self,
        source: HeldImages,
        layer: DeltaConv,
        target: HeldImages,
        addend: HeldImages | None,
        afresh: Tensor,
        products: Tensor,
    ) -> None:
        """Add a layer of a streamed network; it reads and writes none of what `run` is given.

        afresh is one uint8, products one int64, both looked at in each run.
        """
        other = None if addend is None else addend.native
        self._record(
            "delta_conv", source.native, layer.native, other, target.native, afresh, products
        )

    def add(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Add ``out = left + right``; `out` may be one of them."""
        self._record("add", left, right, out)

    def run(self, source: Tensor, target: Tensor) -> None:
        """Run every step on torch's number of threads; one caller at a time."""
        with self._lock:
            self._record("run", source, target, torch.get_num_threads())

    def _record(self, step: str, *arguments: object) -> None:
        crossing = (to_dlpack(part) if isinstance(part, Tensor) else part for part in arguments)
        getattr(self._native, step)(*crossing)
