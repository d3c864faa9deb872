"""``gossamer report``: any results as one HTML file with plots."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gossamer.files import save_text
from gossamer.report.documents import Result, gather
from gossamer.reproduce import Evidence


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Result files, or folders of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Render comparisons, evidence and benchmarks as one HTML file, tables and plots.

    In folders, files that hold no results are left out, and named on the page.
    """
    found, left_out = gather(results)
    from gossamer.report.html import report_page  # after bad paths, which need no matplotlib

    log = Console(stderr=True)
    for line in left_out:
        log.print(f"left out: {line}", markup=False, soft_wrap=True)
    save_text(out, report_page(found, left_out))
    log.print(f"wrote {out}: {len(found)} results", markup=False, soft_wrap=True)
    if as_json:
        document = {
            "page": str(out),
            "results": [_summary(result) for result in found],
            "left_out": left_out,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _summary(result: Result) -> dict[str, object]:
    summary: dict[str, object] = {"name": result.name, "kind": result.kind}
    if isinstance(result.content, Evidence):
        claims = result.content.claims
        summary |= {"claims": len(claims), "hold": sum(claim.holds for claim in claims)}
    return summary | {"path": str(result.path)}
