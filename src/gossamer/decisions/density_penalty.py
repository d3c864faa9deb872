"""Thinning a DAG out while it learns: a penalty on edge density beside a moving target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from gossamer.decisions.dags import edge_density
from gossamer.schedules import Linear

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class DensityPenalty:
    """A loss ``weight(step) * |density - target(step)|`` on the edges of a batch of DAGs.

    Parameters
    ----------
    target : Schedule
        Density of edges aimed at, in [0, 1].
    weight : Schedule
        Of the penalty against the rest of the loss.

    Examples
    --------
    >>> from gossamer.decisions import full_dag
    >>> penalty = DensityPenalty.annealed(100, weight=0.1, final_weight=1.0)
    >>> [round(penalty(full_dag(4), step).item(), 2) for step in (40, 55, 70, 100)]
    [0.0, 0.05, 0.1, 1.0]
    """

    target: Schedule
    weight: Schedule

    @classmethod
    def annealed(cls, steps: int, *, weight: float = 0.1, final_weight: float = 1.0) -> Self:
        """Aim at all edges for 40 % of `steps`, then at ever fewer, after 70 % at none.

        The authors' schedule for StarCraft; they take `weight` 0.1 or 0.05, which grows to
        `final_weight`, 1 or 0.5, in the last 30 %.
        """
        if steps < 10:
            raise ValueError(f"steps: expected at least 10, got {steps}")
        if not 0 <= weight <= final_weight:
            raise ValueError(
                f"expected 0 <= weight <= final_weight, got {weight} and {final_weight}"
            )
        begin, low = round(0.4 * steps), round(0.7 * steps)
        return cls(
            target=Linear(1.0, 0.0, steps=low - begin, begin=begin),
            weight=Linear(weight, final_weight, steps=steps - low, begin=low),
        )

    def __call__(self, adjacency: Tensor, step: int) -> Tensor:
        """Return the penalty [] on DAGs [..., n, n] at a step."""
        return self.weight(step) * (edge_density(adjacency) - self.target(step)).abs()
