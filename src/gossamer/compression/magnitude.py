"""Magnitude pruning: keep the weights of largest absolute value in each layer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossamer import scores
from gossamer.compression.base import Layer, ScoreMethod
from gossamer.compression.input_statistics import Statistics


@dataclass(frozen=True)
class Magnitude(ScoreMethod):
    """Keep the weights of largest ``|w|``, compared over a layer; needs no calibration.

    The oldest baseline. Layers get one density, their rows may differ; N:M compares within groups.

    Parameters
    ----------
    density : float, optional
        Share of weights kept, in (0, 1]; for N:M it follows from the pattern.
    pattern : Unstructured or NM, default=Unstructured()

    Examples
    --------
    >>> import torch
    >>> layer = Layer("fc", torch.tensor([[1.0, -4.0], [2.0, 3.0]]))
    >>> Magnitude(density=0.5).decide(layer).mask.tolist()
    [[False, True], [False, True]]
    """

    collect: ClassVar[Statistics] = "nothing"
    compared_over: ClassVar[int | None] = None

    def score(self, layer: Layer) -> Tensor:
        """Return ``|w|``."""
        return scores.magnitude(layer.weight)
