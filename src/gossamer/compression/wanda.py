"""Wanda: keep the weights with the largest product of magnitude and input norm in each row."""

from dataclasses import dataclass

from torch import Tensor

from gossamer import scores
from gossamer.compression.base import Layer, ScoreMethod


@dataclass(frozen=True)
class Wanda(ScoreMethod):
    """Keep the weights of largest ``|w_rc| * ||x_c||``, compared within each output row.

    Based on "A Simple and Effective Pruning Approach for Large Language Models"
    (arXiv 2306.11695). The norm is over calibration tokens, root mean square over sequences, which
    ranks as the sum does. Every row keeps ``round(density * in)`` weights; the released code keeps
    ``in - int(in * sparsity)``, at most one more. Weights that stay do not change.

    Parameters
    ----------
    density : float, optional
        Share of weights kept, in (0, 1]; for N:M it follows from the pattern.
    pattern : Unstructured or NM, default=Unstructured()

    Examples
    --------
    >>> import torch
    >>> from gossamer.compression import InputStatistics
    >>> inputs = InputStatistics()
    >>> inputs.update(torch.tensor([[1.0, 5.0]]))
    >>> Wanda(density=0.5).decide(Layer("fc", torch.tensor([[-4.0, 1.0]]), inputs)).mask.tolist()
    [[False, True]]
    """

    def score(self, layer: Layer) -> Tensor:
        """Return ``|w| * ||x||``."""
        return scores.activation_weighted(layer.weight, layer.calibrated.norm.float())
