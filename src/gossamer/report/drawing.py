"""What all drawings share: colours from the page, a frame for bars, columns of values, the SVG.

Text stays text and every colour is a CSS variable with a printed fallback, so one drawing serves
light and dark pages. The same document always gives the same bytes.
"""

import io
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install 'gossamer[report]'") from error

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
WIDTH = 5.4  # inches
BAR = 0.56
ROOM = 1.55  # the longest bar's share of the width is 1 / ROOM, the columns take the rest
COLUMNS = (0.84, 1.0)


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


@contextmanager
def style() -> Generator[None, None, None]:
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


def frame(methods: Sequence[str], width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return empty axes for horizontal bars, the first method on top."""
    figure = Figure(figsize=(width, 0.36 * (len(methods) + 1)), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -1.2)
    axes.tick_params(axis="both", length=0)
    axes.set_xticks([])
    return figure, axes


def bare(axes: Axes) -> None:
    """Take away the frame and the ground."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)


def columns(axes: Axes, headings: tuple[str, str], values: Sequence[tuple[str, str]]) -> None:
    """Write the values beside the bars in two columns, so that the eye can run down them."""
    where = axes.get_yaxis_transform()
    for x, heading, column in zip(COLUMNS, headings, zip(*values, strict=True), strict=True):
        axes.text(x, -0.8, heading, transform=where, ha="right", color=PALETTE["muted"], fontsize=9)
        for y, value in enumerate(column):
            axes.text(x, y, value, transform=where, ha="right", va="center_baseline")


def svg(figure: Figure, name: str) -> str:
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
