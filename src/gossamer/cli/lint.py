"""``gossamer lint``: a report against the ten lessons."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossamer.catalog import reports
from gossamer.catalog.lint import clean
from gossamer.report.lint import lint_file

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def lint(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="JSON reports, or evidence of `gossamer reproduce --out`."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a report instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check reports of sparse results by the ten lessons of docs/lessons.md.

    Exits 0 if no finding is an error, 1 if one is, 2 on bad input.
    """
    if schema:
        typer.echo(json.dumps(reports.schema(), indent=2))
        return
    if not files:
        raise ValueError("expected at least one report, got none; try --schema for its form")
    found = {str(path): lint_file(path) for path in files}
    if as_json:
        listed = {name: [asdict(one) for one in findings] for name, findings in found.items()}
        typer.echo(json.dumps(listed, indent=2))
    else:
        _print(found)
    raise typer.Exit(int(not all(clean(findings) for findings in found.values())))


def _print(found: dict) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    for name, findings in found.items():
        count = (
            f"{len(findings)} finding{'s'[: len(findings) > 1]}" if findings else "nothing to say"
        )
        console.print(f"{name}: {count}", style="bold", soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        for finding in findings:
            severity = Text(finding.severity, style=_STYLES[finding.severity])
            table.add_row("", severity, finding.lesson, Text(finding.text))
        if findings:
            console.print(table)
