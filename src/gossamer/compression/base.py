"""The base of methods that prune linear layers one by one, after training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossamer.budgets import Density, TopK
from gossamer.compression.input_statistics import InputStatistics, Statistics
from gossamer.patterns import NM, Unstructured, WeightPattern

UNSTRUCTURED = Unstructured()


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer as a method sees it.

    Parameters
    ----------
    name : str
        Its name in the model.
    weight : Tensor [out, in] float32
        As it was before pruning; methods do not change it.
    inputs : InputStatistics, optional
        Of its inputs while the model, pruned up to this block, reads the calibration text.
    """

    name: str
    weight: Tensor
    inputs: InputStatistics | None = None

    @property
    def calibrated(self) -> InputStatistics:
        """The statistics; ValueError where there are none."""
        if self.inputs is None:
            raise ValueError("this method needs statistics of the inputs; try calibration=batches")
        return self.inputs


@dataclass(frozen=True, eq=False)
class Decision:
    """Which weights of a layer stay.

    Parameters
    ----------
    mask : Tensor [out, in] bool
    scores : Tensor [out, in]
        By which the mask was chosen first.
    pattern : WeightPattern
        That the mask has.
    """

    mask: Tensor
    scores: Tensor
    pattern: WeightPattern


class PruningMethod(ABC):
    """A pruning method: frozen hyper-parameters and three hooks.

    `collect` says what it must know of a layer's inputs. `decide` returns which weights stay,
    given what the method before it in a list has decided. `apply`, of the last method in the
    list, returns the weight that the layer gets.
    """

    collect: ClassVar[Statistics] = "moments"

    @property
    def refines(self) -> bool:
        """Whether `decide` starts from another method's decision."""
        return False

    @abstractmethod
    def decide(self, layer: Layer, before: Decision | None) -> Decision:
        """Return which weights stay; `before` is None for the first method of a list."""

    def apply(self, layer: Layer, decision: Decision) -> Tensor:
        """Return the pruned weight [out, in] float32: here, zero outside the mask."""
        return layer.weight.masked_fill(~decision.mask, 0.0)


@dataclass(frozen=True)
class ScoreMethod(PruningMethod):
    """A method that keeps what scores best.

    Parameters
    ----------
    density : float, optional
        Share of weights kept, in (0, 1]; for N:M it follows from the pattern.
    pattern : Unstructured or NM, default=Unstructured()

    Raises
    ------
    ValueError, TypeError
        If the density is missing, out of range or not the pattern's.
    """

    density: float | None = None
    pattern: WeightPattern = UNSTRUCTURED

    compared_over: ClassVar[int | None] = -1  # the dimension of the weights that compete

    def __post_init__(self) -> None:
        check_target(self.density, self.pattern)

    @abstractmethod
    def score(self, layer: Layer) -> Tensor:
        """Return how much each weight matters, [out, in]."""

    def decide(self, layer: Layer, before: Decision | None = None) -> Decision:
        scores = self.score(layer)
        if isinstance(self.pattern, NM):
            budget = TopK(self.pattern.n)
        else:
            budget = Density(self.density or 1.0, dim=self.compared_over)
        return Decision(budget.select(scores, self.pattern), scores, self.pattern)


def check_target(density: float | None, pattern: WeightPattern) -> None:
    """Raise unless a density and a pattern name one share of weights to keep."""
    if isinstance(pattern, NM):
        if density is not None and abs(density - pattern.n / pattern.m) > 1e-9:
            raise ValueError(
                f"expected density {pattern.n / pattern.m:g} with {pattern}, got {density}; "
                "try to leave it out"
            )
    elif not isinstance(pattern, Unstructured):
        raise TypeError(f"expected pattern to be Unstructured or NM, got {pattern!r}")
    elif density is None:
        raise ValueError("expected a density in (0, 1] or an NM pattern, got neither")
    else:
        Density(density)
