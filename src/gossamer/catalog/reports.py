"""The record of a sparse result: what must be known of it for the lessons to be checked."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gossamer.catalog.records import build, json_schema
from gossamer.catalog.taxonomy import TERMS, Taxonomy

SCHEMA = 1
Provenance = Literal["measured_here", "paper", "derived"]
Arm = Literal["ours", "dense", "small_dense", "static", "random_growth", "shuffled", "other"]
Kind = Literal[
    "faster", "fewer_macs", "smaller", "better", "as_good", "right_weights", "less_energy"
]
LESSONS = tuple(f"L{number}" for number in range(1, 11))


@dataclass(frozen=True)
class Measured:
    """One figure, and where it comes from.

    Parameters
    ----------
    values : tuple of float
        Positive; several if it was taken several times.
    provenance : {"measured_here", "paper", "derived"}
        In this run, quoted, or by a formula from what was measured in this run.
    """

    values: tuple[float, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.values or min(self.values) <= 0:
            raise ValueError(f"values: expected positive ones, at least one, got {self.values}")

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """One model of the comparison at one density.

    Parameters
    ----------
    name : str
        Unique in the report.
    arm : str
        What it is there for: "ours", "dense", "small_dense" (a dense model of as many parameters),
        "static" (one mask, never moved), "random_growth", "shuffled" (our numbers a layer, other
        places) or "other".
    density : float
        Share of weights, or of what the taxonomy's `density_of` says, in (0, 1].
    parameters : int
        Parameters that are not dropped, in all.
    kernel : {"dense", "sparse"}
        What was executed: "dense" multiplies the zeros too.
    decided : str
        When the pattern is decided, in the taxonomy's terms and, in the arm "ours", as it says;
        None for a dense model.
    quality : tuple of float
        One a seed, in the order of the report's seeds.
    macs, training_macs : Measured, optional
        Multiply-adds of a forward pass, and of all training there was: dense pre-training, search
        and retraining included.
    nbytes : Measured, optional
        Of the weights as stored, indices and padding included.
    milliseconds : Measured, optional
        One value a timed round.
    peak_density : float, optional
        Largest share of weights active at any step of training.
    exploration : float, optional
        Share of weights that were ever active.
    peak_dense : tuple of str
        What was seen to be held densely, in the taxonomy's terms.
    collapsed : tuple of str
        Layers without a weight.
    """

    name: str
    arm: Arm
    density: float
    parameters: int
    kernel: Literal["dense", "sparse"]
    quality: tuple[float, ...]
    decided: str | None = None
    macs: Measured | None = None
    training_macs: Measured | None = None
    nbytes: Measured | None = None
    milliseconds: Measured | None = None
    peak_density: float | None = None
    exploration: float | None = None
    peak_dense: tuple[str, ...] = ()
    collapsed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _worded("name", self.name, 1)
        for name in ("density", "peak_density", "exploration"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: expected it in (0, 1], got {value}")
        if self.parameters < 1:
            raise ValueError(f"parameters: expected at least 1, got {self.parameters}")
        for name, terms in (("decided", (self.decided,)), ("peak_dense", self.peak_dense)):
            if unknown := [term for term in terms if term and term not in TERMS[name]]:
                raise ValueError(
                    f"{name}: expected one of {', '.join(TERMS[name])}, got {unknown[0]!r}"
                )


@dataclass(frozen=True)
class Statement:
    """What the report claims of one row over another, as a kind that can be checked.

    Parameters
    ----------
    kind : str
        "faster", "fewer_macs" or "smaller" by a factor of `figure`; "better" or "as_good" in
        quality; "right_weights": which weights are kept matters, not only how many a layer;
        "less_energy" by a factor.
    row, over : str
        Names of rows.
    figure : float, optional
        The factor.
    """

    kind: Kind
    row: str
    over: str
    figure: float | None = None


@dataclass(frozen=True)
class Quality:
    """What is compared.

    Parameters
    ----------
    name : str
        Metric and data, such as "test accuracy, digits".
    higher_is_better : bool
    selected_on : {"nothing", "training", "validation", "test"}
        What hyper-parameters and stopping were chosen by.
    """

    name: str
    higher_is_better: bool
    selected_on: Literal["nothing", "training", "validation", "test"]

    def __post_init__(self) -> None:
        _worded("name", self.name, 2)


@dataclass(frozen=True)
class Environment:
    """Where the figures come from.

    Parameters
    ----------
    device, machine, dtype : str
        Such as "cpu", the processor, "float32".
    threads, batch : int
        Of the timed runs.
    commit : str
        Hexadecimal, of the code that was run.
    data_hash : str
        Hexadecimal, of the data, at least 8 digits.
    baseline_kernel : str
        What the dense baseline calls, such as "torch.nn.Linear (oneDNN)".
    settings : dict of str to text or number
        Hyper-parameters, those of the baselines included.
    equal_budget : bool
        Whether all rows had the same epochs, data, augmentation and tuning.
    energy_meter : str, default ""
        What energy was measured with.
    """

    device: str
    machine: str
    dtype: str
    threads: int
    batch: int
    commit: str
    data_hash: str
    baseline_kernel: str
    settings: dict[str, str | int | float | bool]
    equal_budget: bool
    energy_meter: str = ""

    def __post_init__(self) -> None:
        for name in ("device", "machine", "dtype", "baseline_kernel"):
            _worded(name, getattr(self, name), 1)
        for name in ("threads", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Report:
    """A sparse result with what it is compared with; `gossamer.catalog.lint` checks it.

    Parameters
    ----------
    title : str
    taxonomy : Taxonomy
        Of the method that the rows of arm "ours" share.
    quality : Quality
    environment : Environment
    seeds : tuple of int
    rows : tuple of Row
    statements : tuple of Statement
    reasons : dict of str to str
        Why a lesson's comparison is left out, by lesson ("L1" ... "L10"), in whole sentences.
    schema : int
        Of this record.

    Raises
    ------
    ValueError
        If rows share a name or contradict the taxonomy, a statement names no row, or a text is too
        short to say anything.
    """

    title: str
    taxonomy: Taxonomy
    quality: Quality
    environment: Environment
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    statements: tuple[Statement, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _worded("title", self.title, 2)
        if self.schema != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {self.schema}")
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or not any(row.arm == "ours" for row in self.rows):
            raise ValueError(f"rows: expected each name once and one of arm 'ours', got {names}")
        for row in self.arms("ours"):
            if row.decided not in self.taxonomy.decided:
                raise ValueError(
                    f"rows: expected {row.name!r} to be decided "
                    f"{' or '.join(self.taxonomy.decided)}, as its taxonomy says, got {row.decided}"
                )
        for statement in self.statements:
            for name in (statement.row, statement.over):
                if name not in names:
                    raise ValueError(f"statements: expected names of rows, got {name!r}")
        for lesson, reason in self.reasons.items():
            if lesson not in LESSONS:
                raise ValueError(f"reasons: expected lessons L1 to L10, got {lesson!r}")
            _worded(f"reasons.{lesson}", reason, 5)

    def row(self, name: str) -> Row:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    def arms(self, arm: Arm) -> tuple[Row, ...]:
        """Return the rows of one arm."""
        return tuple(row for row in self.rows if row.arm == arm)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON data, which `from_json` reads."""
        return asdict(self)


def from_json(document: Any) -> Report:
    """Build a report from parsed JSON.

    Parameters
    ----------
    document : JSON data
        As `Report.to_json` returns it; `schema` describes it.

    Raises
    ------
    ValueError
        If a field is missing, unknown or wrong; the message names its path.
    """
    return build(Report, document)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a report.

    Examples
    --------
    >>> schema()["required"][:2]
    ['title', 'taxonomy']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A sparse result, to be checked by `gossamer lint`",
        **json_schema(Report),
    }


def _worded(name: str, text: str, least: int) -> None:
    words = [word for word in text.split() if any(letter.isalnum() for letter in word)]
    if len(words) < least:
        raise ValueError(f"{name}: expected at least {least} words, got {text!r}")
