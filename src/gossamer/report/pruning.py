"""What pruning did to a model, as a table with a row for each kind of layer."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from gossamer.report.tables import figure, perplexity, share

Layers = Sequence[Mapping[str, Any]]


def prune_table(document: Mapping[str, Any]) -> Table:
    """Lay out a results document of ``gossamer prune`` for the terminal.

    Parameters
    ----------
    document : mapping
        With ``model``, ``methods``, ``perplexity``, ``density`` and ``layers``.

    Returns
    -------
    rich.table.Table
        A row for each projection of the decoder blocks, medians over the blocks.
    """
    before, after = document["perplexity"]["before"], document["perplexity"]["after"]
    quality = "" if before is None else f"; perplexity {perplexity(before)} to {perplexity(after)}"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{document['model']}: {share(document['density'])} kept{quality}",
        caption=", then ".join(document["methods"]),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Layers")
    for name in ("Kept", "Moved", "Mean error", "Output error"):
        table.add_column(name, justify="right")
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in document["layers"]:
        kinds.setdefault(layer["name"].rpartition(".")[2], []).append(layer)
    for kind, layers in kinds.items():
        table.add_row(
            f"{len(layers)} {kind}",
            share(_median(layers, "density")),
            share(_median(layers, "moved")),
            figure(_median(layers, "mean_error")),
            share(_median(layers, "output_error")),
        )
    return table


def _median(layers: Layers, field: str) -> float | None:
    values = [layer[field] for layer in layers if layer[field] is not None]
    return statistics.median(values) if values else None
