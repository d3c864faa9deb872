"""The plots of a comparison, as SVG that takes its colours and its type from the page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gossamer.report.drawing import (
    BAR,
    PALETTE,
    ROOM,
    WIDTH,
    Axes,
    Figure,
    Plot,
    bare,
    columns,
    frame,
    style,
    svg,
)
from gossamer.report.tables import DENSE, STOCK, perplexity_change
from gossamer.report.words import change, milliseconds, seconds, share, speedup

_STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # ticks of a relative change
# where a point's name may stand: offset in points, alignment
_SIDES = (
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (8, 14, "left", "center"),
    (-8, 14, "right", "center"),
    (8, -14, "left", "center"),
    (-8, -14, "right", "center"),
)


def compare_plots(document: Mapping[str, Any], prefix: str = "") -> tuple[Plot, ...]:
    """Draw a comparison: prefill, decode, quality against speed, and what was skipped.

    Parameters
    ----------
    document : mapping
        A results document of ``gossamer compare``.
    prefix : str, default ""
        Begins every id in the drawings, so that several comparisons may share a page.

    Returns
    -------
    tuple of Plot
        Plots for which no row has data are left out.

    Examples
    --------
    >>> rows = [{"method": "stock", "prefill_seconds": 2.0}]
    >>> [plot.title for plot in compare_plots({"rows": rows})]
    ['Prefill']
    """
    rows = document["rows"]
    with style():
        plots = (
            _bars(
                "Prefill",
                "Time to read the whole context; shorter is faster. The line marks stock.",
                rows,
                "prefill_seconds",
                "prefill_speedup",
                seconds,
                prefix,
            ),
            _bars(
                "Decode",
                "Time to write one token; shorter is faster. The line marks stock.",
                rows,
                "decode_ms_per_token",
                "decode_speedup",
                milliseconds,
                prefix,
            ),
            _quality(rows, prefix),
            _skipped(rows, prefix),
        )
    return tuple(plot for plot in plots if plot is not None)


def _bars(
    title: str,
    caption: str,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    speedup_name: str,
    word: Callable[[float | None], str],
    prefix: str,
) -> Plot | None:
    drawn = [row for row in rows if row.get(name) is not None]
    if not drawn:
        return None
    values = [row[name] for row in drawn]
    figure, axes = frame([row["method"] for row in drawn])
    axes.barh(range(len(drawn)), values, height=BAR, color=[_colour(row) for row in drawn])
    for row in drawn:
        if row["method"] == STOCK:
            axes.vlines(row[name], -0.5, len(drawn) - 0.5, color=PALETTE["muted"], linewidth=0.8)
    axes.set_xlim(0, max(values) * ROOM or 1)
    columns(
        axes,
        ("time", "vs stock"),
        [(word(row[name]), speedup(row.get(speedup_name))) for row in drawn],
    )
    words = "; ".join(f"{row['method']} {word(row[name])}" for row in drawn)
    return Plot(title, caption, f"{title}: {words}.", svg(figure, f"{prefix}{title}"))


def _quality(rows: Sequence[Mapping[str, Any]], prefix: str) -> Plot | None:
    dense = next((row for row in rows if row["method"] == DENSE), {})
    points = [
        (row["decode_speedup"], worse, row)
        for row in rows
        if row.get("decode_speedup") is not None
        and (worse := perplexity_change(row, dense)) is not None
    ]
    if not points:
        return None
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.tick_params(axis="both", which="both", length=0, labelsize=9, colors=PALETTE["muted"])
    axes.grid(color=PALETTE["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    axes.set_yscale("symlog", linthresh=0.01)  # one bad row must not flatten the others
    axes.set_yticks([0, *(sign * step for step in _STEPS for sign in (-1, 1))])
    axes.set_yticks([], minor=True)
    axes.axhline(0, color=PALETTE["dense"], linewidth=0.9)
    axes.set_xlabel("decode speed-up over stock", fontsize=9)
    axes.set_ylabel("perplexity against dense", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:+g} %" if value else "0 %")
    for x, y, row in points:
        axes.scatter(x, y, s=52, color=_colour(row), edgecolor=PALETTE["page"], zorder=3)
    heights = [0.0, *(y for _, y, _ in points)]
    axes.set_ylim(2 * min(heights) - 0.005, 2 * max(heights) + 0.005)
    _name_points(figure, axes, [(x, y, row["method"]) for x, y, row in points])
    words = "; ".join(f"{row['method']} {speedup(x)}, {change(y)}" for x, y, row in points)
    return Plot(
        "Quality against speed",
        "Right is faster, down is better; on the line, perplexity equals dense attention's. "
        "The vertical scale is logarithmic beyond 1 %.",
        f"Decode speed-up and change of perplexity: {words}.",
        svg(figure, f"{prefix}quality"),
    )


def _skipped(rows: Sequence[Mapping[str, Any]], prefix: str) -> Plot | None:
    drawn = [row for row in rows if row.get("density") is not None]
    if not drawn:
        return None
    figure, axes = frame([row["method"] for row in drawn])
    for index, row in enumerate(drawn):
        search = row.get("selection_share")
        height = BAR / 2 if search else BAR
        shift = height / 2 if search else 0
        axes.barh(index - shift, row["density"], height=height, color=_colour(row))
        axes.barh(index + shift, search or 0, height=height, color=PALETTE["search"])
    axes.set_xlim(0, max(1, *(row["density"] for row in drawn)) * ROOM)
    columns(
        axes,
        ("density", "search"),
        [(share(row["density"]), share(row.get("selection_share"))) for row in drawn],
    )
    words = "; ".join(
        f"{row['method']} {share(row['density'])}, search {share(row.get('selection_share'))}"
        for row in drawn
    )
    return Plot(
        "What was computed",
        "Share of all causal query-key pairs that attention computed and, in amber, "
        "the cost of choosing them.",
        f"Attention density and search: {words}.",
        svg(figure, f"{prefix}computed"),
    )


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name on the first side where it covers no point and no other name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the points are
    centres = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox([centre - 6, centre + 6]) for centre in centres]
    for x, y, name in points:
        for dx, dy, across, up in _SIDES:
            label = axes.annotate(
                name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=across, va=up
            )
            box = label.get_window_extent()
            if not box.count_overlaps(taken):
                break
            label.remove()
        else:
            continue
        taken.append(box)


def _colour(row: Mapping[str, Any]) -> str:
    method = row["method"]
    return PALETTE[method if method in (STOCK, DENSE) else "sparse"]
