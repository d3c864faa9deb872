"""What packed layers share: a weight [out, in] that stays as it was packed, and its bias."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from gossamer.kernels import PackedWeight, pack

STORED = "offsets", "columns", "values"
UNCLAMPED = (-math.inf, math.inf)


class PackedStorage(nn.Module):
    """A packed weight, kept as three buffers, and a bias, kept as one.

    Parameters
    ----------
    weight : PackedWeight
        Becomes this module's own.
    bias : Tensor [out] float32, optional
        Copied.
    clamp : (float, float)
        Results outside are set to the nearer bound.
    """

    values: Tensor
    offsets: Tensor
    columns: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None, clamp: tuple[float, float]
    ) -> None:
        super().__init__()
        rows = weight.shape[0]
        if bias is not None and tuple(bias.shape) != (rows,):
            raise ValueError(f"expected bias of [{rows}], got {list(bias.shape)}")
        if not clamp[0] <= clamp[1]:
            raise ValueError(f"expected clamp to be (low, high) with low <= high, got {clamp}")
        self.clamp = clamp
        for name in STORED:
            self.register_buffer(name, None)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self._keep(weight)

    @property
    def weight(self) -> PackedWeight:
        """The weight [out, in], sharing memory with the layer."""
        return self._weight

    def density(self) -> float:
        """Return the share of weights kept."""
        return self._weight.density

    def extra_repr(self) -> str:
        parts = [f"density={self.density():.3g}, bias={self.bias is not None}"]
        parts += [f"clamp={self.clamp}"] if self.clamp != UNCLAMPED else []
        return ", ".join(parts)

    def _keep(self, weight: PackedWeight) -> None:
        self._weight, self.values = weight, weight.values
        self.offsets, self.columns = weight.support.offsets, weight.support.columns

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(self.values.new_empty(0))
        if probe.dtype != self._weight.dtype:
            raise TypeError(
                f"{type(self).__name__} is packed to {self._weight.dtype}, got {probe.dtype}; "
                "try from_dense(layer.to_dense(), dtype=...)"
            )
        super()._apply(fn, recurse)
        self._keep(self._weight.to(probe.device))
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take over the weight of the state, which may have another number of entries."""
        offsets, columns, values = (state_dict.get(prefix + name) for name in STORED)
        if offsets is not None and columns is not None and values is not None:
            try:
                weight = self._packed(offsets, columns, values)
            except (TypeError, ValueError, RuntimeError) as error:
                error_msgs.append(f"{prefix}{', '.join(STORED)}: {error}")
                return
            self._keep(weight.to(self.values.device))
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        self._keep(self._weight)  # with assign=True the buffers have become the state's tensors

    def _packed(self, offsets: Tensor, columns: Tensor, values: Tensor) -> PackedWeight:
        """Check what a file says and pack it."""
        rows, width = self._weight.shape
        if offsets.shape != (rows + 1,) or columns.shape != values.shape or values.ndim != 1:
            raise ValueError(
                f"expected offsets [{rows + 1}] and as many columns as values, got "
                f"{list(offsets.shape)}, {list(columns.shape)} and {list(values.shape)}"
            )
        wanted = (torch.int64, self.columns.dtype)
        if (offsets.dtype, columns.dtype) != wanted:
            raise TypeError(
                f"expected offsets and columns of {wanted}, got {(offsets.dtype, columns.dtype)}"
            )
        wide = columns.int() & 0xFFFF if columns.dtype == torch.int16 else columns
        with warnings.catch_warnings():  # PyTorch calls its own format a beta
            warnings.simplefilter("ignore", UserWarning)
            rows_of = torch.sparse_csr_tensor(
                offsets, wide.long(), values, (rows, width), check_invariants=False
            )
        return pack(rows_of, self._weight.pattern)
