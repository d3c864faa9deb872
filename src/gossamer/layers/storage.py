"""What sparse layers share: a weight [out, in] stored as values and a pattern that can move."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from gossamer.kernels import SparsePattern, SparseWeight
from gossamer.kernels.sparse_weight import DTYPES

STORED = "offsets", "indices", "values"


class SparseStorage(nn.Module):
    """The non-zeros of a weight, a parameter, and where they are, two buffers.

    Parameters
    ----------
    weight : SparseWeight
        Its values and pattern become this module's own.
    bias : Tensor [out], optional
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    offsets: Tensor
    indices: Tensor

    def __init__(self, weight: SparseWeight, bias: Tensor | None) -> None:
        super().__init__()
        rows = weight.pattern.shape[0]
        if bias is not None and tuple(bias.shape) != (rows,):
            raise ValueError(f"expected bias of [{rows}], got {list(bias.shape)}")
        self.values = nn.Parameter(weight.values.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("offsets", weight.pattern.offsets)
        self.register_buffer("indices", weight.pattern.indices)
        self._keep(weight.pattern)

    @property
    def pattern(self) -> SparsePattern:
        """Where the non-zeros are."""
        return self._pattern

    @property
    def weight(self) -> SparseWeight:
        """The weight [out, in], sharing memory with the layer."""
        return SparseWeight(self.values, self._pattern)

    def density(self) -> float:
        """Return the share of weights kept."""
        return self._pattern.density()

    def set_pattern(self, pattern: SparsePattern | Tensor) -> Tensor:
        """Move to another pattern: surviving weights keep their values, new ones are zero.

        The parameter stays the same object, so an optimizer keeps its hold of it; its gradient is
        dropped. The state that an optimizer holds for each value follows by the map returned,
        ``torch.where(kept >= 0, state[kept], 0)``.

        Parameters
        ----------
        pattern : SparsePattern or bool mask Tensor [out, in]
            Of a convolution: [out, in, kh, kw] also.

        Returns
        -------
        Tensor [new nnz] int64
            Where each value was before, -1 for a new one.
        """
        if isinstance(pattern, Tensor):
            pattern = SparsePattern.from_mask(pattern.flatten(1) if pattern.ndim > 2 else pattern)
        pattern = pattern.to(self.indices.device)
        kept = self._pattern.find(pattern)
        with torch.no_grad():
            values = self.values.new_zeros(pattern.nnz)
            survives = kept >= 0
            values[survives] = self.values[kept[survives]]
        self._replace(values, pattern)
        return kept

    def extra_repr(self) -> str:
        return f"density={self.density():.3g}, bias={self.bias is not None}"

    def _keep(self, pattern: SparsePattern) -> None:
        self.offsets, self.indices = pattern.offsets, pattern.indices
        self._pattern = pattern

    def _replace(self, values: Tensor, pattern: SparsePattern) -> None:
        self.values.grad = None
        self.values.data = values
        self._keep(pattern)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtype = fn(self.values.new_empty(0)).dtype
        if dtype not in DTYPES:
            raise TypeError(
                f"{type(self).__name__} trains in float32, got {dtype}; keep this layer in "
                "float32, or convert .to_dense()"
            )
        super()._apply(fn, recurse)
        self._follow_buffers()
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
        """Take over the pattern of the state, which may have another number of non-zeros."""
        offsets, indices, values = (state_dict.get(prefix + name) for name in STORED)
        if offsets is not None and indices is not None and values is not None:
            try:
                pattern = SparsePattern(offsets, indices, self._pattern.shape).validate()
                SparseWeight(values, pattern)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix}{', '.join(STORED)}: {error}")
                return
            self._replace(self.values.new_empty(pattern.nnz), pattern.to(self.indices.device))
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        self._follow_buffers()

    def _follow_buffers(self) -> None:
        if self.indices is not self._pattern.indices:
            self._keep(SparsePattern(self.offsets, self.indices, self._pattern.shape))
