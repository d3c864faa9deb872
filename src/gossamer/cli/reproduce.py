"""``gossamer reproduce``: a paper's claims against this machine's measurements."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gossamer.files import save_json
from gossamer.report.lint import check_evidence
from gossamer.report.tables import evidence_table
from gossamer.reproduce import Evidence, available, run, stopped, validate

INTERRUPTED = "interrupted"


def reproduce(
    slug: Annotated[str, typer.Argument(help="A paper's slug, or 'all'.")],
    scale: Annotated[
        str,
        typer.Option(
            help="quick (30 s; exactness and counts), full (5 min on two cores; times and "
            "trained quality, too) or gpu."
        ),
    ] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory that also gets one JSON file a paper.")
    ] = None,
) -> None:
    """Measure a paper's claims here: its figure, ours, the criterion, and whether it holds.

    What `gossamer lint` would call an error in the evidence goes to stderr.

    Exits 0 if every claim holds, 1 if one does not, 2 on bad input, 130 if interrupted.
    """
    slugs = available() if slug == "all" else (slug,)
    log = Console(stderr=True)
    try:
        for name in slugs:
            validate(name, scale=scale, seed=seed)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        typer.echo(f"gossamer reproduce: {error}", err=True)
        raise typer.Exit(2) from None

    found: list[Evidence] = []
    code = 0
    for index, name in enumerate(slugs, start=1):
        with log.status(f"{name} ({scale}), {index} of {len(slugs)}"):
            evidence = _measure(name, scale, seed, log)
        found.append(evidence)
        if not as_json:
            Console().print(evidence_table(evidence))
        for finding in check_evidence(evidence):
            if finding.severity == "error" and evidence.complete:
                log.print(f"{name}: {finding.lesson}: {finding.text}", style="red", markup=False)
        if out is not None and evidence.complete:  # an older complete file outlives a failure
            try:
                save_json(out / f"{name}.json", evidence.to_json())
            except OSError as error:
                typer.echo(f"gossamer reproduce: {error}", err=True)
                code = 2
        if evidence.error == INTERRUPTED:
            code = 130
        if code:
            break

    if as_json:
        documents = [evidence.to_json() for evidence in found]
        typer.echo(json.dumps(documents if slug == "all" else documents[0], indent=2))
    raise typer.Exit(code or int(not all(evidence.holds for evidence in found)))


def _measure(slug: str, scale: str, seed: int, log: Console) -> Evidence:
    """Run one paper; an interruption or a failure becomes evidence that does not hold."""
    start = time.perf_counter()
    try:
        return run(slug, scale=scale, seed=seed)
    except KeyboardInterrupt:
        reason = INTERRUPTED
    except Exception as error:  # one paper's failure must not lose the others' results
        log.print_exception()
        reason = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    return stopped(slug, scale=scale, seed=seed, seconds=seconds, error=reason)
