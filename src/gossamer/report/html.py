"""Results as one HTML file: no network, no scripts, light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
except ImportError as error:
    raise ImportError("pages need jinja2: pip install 'gossamer[report]'") from error

from gossamer.report.plots import PALETTE, compare_plots
from gossamer.report.tables import (
    DENSE,
    HEADINGS,
    MISSING,
    STOCK,
    change,
    claim_verdict,
    compare_rows,
    decode_limit,
    evidence_setting,
    figure,
    perplexity_change,
    share,
    size,
    speedup,
    title,
    verdict,
)
from gossamer.reproduce import Evidence

QUALITY_BOUND = 0.03  # relative rise of perplexity that still counts as dense quality

_SETTINGS = {
    "model": "Model",
    "text": "Document",
    "context": "Context, tokens",
    "dtype": "Precision",
    "device": "Device",
    "machine": "Machine",
    "threads": "Threads",
    "seed": "Seed",
}
_NOT_SETTINGS = ("schema", "rows", "complete", "versions", "peak_rss_bytes")


@dataclass(frozen=True)
class Highlight:
    """The best sparse row in one respect, among those that keep the quality."""

    label: str
    value: str
    method: str
    cost: str


def compare_page(document: Mapping[str, Any]) -> str:
    """Render a comparison as one self-contained page: settings, table and plots.

    Parameters
    ----------
    document : mapping
        A results document of ``gossamer compare``, complete or not.

    Returns
    -------
    str
        HTML. The same document always gives the same text.

    Examples
    --------
    >>> page = compare_page({"rows": [{"method": "stock", "prefill_seconds": 2.5}]})
    >>> "<svg" in page, "http-equiv" in page, "<script" in page
    (True, False, False)
    """
    rows, footnotes = compare_rows(document)
    values = {
        "title": title(document),
        "complete": document.get("complete", True),
        "settings": _settings(document),
        "highlights": _highlights(document["rows"]),
        "bound": share(QUALITY_BOUND),
        "headings": HEADINGS,
        "rows": rows,
        "footnotes": footnotes,
        "limit": decode_limit(document),
        "plots": compare_plots(document),
    }
    return _render("compare.html.j2", values)


def evidence_page(evidences: Sequence[Evidence]) -> str:
    """Render reproductions as one self-contained page: every claim, its figure and ours.

    Parameters
    ----------
    evidences : sequence of Evidence
        In the order to show.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> "0 papers" in evidence_page([])
    True
    """
    return _render("evidence.html.j2", {"title": "Claims and measurements", "evidences": evidences})


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        palette=PALETTE,
        figure=figure,
        verdict=verdict,
        claim_verdict=claim_verdict,
        evidence_setting=evidence_setting,
    )
    return environment.get_template(template).render(values)


def _settings(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pair every setting of the run with a label, the well-known ones first."""
    names = [name for name in _SETTINGS if name in document]
    names += [name for name in document if name not in _SETTINGS and name not in _NOT_SETTINGS]
    pairs = [
        (_SETTINGS.get(name, name.replace("_", " ").capitalize()), _setting(document[name]))
        for name in names
    ]
    if document.get("peak_rss_bytes") is not None:
        pairs.append(("Peak memory", size(document["peak_rss_bytes"])))
    if document.get("versions"):
        versions = (f"{name} {version}" for name, version in document["versions"].items())
        pairs.append(("Versions", ", ".join(versions)))
    return pairs


def _setting(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:,}" if isinstance(value, int) else str(value)


def _highlights(rows: Sequence[Mapping[str, Any]]) -> list[Highlight]:
    """Pick the fastest sparse rows whose quality is dense attention's, within the bound."""
    dense = next((row for row in rows if row["method"] == DENSE), {})
    kept = [row for row in rows if row["method"] not in (STOCK, DENSE) and _keeps(row, dense)]
    highlights = []
    for label, name in (("Prefill", "prefill_speedup"), ("Decode", "decode_speedup")):
        timed = [row for row in kept if row.get(name) is not None]
        if timed:
            best = max(timed, key=lambda row: row[name])
            cost = f"perplexity {change(perplexity_change(best, dense))} against dense"
            if passkey := best.get("passkey"):
                cost += f", passkeys {passkey['found']}/{passkey['asked']}"
            highlights.append(Highlight(label, speedup(best[name]), best["method"], cost))
    return highlights


def _keeps(row: Mapping[str, Any], dense: Mapping[str, Any]) -> bool:
    worse = perplexity_change(row, dense)
    ours, base = row.get("passkey"), dense.get("passkey")
    lost = ours is not None and base is not None and ours["found"] < base["found"]
    return worse is not None and worse <= QUALITY_BOUND and not lost
