"""Results as tables: every cell is worded here, for the terminal and for the page alike."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from gossamer.inference import LayerReport
from gossamer.report.words import (
    MISSING,
    change,
    decimals,
    divergence,
    figure,
    milliseconds,
    perplexity,
    seconds,
    share,
    size,
    speedup,
    superscript,
)
from gossamer.reproduce import Claim, Evidence

STOCK, DENSE = "stock", "dense"

_T = TypeVar("_T")
_STYLES = {"plain": "", "better": "green", "worse": "yellow"}


@dataclass(frozen=True)
class Cell:
    """One worded value; the tone is a hint for colour, never the only carrier of meaning."""

    text: str
    tone: Literal["plain", "better", "worse"] = "plain"
    small: str = ""  # a second line
    folded: str = ""  # more of it, for who asks


_HOLDS = {None: Cell(MISSING), True: Cell("yes", "better"), False: Cell("NO", "worse")}


@dataclass(frozen=True)
class Row:
    """One method's cells, one for each of `HEADINGS`, and its footnote numbers."""

    method: str
    cells: tuple[Cell, ...]
    notes: tuple[int, ...]


# The terminal stacks consecutive columns in twos: a value, and below it what to make of it.
HEADINGS = (
    *("Prefill", "vs stock"),
    *("Decode", "vs stock"),
    *("KV held", "KV read"),
    *("Density", "Search"),
    *("PPL", "vs dense"),
    *("KL", "Top-1"),
    "Keys",
)
CLAIM_HEADINGS = ("Claim", "Paper", "Baseline", "Ours", "Criterion", "Holds")
FIGURE_HEADINGS = ("Measured", "Density", "ms", "Baseline ms", "Ratio", "Spread", "Bar", "Holds")


