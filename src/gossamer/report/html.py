"""Results as one HTML file: no network, no scripts, light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
except ImportError as error:
    raise ImportError("pages need jinja2: pip install 'gossamer[report]'") from error

from gossamer.report.documents import Result
from gossamer.report.drawing import PALETTE
from gossamer.report.plots import compare_plots
from gossamer.report.ratio_plots import evidence_plots, figures_plots
from gossamer.report.tables import (
    CLAIM_HEADINGS,
    DENSE,
    FIGURE_HEADINGS,
    HEADINGS,
    STOCK,
    claim_rows,
    compare_rows,
    decode_limit,
    evidence_setting,
    figure_rows,
    figures_setting,
    perplexity_change,
    title,
    verdict,
)
from gossamer.report.words import MISSING, change, share, size, speedup
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
    return _render("compare.html.j2", {"title": title(document), "view": _comparison(document)})


def report_page(results: Sequence[Result], left_out: Sequence[str] = ()) -> str:
    """Render any results as one self-contained page: every figure in a table, and as a plot.

    Parameters
    ----------
    results : sequence of Result
        In the order to show, as `gossamer.report.documents.gather` returns them.
    left_out : sequence of str, default ()
        What was found and is not shown, with the reason, one line each.

    Returns
    -------
    str
        HTML. The same results always give the same text.

    Examples
    --------
    >>> "0 results" in report_page([])
    True
    """
    sections = [_section(result, f"result-{n}") for n, result in enumerate(results, start=1)]
    values = {"title": "Claims and measurements", "sections": sections, "left_out": left_out}
    return _render("report.html.j2", values)


def _section(result: Result, anchor: str) -> dict[str, Any]:
    """What the template shows of one result; ids inside its drawings begin with the anchor."""
    section: dict[str, Any] = {"anchor": anchor, "name": result.name, "kind": result.kind}
    if isinstance(result.content, Evidence):
        evidence = result.content
        holding = "good" if evidence.holds else "bad"
        return section | {
            "short": verdict(evidence),
            "tone": holding,
            "headings": CLAIM_HEADINGS,
            "rows": claim_rows(evidence),
            "plots": evidence_plots(evidence, anchor),
            "setting": f"{evidence_setting(evidence)}; {evidence.machine}",
        }
    document = result.content
    if result.kind == "comparison":
        methods = f"{len(document['rows'])} methods"
        return section | {"short": methods, "tone": "", "view": _comparison(document, anchor)}
    missed = sum(row.get("holds") is False for row in document["figures"])
    barred = sum(row.get("holds") is not None for row in document["figures"])
    return section | {
        "short": f"{barred - missed} of {barred} bars reached" if barred else "no bars",
        "tone": "bad" if missed else "good",
        "headings": FIGURE_HEADINGS,
        "rows": figure_rows(document),
        "plots": figures_plots(document, anchor),
        "setting": figures_setting(document),
    }


def _comparison(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows, footnotes = compare_rows(document)
    return {
        "complete": document.get("complete", True),
        "settings": _settings(document),
        "highlights": _highlights(document["rows"]),
        "bound": share(QUALITY_BOUND),
        "headings": HEADINGS,
        "rows": rows,
        "footnotes": footnotes,
        "limit": decode_limit(document),
        "plots": compare_plots(document, prefix),
    }


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(palette=PALETTE)
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
