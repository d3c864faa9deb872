"""``gossamer compare``: what sparse attention saves, and costs, on your model and document."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gossamer.bench.methods import DEFAULT, parse
from gossamer.bench.store import ResultStore
from gossamer.files import save_text
from gossamer.report.tables import compare_table

RESULTS, PAGE = "results.json", "report.html"


def compare(
    model: Annotated[
        str, typer.Option(help="smollm2, gemma3-270m, a directory, a GGUF file or a hub id.")
    ] = "smollm2",
    text: Annotated[
        str | None, typer.Option(help="A UTF-8 text file, or - for standard input.")
    ] = None,
    context: Annotated[
        int, typer.Option(help="Tokens of the text to use, the decoded ones included.")
    ] = 8192,
    methods: Annotated[
        str, typer.Option(help="Comma-separated, each with any :parameter=value.")
    ] = ",".join(DEFAULT),
    decode: Annotated[int, typer.Option(help="Tokens to decode one by one.")] = 128,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type of weights and cache.")
    ] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the passkeys.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("gossamer-compare"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the rows already in --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare dense and sparse attention: speed, work skipped and quality, in one run.

    Prints a table and writes report.html and results.json to --out. Ctrl-C keeps the finished
    rows; the same command with --resume goes on from them.
    """
    specs = tuple(part.strip() for part in methods.split(","))
    for spec in specs:  # before anything slow
        parse(spec)
    if context < 1 or decode < 1:
        raise ValueError(f"expected positive --context and --decode, got {context} and {decode}")
    from gossamer.data import documents

    document = documents.default_text() if text is None else documents.read(text)
    log = Console(stderr=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"could not make {out}: {error.strerror}") from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=log) as progress:
        step = progress.add_task(f"loading {model}", total=2 * len(specs) + 1)
        # Imported late: a wrong method or file should not wait for transformers.
        from gossamer import models
        from gossamer.bench import compare as job

        loaded = models.load(model, dtype=getattr(torch, dtype), device=device)
        task = job.Task(loaded, document, context, decode, specs, seed)
        settings = task.settings()
        if resume:
            store = ResultStore.resume(out / RESULTS, settings)
        else:
            store = ResultStore(out / RESULTS, settings)

        def report(description: str) -> None:
            progress.update(step, description=description, advance=1)

        try:
            job.compare(task, store, report=report)
        except KeyboardInterrupt:
            log.print(f"interrupted: {len(store.rows)} rows are in {out / RESULTS}; add --resume")
            raise typer.Exit(130) from None
        progress.update(step, completed=2 * len(specs) + 1, description="done")
    results = store.document()
    if as_json:
        sys.stdout.write((out / RESULTS).read_text())
    else:
        Console().print(compare_table(results))
    try:
        from gossamer.report.html import compare_page
    except ImportError as missing:
        log.print(f"no {PAGE}: {missing}")
        return
    save_text(out / PAGE, compare_page(results))
    log.print(f"wrote {out / PAGE} and {out / RESULTS}")