def compare_rows(document: Mapping[str, Any]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Word the rows of a comparison and number their footnotes.

    Parameters
    ----------
    document : mapping
        A results document of ``gossamer compare``.

    Returns
    -------
    rows : tuple of Row
        One a method, in the document's order.
    footnotes : tuple of str
        Footnote n is item n - 1.
    """
    dense = next((row for row in document["rows"] if row["method"] == DENSE), {})
    footnotes: list[str] = []
    rows: list[Row] = []
    for row in document["rows"]:
        notes = _notes(row, dense)
        footnotes += [note for note in notes if note not in footnotes]
        numbers = tuple(footnotes.index(note) + 1 for note in notes)
        rows.append(Row(row["method"], _cells(row, dense), numbers))
    return tuple(rows), tuple(footnotes)


def compare_table(document: Mapping[str, Any]) -> Table:
    """Lay a comparison out for the terminal, one row a method.

    Parameters
    ----------
    document : mapping
        A results document of ``gossamer compare``.

    Returns
    -------
    rich.table.Table

    Examples
    --------
    >>> table = compare_table({"rows": [{"method": "stock", "prefill_seconds": 2.5}]})
    >>> table.row_count
    1
    """
    rows, footnotes = compare_rows(document)
    notes = [f"{superscript(index)} {note}" for index, note in enumerate(footnotes, start=1)]
    notes += [limit for limit in [decode_limit(document)] if limit]
    if document.get("peak_rss_bytes"):
        notes.append(f"peak memory of the process: {size(document['peak_rss_bytes'])}")
    table = _table(title(document), "\n".join(notes))
    table.add_column("Method", no_wrap=True)
    for stacked in _in_twos(HEADINGS):
        table.add_column("\n".join(stacked), justify="right", no_wrap=True)
    for row in rows:
        marks = " ".join(superscript(number) for number in row.notes)
        words = [Text(cell.text, style=_STYLES[cell.tone]) for cell in row.cells]
        cells = (Text("\n").join(stacked) for stacked in _in_twos(words))
        table.add_row(Text(row.method + marks, style="bold"), *cells)
    return table


def decode_limit(document: Mapping[str, Any]) -> str | None:
    """Say what a token takes outside attention, and reads; None where it is not known."""
    rows = {row["method"]: row for row in document["rows"]}
    known = [name for name in (STOCK, DENSE) if rows.get(name, {}).get("decode_floor_ms")]
    if not known:
        return None
    parts = []
    for name in known:
        words = f"{milliseconds(rows[name]['decode_floor_ms'])} of {name}"
        read = rows[name].get("weight_bytes_read_per_token")
        parts.append(words + (f", which reads {size(read)} of weights" if read else ""))
    return f"with an empty cache a token takes {'; '.join(parts)}"


def evidence_table(evidence: Evidence) -> Table:
    """Lay out a paper's claims for the terminal: its figure, ours, the criterion, the verdict.

    Parameters
    ----------
    evidence : Evidence
        Of one paper, complete or not.

    Returns
    -------
    rich.table.Table
    """
    table = _table(
        f"{evidence.slug}: {verdict(evidence)}",
        f"{evidence_setting(evidence)}\n{evidence.machine}",
    )
    table.add_column("Claim", ratio=3)
    table.add_column("Paper", ratio=2)
    for name in ("Baseline", "Ours"):
        table.add_column(name, justify="right", ratio=1)
    table.add_column("Criterion", ratio=2)
    table.add_column("Holds", no_wrap=True)
    for claim in evidence.claims:
        paper = Text(figure(claim.paper)).append(f"\n{claim.source}", style="dim")
        holds = claim_verdict(claim)
        table.add_row(
            Text(claim.claim),
            paper,
            Text(figure(claim.baseline)),
            Text(figure(claim.ours)),
            Text(claim.criterion),
            Text(holds.text, style=_STYLES[holds.tone]),
        )
    return table


def claim_rows(evidence: Evidence) -> tuple[tuple[Cell, ...], ...]:
    """Word the claims of a paper, one cell for each of `CLAIM_HEADINGS`."""
    return tuple(
        (
            Cell(f"{number}. {claim.claim}", folded=claim.setting),
            Cell(figure(claim.paper), small=claim.source),
            Cell(figure(claim.baseline)),
            Cell(figure(claim.ours)),
            Cell(claim.criterion),
            claim_verdict(claim),
        )
        for number, claim in enumerate(evidence.claims, start=1)
    )


def figures_table(document: Mapping[str, Any]) -> Table:
    """Lay out a kernel benchmark for the terminal.

    Parameters
    ----------
    document : mapping
        What ``gossamer bench`` writes.

    Returns
    -------
    rich.table.Table
    """
    table = _table(f"{document['suite'].capitalize()} kernels", figures_setting(document))
    table.add_column(FIGURE_HEADINGS[0], ratio=1)
    for name in FIGURE_HEADINGS[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in figure_rows(document):
        table.add_row(*(Text(cell.text, style=_STYLES[cell.tone]) for cell in row))
    return table


def figure_rows(document: Mapping[str, Any]) -> tuple[tuple[Cell, ...], ...]:
    """Word the ratios of a benchmark, one cell for each of `FIGURE_HEADINGS`."""
    return tuple(
        (
            Cell(row["name"]),
            Cell(decimals(row.get("density"), 3)),
            Cell(decimals(row.get("milliseconds"), 2)),
            Cell(decimals(row.get("baseline_milliseconds"), 2)),
            Cell(decimals(row["ratio"], 2)),
            Cell(decimals(row.get("spread"), 2)),
            Cell(decimals(row.get("bar"), 2)),
            _HOLDS[row.get("holds")],
        )
        for row in document["figures"]
    )


def figures_setting(document: Mapping[str, Any]) -> str:
    """Say in one line how a benchmark was taken."""
    threads, rounds = document.get("threads"), document.get("repeats", document.get("rounds"))
    parts = (
        document.get("machine"),
        None if threads is None else f"{threads} thread{'s'[: threads != 1]}",
        None if rounds is None else f"medians of {rounds} interleaved rounds",
    )
    return ", ".join(str(part) for part in parts if part)


def layers_table(layers: Sequence[LayerReport]) -> Table:
    """Lay out what `gossamer.inference.compile` chose, one row a layer.

    Parameters
    ----------
    layers : sequence of LayerReport
        As ``SparseModel.report()`` returns them.

    Returns
    -------
    rich.table.Table

    Examples
    --------
    >>> layer = LayerReport("conv", (8, 4, 1, 1), (1, 8, 5, 5), 0.25, "spmm", 200, 0.5, 1.0)
    >>> layers_table([layer]).row_count
    1
    """
    kernels = Counter(layer.kernel for layer in layers)
    listed = ", ".join(f"{name} {count}" for name, count in kernels.most_common())
    multiplied = sum(layer.multiplications for layer in layers) / 1e6
    table = _table(f"{len(layers)} layers", f"{listed}; {multiplied:.1f} million multiplications")
    table.add_column("Layer", no_wrap=True)
    for name in ("Weight", "Output", "Density", "Kernel", "Sparse", "Dense", "Gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers:
        sparse, dense = layer.sparse_ms, layer.dense_ms
        gain = dense / sparse if sparse and dense else None
        table.add_row(
            Text(layer.name, style="bold"),
            "x".join(map(str, layer.weight)),
            "x".join(map(str, layer.output)),
            share(layer.density),
            layer.kernel,
            milliseconds(sparse),
            milliseconds(dense),
            Text(speedup(gain), style=_STYLES["better" if gain and gain > 1 else "plain"]),
        )
    return table


def title(document: Mapping[str, Any]) -> str:
    """Name a comparison by its model, context, precision and device."""
    context = document.get("context")
    parts = [
        document.get("model"),
        f"{context:,} tokens" if isinstance(context, int) else None,
        document.get("dtype"),
        document.get("device"),
        None if document.get("complete", True) else "incomplete",
    ]
    return " · ".join(str(part) for part in parts if part)


def verdict(evidence: Evidence) -> str:
    """Say in words whether a paper's claims hold here."""
    if not evidence.complete:
        return f"incomplete ({evidence.error})"
    held = sum(claim.holds for claim in evidence.claims)
    return f"{held} of {len(evidence.claims)} claims hold"


def claim_verdict(claim: Claim) -> Cell:
    """Say in a word whether a claim holds here."""
    return Cell("yes", "better") if claim.holds else Cell("no", "worse")


def evidence_setting(evidence: Evidence) -> str:
    """Say in one line how evidence was made."""
    return (
        f"{evidence.scale}, seed {evidence.seed}, {evidence.device}, "
        f"{evidence.threads} threads, {evidence.seconds:.1f} s"
    )


def perplexity_change(row: Mapping[str, Any], dense: Mapping[str, Any]) -> float | None:
    """Return by how much a row's perplexity exceeds dense attention's, relative to it."""
    ours, base = row.get("perplexity"), dense.get("perplexity")
    return None if ours is None or not base else ours / base - 1


def _table(heading: str, footnotes: str) -> Table:
    return Table(
        title=Text(heading, style="bold"),
        title_justify="left",
        caption=Text(footnotes, style="dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _in_twos(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[index : index + 2] for index in range(0, len(items), 2)]


def _cells(row: Mapping[str, Any], dense: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        Cell(seconds(row.get("prefill_seconds"))),
        _speedup_cell(row, "prefill_speedup"),
        Cell(milliseconds(row.get("decode_ms_per_token"))),
        _speedup_cell(row, "decode_speedup"),
        Cell(size(row.get("kv_bytes"))),
        Cell(size(row.get("kv_bytes_read_per_token"))),
        Cell(share(row.get("density"))),
        Cell(share(row.get("selection_share"))),
        Cell(perplexity(row.get("perplexity"))),
        Cell(change(perplexity_change(row, dense))),
        Cell(divergence(row.get("kl"))),
        Cell(share(row.get("top1_agreement"))),
        _passkey_cell(row.get("passkey")),
    )


def _speedup_cell(row: Mapping[str, Any], name: str) -> Cell:
    value = row.get(name)
    if value is None or row["method"] == STOCK:
        return Cell(speedup(value))
    return Cell(speedup(value), "better" if value > 1 else "worse" if value < 1 else "plain")


def _passkey_cell(passkey: Mapping[str, int] | None) -> Cell:
    if passkey is None:
        return Cell(MISSING)
    lost = passkey["found"] < passkey["asked"]
    return Cell(f"{passkey['found']}/{passkey['asked']}", "worse" if lost else "plain")


def _notes(row: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    """Collect a row's own notes, and say so where a sparse method is slower than dense."""
    own = row.get("notes") or []
    notes = [own] if isinstance(own, str) else list(own)
    if row["method"] in (STOCK, DENSE):
        return notes
    for phase, name in (("prefill", "prefill_seconds"), ("decode", "decode_ms_per_token")):
        ours, base = row.get(name), dense.get(name)
        if ours and base and ours > base:
            notes.append(f"slower than dense at {phase} ({speedup(base / ours)})")
    return notes
