"""``gossamer bench``: the kernels against what a user would call instead, on this machine."""

import json
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from gossamer.bench import describe
from gossamer.files import save_json
from gossamer.kernels import instruction_sets
from gossamer.report.tables import figures_table

SUITES = {"attention": "attention_kernels", "weights": "weight_kernels"}


def bench(
    suite: Annotated[str, typer.Argument(help="Which kernels: attention or weights.")],
    only: Annotated[str | None, typer.Option(help="One part of the suite.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 9,
    threads: Annotated[
        int | None, typer.Option(help="Threads; PyTorch's own choice by default.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
) -> None:
    """Measure kernels as ratios within one run: medians of interleaved rounds.

    Exits 0 if every bar is reached, 1 if one is not, 2 on bad input.
    """
    if suite not in SUITES:
        raise ValueError(f"expected a suite of {', '.join(SUITES)}, got {suite!r}")
    module = import_module(f"gossamer.bench.{SUITES[suite]}")
    if only is not None and only not in module.PARTS:
        raise ValueError(f"expected a part of {', '.join(module.PARTS)}, got {only!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device, got none; try --device cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        document = _measure(suite, only, repeats, device)
    finally:
        torch.set_num_threads(before)
    if out is not None:
        save_json(out, document)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        Console().print(figures_table(document))
    missed = any(row["holds"] is False for row in document["figures"])
    raise typer.Exit(int(missed))


def _measure(suite: str, only: str | None, repeats: int, device: str) -> dict:
    module = import_module(f"gossamer.bench.{SUITES[suite]}")
    machine, start, figures = describe(device), time.perf_counter(), []
    with Console(stderr=True).status("") as status:
        for part in module.PARTS if only is None else [only]:
            status.update(f"{suite}: {part}")
            for row in module.PARTS[part](device, repeats):
                figures.append(asdict(row))
                status.update(f"{suite}: {part}, {row.name}, density {row.density:.2f}")
    return {
        "schema": 1,
        "suite": suite,
        "machine": machine.summary(),
        "versions": dict(machine.versions),
        "threads": torch.get_num_threads(),
        "instruction_sets": list(instruction_sets()),
        "shape": module.SHAPE,
        "repeats": repeats,
        "seconds": time.perf_counter() - start,
        "figures": figures,
    }
