"""What attention kernels return, and softmax in progress that another call can resume."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionOutput(NamedTuple):
    """Attention output and the log-sum-exp of each row's scaled scores.

    Parameters
    ----------
    output : Tensor [B, H, q_len, D]
        Zeros where a row sees no key.
    lse : Tensor [B, H, q_len] float32
        Natural logarithm; -inf where a row sees no key.
    """

    output: Tensor
    lse: Tensor


@dataclass(frozen=True, eq=False)
class AttentionState:
    """Softmax over the keys seen so far, kept in float32.

    Parameters
    ----------
    max : Tensor [B, H, q_len]
        Largest scaled score; -inf before the first key.
    sum : Tensor [B, H, q_len]
        Sum of exp(score - max).
    acc : Tensor [B, H, q_len, D]
        Sum of exp(score - max) * value.
    """

    max: Tensor
    sum: Tensor
    acc: Tensor

    @classmethod
    def empty(cls, query: Tensor) -> "AttentionState":
        """Return the state of `query` [B, H, q_len, D] before any key."""
        rows = query.shape[:3]
        options = {"dtype": torch.float32, "device": query.device}
        return cls(
            torch.full(rows, -torch.inf, **options),
            torch.zeros(rows, **options),
            torch.zeros(query.shape, **options),
        )

    def output(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the attention output [B, H, q_len, D]; zeros where no key was seen."""
        some = self.sum[..., None] != 0  # NaN stays NaN
        return torch.where(some, self.acc / self.sum[..., None], 0.0).to(dtype)

    def lse(self) -> Tensor:
        """Return the log-sum-exp [B, H, q_len]; -inf where no key was seen."""
        return torch.where(self.sum != 0, self.max + self.sum.log(), -torch.inf)

    def results(self, dtype: torch.dtype, keep_state: bool) -> tuple[Tensor, ...]:
        """Return (output, lse, max, sum, acc), laid out as `empty_results` does."""
        nothing = self.max.new_empty(0)
        if keep_state:
            return (nothing, nothing.clone(), self.max, self.sum, self.acc)
        rest = (nothing, nothing.clone(), nothing.clone())
        output = self.output(dtype).transpose(1, 2).contiguous().transpose(1, 2)
        return (output, self.lse(), *rest)


def empty_output(query: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate (output, lse) for a kernel to fill.

    The output is laid out [B, q_len, H, D] in memory, as models want it next.
    """
    batch, heads, q_len, dim = query.shape
    output = torch.empty(batch, q_len, heads, dim, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=query.device)
    return output.transpose(1, 2), lse


def empty_results(query: Tensor, keep_state: bool) -> tuple[Tensor, ...]:
    """Allocate (output, lse, max, sum, acc) for a kernel to fill, the half not kept empty."""
    options = {"dtype": torch.float32, "device": query.device}
    nothing = [torch.empty(0, **options) for _ in range(3)]
    if not keep_state:
        return (*empty_output(query), *nothing)
    rows = [torch.empty(query.shape[:3], **options) for _ in range(2)]
    return (*nothing[:2], *rows, torch.empty(query.shape, **options))
