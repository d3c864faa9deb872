"""The plots of a comparison, as SVG that takes its colours and its type from the page.

Text stays text and every colour is a CSS variable with a printed fallback, so one drawing serves
light and dark pages. The same document always gives the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

from gossamer.report.tables import (
    DENSE,
    STOCK,
    change,
    milliseconds,
    perplexity_change,
    seconds,
    share,
    speedup,
)
from gossamer.reproduce import Evidence

# CSS variable -> the light page's value, which matplotlib draws with
PALETTE = {
    "page": "#fdfdfc",
    "ink": "#1d2430",
    "muted": "#697180",
    "rule": "#dde1e6",
    "stock": "#b4bcc8",
    "dense": "#7d8a9c",
    "sparse": "#12766c",
    "search": "#d39a3c",
}
_WIDTH = 5.4  # inches
_BAR = 0.56
_ROOM = 1.55  # the longest bar's share of the width is 1 / _ROOM, the columns take the rest
_COLUMNS = (0.84, 1.0)
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


@dataclass(frozen=True)
class Plot:
    """A drawing and the words that stand for it.

    Parameters
    ----------
    title : str
        What it shows.
    caption : str
        How to read it.
    description : str
        The drawn values in words, for readers who do not see the drawing.
    svg : str
        One ``<svg>`` element.
    """

    title: str
    caption: str
    description: str
    svg: str


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
    with _style():
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
    with _style():
        figure, axes = _frame([f"claim {number}" for number, _, _ in drawn])
        axes.set_xscale("log")
        axes.vlines(1, -0.5, len(drawn) - 0.5, color=PALETTE["muted"], linewidth=0.8)
        for place, (_, quotient, holds) in enumerate(drawn):
            colour = PALETTE["sparse" if holds else "search"]
            axes.plot([1, quotient], [place, place], color=colour, linewidth=2)
            face = colour if holds else PALETTE["page"]
            axes.scatter(quotient, place, s=46, color=face, edgecolor=colour, zorder=3)
        _log_room(axes, [quotient for _, quotient, _ in drawn])
        words = [(f"{quotient:.3g}", "yes" if holds else "no") for _, quotient, holds in drawn]
        _columns(axes, ("ours / baseline", "holds"), words)
        svg = _svg(figure, f"{prefix}evidence")
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
            svg,
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
    with _style():
        figure, axes = _frame([_figure_name(row) for row in rows], width=1.6 * _WIDTH)
        axes.set_xscale("log")
        axes.vlines(1, -0.5, len(rows) - 0.5, color=PALETTE["muted"], linewidth=0.8)
        for place, row in enumerate(rows):
            missed = row.get("holds") is False
            colour = PALETTE["search" if missed else "sparse"]
            left, right = sorted((1, row["ratio"]))
            axes.barh(place, right - left, left=left, height=_BAR, color=colour)
            if row.get("bar"):
                ends = place - 0.42, place + 0.42
                axes.vlines(row["bar"], *ends, color=PALETTE["ink"], linewidth=1.6)
        _log_room(axes, [row[name] for row in rows for name in ("ratio", "bar") if row.get(name)])
        words = [
            (f"{row['ratio']:.2f}", f"{row['bar']:.2f}" if row.get("bar") else "") for row in rows
        ]
        _columns(axes, ("ratio", "bar"), words)
        svg = _svg(figure, f"{prefix}figures")
    listed = "; ".join(f"{_figure_name(row)} {row['ratio']:.2f}" for row in rows)
    return (
        Plot(
            "Ratios",
            "The baseline's time over ours, on a logarithmic scale: right of the line is faster. "
            "The mark is the bar to reach; amber ones miss it.",
            f"Baseline over ours: {listed}.",
            svg,
        ),
    )


@contextmanager
def _style() -> Generator[None, None, None]:
    """Draw alike on every machine: the reader's own matplotlib settings wait outside."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": "sans-serif",
                "font.size": 10,
                "text.color": PALETTE["ink"],
                "text.parse_math": False,
                "xtick.color": PALETTE["muted"],
                "ytick.color": PALETTE["ink"],
                "axes.labelcolor": PALETTE["muted"],
                "svg.fonttype": "none",
            }
        )
        yield


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
    figure, axes = _frame([row["method"] for row in drawn])
    axes.barh(range(len(drawn)), values, height=_BAR, color=[_colour(row) for row in drawn])
    for row in drawn:
        if row["method"] == STOCK:
            axes.vlines(row[name], -0.5, len(drawn) - 0.5, color=PALETTE["muted"], linewidth=0.8)
    axes.set_xlim(0, max(values) * _ROOM or 1)
    _columns(
        axes,
        ("time", "vs stock"),
        [(word(row[name]), speedup(row.get(speedup_name))) for row in drawn],
    )
    words = "; ".join(f"{row['method']} {word(row[name])}" for row in drawn)
    return Plot(title, caption, f"{title}: {words}.", _svg(figure, f"{prefix}{title}"))


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
    figure = Figure(figsize=(_WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
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
        _svg(figure, f"{prefix}quality"),
    )


def _skipped(rows: Sequence[Mapping[str, Any]], prefix: str) -> Plot | None:
    drawn = [row for row in rows if row.get("density") is not None]
    if not drawn:
        return None
    figure, axes = _frame([row["method"] for row in drawn])
    for index, row in enumerate(drawn):
        search = row.get("selection_share")
        height = _BAR / 2 if search else _BAR
        shift = height / 2 if search else 0
        axes.barh(index - shift, row["density"], height=height, color=_colour(row))
        axes.barh(index + shift, search or 0, height=height, color=PALETTE["search"])
    axes.set_xlim(0, max(1, *(row["density"] for row in drawn)) * _ROOM)
    _columns(
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
        _svg(figure, f"{prefix}computed"),
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
    axes.set_xlim(math.exp(low - 0.04 * span), math.exp(low + _ROOM * 1.1 * span))
    axes.set_xticks([], minor=True)
    axes.set_xticks([])


def _frame(methods: Sequence[str], width: float = _WIDTH) -> tuple[Figure, Axes]:
    """Return empty axes for horizontal bars, the first method on top."""
    figure = Figure(figsize=(width, 0.36 * (len(methods) + 1)), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -1.2)
    axes.tick_params(axis="both", length=0)
    axes.set_xticks([])
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)


def _columns(axes: Axes, headings: tuple[str, str], values: Sequence[tuple[str, str]]) -> None:
    """Write the values beside the bars in two columns, so that the eye can run down them."""
    where = axes.get_yaxis_transform()
    for x, heading, column in zip(_COLUMNS, headings, zip(*values, strict=True), strict=True):
        axes.text(x, -0.8, heading, transform=where, ha="right", color=PALETTE["muted"], fontsize=9)
        for y, value in enumerate(column):
            axes.text(x, y, value, transform=where, ha="right", va="center_baseline")


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name on the first side where it covers no point and no other name."""
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


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an element that can share a page with others."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    prefix = re.sub(r"\W+", "-", name.lower())
    text = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach the whole page
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text
