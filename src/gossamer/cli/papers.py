"""``gossamer papers`` and ``gossamer show``: the catalogue on the command line.

The docstring of each function is its help text, which is why its options are described in the
signature instead.
"""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossamer import catalog
from gossamer.catalog.taxonomy import SEVERAL, TERMS

# Piped output keeps one paper a line, whole, for grep and less; rich would fold it at 80 columns.
_PIPE_WIDTH = 1000

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def papers(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Words that must all occur, in any case.", show_default=False),
    ] = None,
    wing: Annotated[
        str | None, typer.Option(help=f"Only this wing: {', '.join(catalog.WINGS)}.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help=f"Only this status: {', '.join(catalog.STATUSES)}.")
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            metavar="FIELD=TERM,...",
            help="Only papers of these terms of the taxonomy, such as "
            f"object=kv_cache,mode!=static. Fields: {', '.join(TERMS)}.",
        ),
    ] = "",
    as_json: _Json = False,
) -> None:
    """List the papers of the catalogue, or those that match."""
    found = catalog.find(words or (), wing=wing, status=status, where=where)
    console = _console()
    if as_json:
        _print_json(console, [asdict(paper) for paper in found])
        return
    if found:
        table = Table(box=None, pad_edge=False)
        longest = max(len(paper.slug) for paper in found)
        table.add_column("slug", min_width=longest, overflow="fold", style="cyan")
        table.add_column("wing", overflow="fold")
        table.add_column("status", overflow="fold")
        table.add_column("paper", overflow="fold")
        for paper in found:
            about = Text.assemble((paper.title, "bold"), " - ", paper.summary)
            table.add_row(paper.slug, paper.wing, paper.status, about)
        _print_table(console, table)
    working = sum(paper.status == "works" for paper in found)
    console.print(f"{len(found)} of {len(catalog.papers())} papers, {working} of them working")


def show(
    slug: Annotated[str, typer.Argument(help="The paper, as `gossamer papers` lists it.")],
    as_json: _Json = False,
) -> None:
    """Show everything the catalogue holds on one paper."""
    paper = catalog.get(slug)
    console = _console()
    if as_json:
        _print_json(console, asdict(paper))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in asdict(paper).items():
        if name == "arxiv" and value:
            value = f"https://arxiv.org/abs/{value}"
        elif name == "taxonomy":
            for field, terms in value.items():
                _add_row(table, field, ", ".join(terms) if field in SEVERAL else terms)
            continue
        _add_row(table, name, str(value))
    _print_table(console, table)
    if paper.status == "works":
        console.print(f"Measure its claims here: gossamer reproduce {paper.slug}")


def _add_row(table: Table, name: str, value: str) -> None:
    table.add_row(Text(name, style="cyan"), Text(value or "-", overflow="fold"))


def _console() -> Console:
    """Open stdout as it is now, for plain text: titles are not markup."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _print_table(console: Console, table: Table) -> None:
    with console.capture() as capture:
        console.print(table)
    # Rich pads every line to the longest, which a pipe or a log shows as blank lines.
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    # Two titles hold letters that stdout may not know, which must not cost the whole table.
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.out(text, highlight=False)


def _print_json(console: Console, document: object) -> None:
    console.out(json.dumps(document, indent=2), highlight=False)
