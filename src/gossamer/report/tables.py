"""Results as tables: every cell is worded here, for the terminal and for the page alike."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from gossamer.inference import LayerReport
from gossamer.reproduce import Claim, Evidence

STOCK, DENSE = "stock", "dense"
MISSING = "\N{EN DASH}"

_T = TypeVar("_T")
_STYLES = {"plain": "", "better": "green", "worse": "yellow"}


@dataclass(frozen=True)
class Cell:
    """One worded value; the tone is a hint for colour, never the only carrier of meaning."""

    text: str
    tone: Literal["plain", "better", "worse"] = "plain"


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
    """Say what time outside attention leaves to gain at decode; None where it is not known."""
    stock = next((row for row in document["rows"] if row["method"] == STOCK), {})
    floor, decode = stock.get("decode_floor_ms"), stock.get("decode_ms_per_token")
    if not floor or not decode:
        return None
    return (
        f"stock decodes with an empty cache in {milliseconds(floor)}: attention alone can gain "
        f"{speedup(decode / floor)} at most"
    )


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
    table = _table(
        f"{document['suite'].capitalize()} kernels",
        f"{document['machine']}, {document['threads']} threads, medians of "
        f"{document['repeats']} interleaved rounds",
    )
    table.add_column("Measured", ratio=1)
    for name in ("Density", "ms", "Baseline ms", "Ratio", "Spread", "Bar"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Holds", no_wrap=True)
    for row in document["figures"]:
        times = (row["milliseconds"], row["baseline_milliseconds"])
        bar, holds = row["bar"], row["holds"]
        table.add_row(
            Text(row["name"]),
            f"{row['density']:.3f}",
            *(MISSING if ms is None else f"{ms:.2f}" for ms in times),
            f"{row['ratio']:.2f}",
            f"{row['spread']:.2f}",
            MISSING if bar is None else f"{bar:.2f}",
            MISSING if holds is None else "yes" if holds else "NO",
        )
    return table


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


def seconds(value: float | None) -> str:
    """Word a duration given in seconds, for example ``12.3 s`` or ``840 ms``."""
    if value is None:
        return MISSING
    return f"{_short(value)} s" if value >= 1 else milliseconds(value * 1e3)


def milliseconds(value: float | None) -> str:
    """Word a duration given in milliseconds."""
    return MISSING if value is None else f"{_short(value)} ms"


def speedup(value: float | None) -> str:
    """Word a speed-up; below 1 is slower, and keeps its decimals."""
    return MISSING if value is None else f"{_short(value)}x"


def size(value: float | None) -> str:
    """Word a number of bytes in binary units, for example ``360 MiB``."""
    if value is None:
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{_short(value)} {unit}"
        value /= 1024
    return f"{_short(value)} GiB"


def share(value: float | None) -> str:
    """Word a share of 1 in per cent; only the whole is called 100 %, only nothing 0 %."""
    if value is None:
        return MISSING
    if 0 < value < 1e-4:
        return "<0.01 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    percent = f"{value * 100:.{2 if value < 0.01 else 1}f}"
    return f"{percent.rstrip('0').rstrip('.')} %"


def change(value: float | None) -> str:
    """Word a relative change, for example ``+0.8 %``."""
    if value is None:
        return MISSING
    words = f"{value * 100:+.{1 if abs(value) < 10 else 0}f} %"
    return "0 %" if words in ("+0.0 %", "-0.0 %") else words


def perplexity(value: float | None) -> str:
    """Word a perplexity; beyond a thousand only its size matters."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def divergence(value: float | None) -> str:
    """Word a Kullback-Leibler divergence in nats."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def figure(value: float | str | None) -> str:
    """Word a figure of a claim."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:.4g}"


def superscript(number: int) -> str:
    """Write a footnote number in superior digits."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


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


def _short(value: float) -> str:
    """Keep three figures, two decimals at most."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


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
