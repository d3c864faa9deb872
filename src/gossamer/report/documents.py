"""Result files of every kind: told apart by what they hold, and checked before they are shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gossamer.bench.store import load_results
from gossamer.errors import FormatError
from gossamer.files import load_json
from gossamer.report.tables import title
from gossamer.reproduce import Evidence, parse

Kind = Literal["comparison", "evidence", "benchmark"]
KINDS: tuple[Kind, ...] = ("comparison", "evidence", "benchmark")  # in the order of a report
_NUMBERS = ("density", "milliseconds", "baseline_milliseconds", "spread", "bar")


@dataclass(frozen=True)
class Result:
    """One checked result.

    Parameters
    ----------
    path : Path
        The file that holds it.
    kind : {"comparison", "evidence", "benchmark"}
        Of ``gossamer compare``, ``gossamer reproduce``, or a benchmark of ratios.
    name : str
        The model, the paper or the benchmark.
    content : Evidence or dict
    """

    path: Path
    kind: Kind
    name: str
    content: Evidence | dict[str, Any]


def read(path: Path) -> tuple[Result, ...]:
    """Read a result file.

    Parameters
    ----------
    path : Path
        JSON that ``gossamer compare``, ``reproduce`` or ``bench`` wrote, or one of the scripts in
        ``benchmarks/``; ``reproduce all --json`` writes several into one file.

    Returns
    -------
    tuple of Result

    Raises
    ------
    FormatError
        If the file is damaged, or of no such kind.
    OSError
        If it cannot be read.
    """
    document = load_json(path)
    if isinstance(document, list) and document:
        return tuple(_evidence(one, path) for one in document)
    if isinstance(document, dict) and "claims" in document:
        return (_evidence(document, path),)
    if isinstance(document, dict) and "rows" in document:
        checked = load_results(path)
        return (Result(path, "comparison", title(checked) or path.stem, checked),)
    if isinstance(document, dict) and isinstance(document.get("figures"), list):
        for index, row in enumerate(document["figures"]):
            if problem := _problem(row):
                raise FormatError(path, f"figures[{index}]: {problem}")
        return (Result(path, "benchmark", path.stem, document),)
    raise FormatError(
        path,
        "expected results of gossamer compare, reproduce or bench, found none of their fields "
        "rows, claims and figures",
    )


def gather(paths: Sequence[Path]) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """Read files, and all that is readable in folders.

    Parameters
    ----------
    paths : sequence of Path
        Files, and folders whose ``.json`` files are read at any depth.

    Returns
    -------
    results : tuple of Result
        Comparisons, then evidence, then benchmarks, each in the order of their paths.
    left_out : tuple of str
        Why a file of a folder was not read.

    Raises
    ------
    ValueError
        If a folder holds no result at all.
    FormatError, OSError
        If a file that was named cannot be read as results.
    """
    results: list[Result] = []
    left_out: list[str] = []
    for path in paths:
        if not path.is_dir():
            results += read(path)
            continue
        before = len(results)
        for file in sorted(path.rglob("*.json")):
            try:
                results += read(file)
            except FormatError as error:
                left_out.append(str(error))
        if len(results) == before:
            raise ValueError(f"{path}: expected a folder with results in it, found none")
    return tuple(sorted(results, key=lambda result: KINDS.index(result.kind))), tuple(left_out)


def _evidence(document: Any, path: Path) -> Result:
    evidence = parse(document, path)
    return Result(path, "evidence", evidence.slug, evidence)


def _problem(row: Any) -> str | None:
    """Say what is wrong with one ratio of a benchmark, None if nothing is."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return "expected an object with a name: str"
    if not _is_number(row.get("ratio")):
        return f"expected ratio: finite number, got {row.get('ratio')!r}"
    for name in _NUMBERS:
        if row.get(name) is not None and not _is_number(row[name]):
            return f"expected {name}: finite number or null, got {row[name]!r}"
    if not isinstance(row.get("holds"), bool | None):
        return f"expected holds: true, false or null, got {row['holds']!r}"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
