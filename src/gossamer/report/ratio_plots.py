"""The plots of evidence and of benchmarks: quotients on a logarithmic scale."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from gossamer.report.drawing import (
    BAR,
    PALETTE,
    ROOM,
    WIDTH,
    Axes,
    Plot,
    columns,
    frame,
    style,
    svg,
)
from gossamer.report.words import share
from gossamer.reproduce import Evidence


def evidence_plots(evidence: Evidence, prefix: str = "") -> tuple[Plot, ...]:
    """Draw every claim that compares two positive numbers: ours over the baseline.

    Parameters
    ----------
    evidence : Evidence
    prefix : str, default ""
        Begins every id in the drawing.

    Returns
    -------
    tuple of Plot
        One, or none where no claim is of that kind.
    """
    drawn = [
        (number, float(claim.ours) / float(claim.baseline), claim.holds)
        for number, claim in enumerate(evidence.claims, start=1)
        if _positive(claim.ours) and _positive(claim.baseline)
    ]
    if not drawn:
        return ()
    with style():
        figure, axes = frame([f"claim {number}" for number, _, _ in drawn])
        axes.set_xscale("log")
        axes.vlines(1, -0.5, len(drawn) - 0.5, color=PALETTE["muted"], linewidth=0.8)
        for place, (_, quotient, holds) in enumerate(drawn):
            colour = PALETTE["sparse" if holds else "search"]
            axes.plot([1, quotient], [place, place], color=colour, linewidth=2)
            face = colour if holds else PALETTE["page"]
            axes.scatter(quotient, place, s=46, color=face, edgecolor=colour, zorder=3)
        _log_room(axes, [quotient for _, quotient, _ in drawn])
        words = [(f"{quotient:.3g}", "yes" if holds else "no") for _, quotient, holds in drawn]
        columns(axes, ("ours / baseline", "holds"), words)
        drawing = svg(figure, f"{prefix}evidence")
    listed = "; ".join(
        f"claim {number} {quotient:.3g}, {'holds' if holds else 'does not hold'}"
        for number, quotient, holds in drawn
    )
    return (
        Plot(
            "Ours over the baseline",
            "On a logarithmic scale; the line is the baseline. Which side is better depends on the "
            "claim. Rings do not hold.",
            f"Ours over the baseline: {listed}.",
            drawing,
        ),
    )


def figures_plots(document: Mapping[str, Any], prefix: str = "") -> tuple[Plot, ...]:
    """Draw the ratios of a benchmark that have a bar to reach, or all where none has.

    Parameters
    ----------
    document : mapping
        What ``gossamer bench`` writes.
    prefix : str, default ""
        Begins every id in the drawing.

    Returns
    -------
    tuple of Plot
        One, or none without a positive ratio.
    """
    rows = [row for row in document["figures"] if row["ratio"] > 0]
    rows = [row for row in rows if row.get("bar")] or rows
    if not rows:
        return ()
    with style():
        figure, axes = frame([_figure_name(row) for row in rows], width=1.6 * WIDTH)
        axes.set_xscale("log")
        axes.vlines(1, -0.5, len(rows) - 0.5, color=PALETTE["muted"], linewidth=0.8)
        for place, row in enumerate(rows):
            missed = row.get("holds") is False
            colour = PALETTE["search" if missed else "sparse"]
            left, right = sorted((1, row["ratio"]))
            axes.barh(place, right - left, left=left, height=BAR, color=colour)
            if row.get("bar"):
                ends = place - 0.42, place + 0.42
                axes.vlines(row["bar"], *ends, color=PALETTE["ink"], linewidth=1.6)
        _log_room(axes, [row[name] for row in rows for name in ("ratio", "bar") if row.get(name)])
        words = [
            (f"{row['ratio']:.2f}", f"{row['bar']:.2f}" if row.get("bar") else "") for row in rows
        ]
        columns(axes, ("ratio", "bar"), words)
        drawing = svg(figure, f"{prefix}figures")
    listed = "; ".join(f"{_figure_name(row)} {row['ratio']:.2f}" for row in rows)
    return (
        Plot(
            "Ratios",
            "The baseline's time over ours, on a logarithmic scale: right of the line is faster. "
            "The mark is the bar to reach; amber ones miss it.",
            f"Baseline over ours: {listed}.",
            drawing,
        ),
    )


def _figure_name(row: Mapping[str, Any]) -> str:
    density = row.get("density")
    return row["name"] if density is None else f"{row['name']} ({share(density)})"


def _positive(value: float | str | None) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < math.inf


def _log_room(axes: Axes, values: Sequence[float]) -> None:
    """Leave the columns their part of a logarithmic axis that holds 1 and all values."""
    low, high = math.log(min(1, *values)), math.log(max(1, *values))
    span = max(high - low, 0.1)
    axes.set_xlim(math.exp(low - 0.04 * span), math.exp(low + ROOM * 1.1 * span))
    axes.set_xticks([], minor=True)
    axes.set_xticks([])
