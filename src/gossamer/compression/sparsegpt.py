"""SparseGPT: prune column by column and let the weights that follow make up for the error."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossamer.compression.base import UNSTRUCTURED, Decision, Layer, PruningMethod, check_target
from gossamer.compression.input_statistics import Statistics
from gossamer.kernels import Sweep, sparsegpt_sweep
from gossamer.kernels.sparsegpt_sweep import BLOCK
from gossamer.patterns import NM, WeightPattern


@dataclass(frozen=True)
class SparseGPT(PruningMethod):
    """Prune columns from left to right, repairing the columns behind each.

    Based on "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"
    (arXiv 2301.00774). With H = X^T X and U the upper Cholesky factor of its inverse, weights are
    kept by ``(w / U_ii)^2`` and column j takes ``-(w_i / U_ii) U_ij`` from each pruned column i
    before it. Unstructured density is that of each block of columns over all rows, not of a row.

    In a list of methods the weights come from the last: after SparseGPT, DSnoT refines its mask
    and keeps the dense values. ``SparseGPT()`` at the end, without density and pattern, keeps the
    mask that it is given and repairs what stays.

    Parameters
    ----------
    density : float, optional
        Share of weights kept, in (0, 1]; for N:M it follows from the pattern.
    pattern : Unstructured or NM, default=Unstructured()
    dampening : float, default=0.01
        Share of the mean of H's diagonal that is added to it (released code).
    block : int, default=128
        Columns whose mask is chosen together (released code).

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of range, or H cannot be factored.

    Examples
    --------
    >>> import torch
    >>> from gossamer.compression import InputStatistics
    >>> inputs = InputStatistics(gram=True)
    >>> inputs.update(torch.eye(2))  # nothing to repair with
    >>> layer, method = Layer("fc", torch.tensor([[-4.0, 1.0]]), inputs), SparseGPT(density=0.5)
    >>> method.apply(layer, method.decide(layer)).tolist()
    [[-4.0, 0.0]]
    """

    density: float | None = None
    pattern: WeightPattern = UNSTRUCTURED
    dampening: float = 0.01
    block: int = BLOCK

    collect: ClassVar[Statistics] = "gram"

    def __post_init__(self) -> None:
        if not self.refines:
            check_target(self.density, self.pattern)
        if not 0 <= self.dampening <= 1:
            raise ValueError(f"expected dampening in [0, 1], got {self.dampening}")
        if self.block < 1:
            raise ValueError(f"expected block of at least 1, got {self.block}")

    @property
    def refines(self) -> bool:
        return self.density is None and not isinstance(self.pattern, NM)

    def decide(self, layer: Layer, before: Decision | None = None) -> Decision:
        if self.refines:
            if before is None:
                raise ValueError("SparseGPT() repairs another method's mask; try a density")
            return before
        pattern = self.pattern
        swept = self._sweep(
            layer, density=None if isinstance(pattern, NM) else self.density, pattern=pattern
        )
        diagonal = layer.calibrated.inverse_factor(self.dampening).diagonal()
        return Decision(swept.mask, (layer.weight / diagonal).square(), pattern)

    def apply(self, layer: Layer, decision: Decision) -> Tensor:
        """Return the kept weights, repaired: the sweep that decided, with its mask given."""
        return self._sweep(layer, mask=decision.mask).weight

    def _sweep(
        self,
        layer: Layer,
        *,
        density: float | None = None,
        pattern: WeightPattern | None = None,
        mask: Tensor | None = None,
    ) -> Sweep:
        factor = layer.calibrated.inverse_factor(self.dampening)
        dead = layer.calibrated.mean.eq(0) & layer.calibrated.variance.eq(0)
        return sparsegpt_sweep(
            layer.weight.masked_fill(dead, 0.0),  # what multiplies nothing goes first
            factor,
            density=density,
            pattern=pattern,
            mask=mask,
            block=self.block,
        )
