"""``gossamer prune``: remove weights of a language model, and say what that cost."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gossamer.patterns import NM, Unstructured, WeightPattern
from gossamer.report.pruning import prune_table

if TYPE_CHECKING:
    from gossamer.compression import PruningMethod

FIRST, REFINING = ("magnitude", "wanda", "sparsegpt"), ("dsnot", "sparsegpt")


def prune(
    model: Annotated[
        str,
        typer.Argument(help="smollm2, gemma3-270m, a directory, a GGUF file or a hub id."),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="magnitude, wanda or sparsegpt; after a comma dsnot, which refines the mask, or "
            "sparsegpt, which repairs the weights that stay."
        ),
    ] = "wanda,dsnot",
    density: Annotated[
        float | None, typer.Option(help="Share of weights kept; 0.5 without --pattern.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M, for instance 2:4.")] = None,
    text: Annotated[
        str | None, typer.Option(help="A UTF-8 text file to calibrate on, or - for standard input.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Calibration sequences.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of each sequence.")] = 512,
    held_out: Annotated[
        int, typer.Option(help="Sequences to measure perplexity on, before and after; 0: none.")
    ] = 8,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type of the weights.")
    ] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Which sequences of the text.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the pruned model and report.json.")
    ] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="Save packed, which gossamer decodes faster.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Prune the linear layers of a language model's decoder blocks, block by block.

    Prints what each kind of layer lost. With --out the model is saved: dense with zeros, which
    plain transformers loads, or --packed, which gossamer.compression.load reads.
    """
    methods = parse_methods(method, density, parse_pattern(pattern))
    if sequences < 1 or tokens < 2 or held_out < 0:
        raise ValueError(
            "expected --sequences >= 1, --tokens >= 2 and --held-out >= 0, got "
            f"{sequences}, {tokens} and {held_out}"
        )
    if packed and out is None:
        raise ValueError("--packed says how to save; try --out DIRECTORY with it")
    from gossamer.compression import check_directory, pack_linears, save
    from gossamer.compression import prune as prune_model
    from gossamer.data import documents
    from gossamer.files import save_json

    if out is not None:
        check_directory(out, packed=packed)
    document = documents.default_text() if text is None else documents.read(text)
    log = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=log) as progress:
        step = progress.add_task(f"loading {model}", total=None)
        # Imported late: a wrong method or file should not wait for transformers.
        from gossamer import models
        from gossamer.bench.perplexity import perplexity, token_windows

        loaded = models.load(model, dtype=getattr(torch, dtype), device=device)
        drawn = token_windows(
            loaded.tokenizer, document.text, count=sequences + held_out, tokens=tokens, seed=seed
        )
        calibration, rest = drawn[:sequences], drawn[sequences:]

        def measured(when: str) -> float | None:
            progress.update(step, description=f"perplexity {when}", total=None)
            return perplexity(loaded.model, rest) if len(rest) else None

        before = measured("before")
        report = prune_model(
            loaded.model,
            methods,
            [calibration],
            progress=lambda done, blocks: progress.update(
                step, description="pruning", completed=done, total=blocks
            ),
        )
        after = measured("after")
        results = {
            "model": loaded.source,
            "text": document.name,
            "seed": seed,
            "sequences": [sequences, tokens],
            "held_out": [held_out, tokens],
            "perplexity": {"before": before, "after": after},
            **report.to_json(),
        }
        if out is not None:
            progress.update(step, description=f"saving to {out}", total=None)
            kept = pack_linears(loaded.model) if packed else loaded.model
            save(kept, out, tokenizer=loaded.tokenizer)
            save_json(out / "report.json", results)
    if as_json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        Console().print(prune_table(results))
    if out is not None:
        log.print(f"wrote the model and report.json to {out}")


def parse_pattern(text: str | None) -> WeightPattern:
    """Return the pattern that ``N:M`` names, or Unstructured for none."""
    if text is None:
        return Unstructured()
    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise ValueError(f"expected a pattern N:M, got {text!r}, try 2:4")
    return NM(int(n), int(m))


def parse_methods(
    text: str, density: float | None, pattern: WeightPattern
) -> list["PruningMethod"]:
    """Return the methods that a comma-separated list names; the first gets the target."""
    from gossamer.compression import DSnoT, Magnitude, SparseGPT, Wanda

    first, *rest = [name.strip() for name in text.split(",")]
    if first not in FIRST or any(name not in REFINING for name in rest):
        raise ValueError(
            f"expected one of {', '.join(FIRST)}, then any of {', '.join(REFINING)}, got "
            f"{text!r}, try wanda,dsnot"
        )
    if density is None and isinstance(pattern, Unstructured):
        density = 0.5
    chooses = {"magnitude": Magnitude, "wanda": Wanda, "sparsegpt": SparseGPT}[first]
    refining = {"dsnot": DSnoT(), "sparsegpt": SparseGPT()}
    return [chooses(density, pattern), *(refining[name] for name in rest)]
