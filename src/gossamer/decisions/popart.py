"""PopArt: values learnt on a normalised scale, whatever the size of the returns."""

from typing import cast

import torch
from torch import Tensor, nn

_DECAY = 0.99999  # authors' code; debiased, so early on the plain mean of what was seen
_LEAST_VARIANCE = 1e-2  # authors' code


class PopArt(nn.Module):
    """A linear value head whose targets are normalised, and whose outputs that does not change.

    When mean and deviation of the returns move, weight and bias move against them, so that
    ``mean + deviation * head(x)`` stays what it was.

    Based on "Learning values across many orders of magnitude" (arXiv 1602.07714). The code of
    arXiv 2306.01920 normalises the targets only.

    Parameters
    ----------
    features : int

    Examples
    --------
    >>> head = PopArt(4)
    >>> x = torch.randn(8, 4)
    >>> before = head.value(x)
    >>> head.track(torch.tensor([100.0, 300.0]))
    >>> head.value(x).allclose(before, atol=1e-4)
    True
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        for name in ("sum", "squares", "seen"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised values [...] of features [..., features]."""
        return self.linear(x)[..., 0]

    def value(self, x: Tensor) -> Tensor:
        """Return values [...] on the scale of the returns."""
        mean, deviation = self._scale()
        return mean + deviation * self(x)

    def normalize(self, returns: Tensor) -> Tensor:
        """Return returns on the scale that the head learns."""
        mean, deviation = self._scale()
        return (returns - mean) / deviation

    @torch.no_grad()
    def track(self, returns: Tensor) -> None:
        """Take returns into mean and deviation, and keep the values."""
        mean, deviation = self._scale()
        for name, seen in (
            ("sum", returns.mean()),
            ("squares", returns.square().mean()),
            ("seen", torch.ones_like(mean)),
        ):
            self.get_buffer(name).lerp_(seen, 1 - _DECAY)
        new_mean, new_deviation = self._scale()
        bias = cast(Tensor, self.linear.bias)
        self.linear.weight.mul_(deviation / new_deviation)
        bias.copy_((deviation * bias + mean - new_mean) / new_deviation)

    def _scale(self) -> tuple[Tensor, Tensor]:
        total, squares, seen = (self.get_buffer(name) for name in ("sum", "squares", "seen"))
        if not bool(seen):
            return torch.zeros_like(total), torch.ones_like(total)
        mean = total / seen
        return mean, (squares / seen - mean.square()).clamp_min(_LEAST_VARIANCE).sqrt()
