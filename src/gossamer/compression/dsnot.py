"""DSnoT: swap pruned and kept weights until each output's expected error almost cancels."""

from dataclasses import dataclass
from typing import Literal, Self

from gossamer.compression.base import Decision, Layer, PruningMethod
from gossamer.kernels import Refinement, dsnot_refine

PAPER_CYCLES, PAPER_WIDTH = 50, 4096


@dataclass(frozen=True)
class DSnoT(PruningMethod):
    """Refine the mask of the method before it, without training; weights never change.

    Based on "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs"
    (arXiv 2310.08915). A weight's contribution is ``D_rc = w_rc * s_c`` with s the sum of an
    input over a sequence. ``err_r``, the sum of D over the pruned weights of a row, is what
    pruning is expected to take from the row's output. Each cycle of a row swaps

    - in: the pruned weight of largest ``D / var_c^p`` in the direction of err,
    - out: the kept weight of smallest ``|w| * ||x||`` whose D points the other way (N:M: of
      smallest score of the first method, in the same group whatever its direction),

    both of which shrink err, and stops at ``|err| <= threshold``, when a swap would turn the
    error's sign, or when no weight is left to swap. The released code swaps in weights that push
    the wrong way when no other is left; here the row stops.

    Parameters
    ----------
    max_cycles : int or "auto", default="auto"
        Swaps a row, at most. "auto" is ``max(4, round(50 * in / 4096))``: the paper's 50 at the
        width of its models, less in narrow ones, where 50 over-correct.
    threshold : float, default=0.1
        On ``|err|``, in units of the output summed over a sequence (paper).
    var_power : float, default=1.0
        p above (paper).
    same_sign : bool, default=True
        Stop before a swap that turns the sign of err. The released default is off; N:M always
        stops.
    skip : tuple of str, default=()
        Parts of layer names whose mask stays as it is.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from gossamer.compression import InputStatistics, Wanda
    >>> inputs = InputStatistics()
    >>> inputs.update(torch.tensor([[1.0, 2.0, 1.0, 3.0], [1.0, 1.0, 2.0, 2.0]]))
    >>> layer = Layer("fc", torch.tensor([[2.0, -0.5, 1.0, 3.0]]), inputs)
    >>> first = Wanda(density=0.5).decide(layer)
    >>> first.mask.tolist(), DSnoT().decide(layer, first).mask.tolist()
    ([[True, False, False, True]], [[True, False, False, True]])
    """

    max_cycles: int | Literal["auto"] = "auto"
    threshold: float = 0.1
    var_power: float = 1.0
    same_sign: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        cycles = self.max_cycles
        if cycles != "auto" and (not isinstance(cycles, int) or cycles < 0):
            raise ValueError(f'expected max_cycles of at least 0 or "auto", got {cycles!r}')
        if not self.threshold >= 0:
            raise ValueError(f"expected threshold of at least 0, got {self.threshold}")
        if not 0 <= self.var_power < float("inf"):
            raise ValueError(f"expected finite var_power of at least 0, got {self.var_power}")
        if isinstance(self.skip, str) or not all(self.skip):
            raise ValueError(f"expected skip to be a tuple of names, got {self.skip!r}")

    @classmethod
    def paper(cls) -> Self:
        """Return the released defaults: 50 cycles, no sign guard, attention layers only."""
        return cls(PAPER_CYCLES, same_sign=False, skip=("mlp",))

    @property
    def refines(self) -> bool:
        return True

    def cycles(self, width: int) -> int:
        """Return the most swaps of a row of `width` weights."""
        if self.max_cycles == "auto":
            return max(4, round(PAPER_CYCLES * width / PAPER_WIDTH))
        return self.max_cycles

    def decide(self, layer: Layer, before: Decision | None) -> Decision:
        if before is None:
            raise ValueError("DSnoT refines another method's mask; try [Wanda(0.5), DSnoT()]")
        if any(part in layer.name for part in self.skip):
            return before
        return Decision(self.refine(layer, before).mask, before.scores, before.pattern)

    def refine(self, layer: Layer, before: Decision) -> Refinement:
        """Return the swapped mask with the errors before and after, whatever `skip` says."""
        inputs = layer.calibrated
        return dsnot_refine(
            layer.weight,
            before.mask,
            total=inputs.sum,
            norm=inputs.norm,
            variance=inputs.variance,
            max_cycles=self.cycles(layer.weight.shape[1]),
            threshold=self.threshold,
            var_power=self.var_power,
            same_sign=self.same_sign,
            pattern=before.pattern,
            scores=before.scores,
        )
