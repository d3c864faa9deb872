"""Ten lessons of sparse training as rules that a report is checked by.

The lessons are our reading of the themes of "Ten Lessons We Have Learned in the New 'Sparseland'"
(arXiv 2302.02596), in our order and words: L1 compare with a small dense model; L2 speed is timed;
L3 training costs count from the beginning; L4 density is a curve; L5 moving a mask must beat not
moving it; L6 methods of different assumptions do not share a table without costs; L7 allocation
explains much of what scores seem to; L8 one density is no result; L9 nor is one seed; L10 claim
what was measured, where hardware profits.
"""

import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from gossamer.catalog.reports import LESSONS, Report, Row, Statement

Severity = Literal["error", "warning", "note"]
NEAR = 0.05  # relative; how close two densities, or a figure and its ratio, count as one
PARAMETERS_NEAR = 0.1
EXTREME_DENSITY = 0.1
LEAST_SEEDS, LEAST_DENSITIES, LEAST_ROUNDS = 3, 3, 30
_TRAINED = {"sparse_to_sparse", "dense_to_sparse", "retrained", "before_training", "one_shot"}
_FACTORS = {
    "faster": "milliseconds",
    "fewer_macs": "macs",
    "smaller": "nbytes",
}


@dataclass(frozen=True)
class Finding:
    """Something that a lesson has to say on a report.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        "error": the report does not show what it says; "warning": it shows less than it seems
        to; "note": readers must be told.
    lesson : str
        "L1" to "L10".
    text : str
        What is wrong, with the numbers.
    """

    severity: Severity
    lesson: str
    text: str


def check(report: Report) -> tuple[Finding, ...]:
    """Check a report by all lessons.

    An error of a comparison that is missing becomes a note where the report states a reason for
    the lesson.

    Parameters
    ----------
    report : Report

    Returns
    -------
    tuple of Finding
        By lesson; empty for a report that leaves nothing to say.
    """
    findings: list[Finding] = []
    for lesson, rule in zip(LESSONS, RULES, strict=True):
        for severity, text in rule(report):
            if severity == "missing":
                reason = report.reasons.get(lesson)
                severity = "error" if reason is None else "note"
                text += "" if reason is None else f" (reason given: {reason})"
            findings.append(Finding(severity, lesson, text))
    return tuple(findings)


def clean(findings: tuple[Finding, ...]) -> bool:
    """Return whether there is no error among the findings."""
    return all(finding.severity != "error" for finding in findings)


_Said = Iterator[tuple[Literal["error", "warning", "note", "missing"], str]]
"""What a rule yields: "missing" is an error that a stated reason excuses."""


def _lesson_1_small_dense(report: Report) -> _Said:
    if not _of_weights(report):
        return
    ours, small = report.arms("ours"), report.arms("small_dense")
    if not any(_near(a.parameters, b.parameters, PARAMETERS_NEAR) for a in ours for b in small):
        counts = ", ".join(f"{row.parameters:,}" for row in ours)
        yield "missing", f"no dense model of as many parameters ({counts}) beside the sparse one"


def _lesson_2_speed(report: Report) -> _Said:
    for statement in report.statements:
        name = _FACTORS.get(statement.kind)
        if name is None:
            continue
        row, over = report.row(statement.row), report.row(statement.over)
        ours, base = getattr(row, name), getattr(over, name)
        said = f"{row.name!r} is said to be {statement.kind.replace('_', ' ')} than {over.name!r}"
        if ours is None or base is None:
            instead = ": multiply-adds are no time" if name == "milliseconds" and row.macs else ""
            yield "error", f"{said}, but {name} of both are not given{instead}"
            continue
        if {ours.provenance, base.provenance} & {"paper"} or (
            name == "milliseconds" and "derived" in (ours.provenance, base.provenance)
        ):
            yield "error", f"{said}, but {name} were not both measured in this run"
            continue
        gain = base.median / ours.median
        if statement.figure is None or not _near(statement.figure, gain, NEAR):
            yield "error", f"{said} by {statement.figure}, but the figures give {gain:.2f}"
        if name == "milliseconds":
            yield from _timing(row, over, gain)


def _timing(row: Row, over: Row, gain: float) -> _Said:
    rounds = min(len(one.milliseconds.values) for one in (row, over) if one.milliseconds)
    if rounds < LEAST_ROUNDS:
        yield "warning", f"{row.name!r} was timed {rounds} times, fewer than {LEAST_ROUNDS}"
    if gain < 1:
        yield "warning", f"{row.name!r} takes {1 / gain:.2f} times as long as {over.name!r}"
    if row.macs and over.macs and gain > over.macs.median / row.macs.median:
        yield (
            "warning",
            f"{row.name!r} gains {gain:.2f} in time, more than the "
            f"{over.macs.median / row.macs.median:.2f} in multiply-adds: suspect the baseline",
        )


def _lesson_3_training_cost(report: Report) -> _Said:
    if not _of_weights(report) or not _TRAINED & set(report.taxonomy.decided):
        return
    if without := [row.name for row in _compared(report) if row.training_macs is None]:
        yield "missing", f"the cost of all training is not given for {', '.join(without)}"


def _lesson_4_density_over_time(report: Report) -> _Said:
    declared = set(report.taxonomy.peak_dense)
    for row in report.arms("ours"):
        if row.decided != "sparse_to_sparse":
            continue
        if row.peak_density is None:
            yield "missing", f"the density over time of {row.name!r} is not given"
        elif row.peak_density > row.density * (1 + NEAR):
            yield (
                "error",
                f"{row.name!r} is said to train at density {row.density:g} throughout, but "
                f"reached {row.peak_density:g}",
            )
        if hidden := sorted(set(row.peak_dense) - declared - {"none"}):
            yield "error", f"{row.name!r} held dense {', '.join(hidden)}, which is not declared"


def _lesson_5_static_or_dynamic(report: Report) -> _Said:
    if report.taxonomy.mode != "dynamic_topology":
        return
    for arm in ("static", "random_growth"):
        pairs = [
            (a, b) for a in report.arms("ours") for b in report.arms(arm) if _same_density(a, b)
        ]
        if not pairs:
            yield "missing", f"no arm {arm.replace('_', ' ')} at the density of the moving masks"
        for ours, other in pairs:
            if _difference(report, ours, other) <= 0:
                yield "warning", f"{ours.name!r} is not better than {other.name!r} by the spread"
    for row in report.arms("ours"):
        if row.exploration is None:
            yield "warning", f"the share of weights ever active is not given for {row.name!r}"


def _lesson_6_assumptions(report: Report) -> _Said:
    regimes = sorted({row.decided for row in report.rows if row.decided})
    without = [row.name for row in report.rows if row.decided and row.training_macs is None]
    if len(regimes) > 1 and without:
        yield (
            "error",
            f"rows that are decided {', '.join(regimes)} are in one table without the cost of "
            f"training of {', '.join(without)}",
        )


def _lesson_7_allocation(report: Report) -> _Said:
    pairs = [
        (a, b) for a in report.arms("ours") for b in report.arms("shuffled") if _same_density(a, b)
    ]
    if any(statement.kind == "right_weights" for statement in report.statements):
        if not pairs:
            yield "error", "the right weights are said to be found, but no mask was shuffled"
        for ours, shuffled in pairs:
            if _difference(report, ours, shuffled) <= 0:
                yield (
                    "error",
                    f"{shuffled.name!r} is as good as {ours.name!r}: the allocation was found, "
                    "not the weights",
                )
    elif _of_weights(report) and report.taxonomy.mode == "static" and not pairs:
        yield "warning", "no mask with the same numbers a layer at random places"


def _lesson_8_regimes(report: Report) -> _Said:
    densities = sorted({row.density for row in report.arms("ours")})
    if report.taxonomy.exactness != "exact":
        listed = ", ".join(f"{density:g}" for density in densities)
        if len(densities) < LEAST_DENSITIES:
            yield "missing", f"fewer than {LEAST_DENSITIES} densities: {listed}"
        elif densities[0] > EXTREME_DENSITY:
            yield "warning", f"no extreme among the densities {listed}"
    for row in report.rows:
        if row.collapsed:
            yield "error", f"{row.name!r} has layers without a weight: {', '.join(row.collapsed)}"


def _lesson_9_variance(report: Report) -> _Said:
    seeds = set(report.seeds)
    if len(seeds) < max(LEAST_SEEDS, len(report.seeds)):
        yield (
            "missing",
            f"different seeds: {len(seeds)} of {len(report.seeds)}, expected {LEAST_SEEDS} or more",
        )
    for row in report.rows:
        if len(row.quality) != len(report.seeds):
            yield (
                "error",
                f"{row.name!r} has {len(row.quality)} qualities for {len(report.seeds)} seeds",
            )
    if report.quality.selected_on == "test":
        yield "error", "settings were selected on the test set"
    environment = report.environment
    if not environment.equal_budget:
        yield "missing", "rows differ in epochs, data or tuning"
    for name, least in (("commit", 7), ("data_hash", 8)):
        if not re.fullmatch(rf"[0-9a-f]{{{least},}}", getattr(environment, name)):
            yield "missing", f"{name} is not {least} hexadecimal digits or more"
    if len(environment.settings) < 2:
        yield "missing", "hyper-parameters are not listed"
    for statement in report.statements:
        yield from _compared_quality(report, statement)


def _compared_quality(report: Report, statement: Statement) -> _Said:
    if statement.kind not in ("better", "as_good"):
        return
    row, over = report.row(statement.row), report.row(statement.over)
    if statement.kind == "better" and _difference(report, row, over) <= 0:
        yield "error", f"{row.name!r} against {over.name!r}: no difference beyond the spread"
    if statement.kind == "as_good" and _difference(report, over, row) > 0:
        yield "error", f"{row.name!r} is worse than {over.name!r} by more than the spread"


def _lesson_10_what_was_measured(report: Report) -> _Said:
    for row in report.rows:
        if row.arm == "ours" and row.kernel == "dense" and row.density < 1:
            yield "note", f"{row.name!r}: simulated sparsity (mask); the kernel was dense"
    for statement in report.statements:
        row = report.row(statement.row)
        if statement.kind == "faster" and row.kernel == "dense" and row.density < 1:
            yield "error", f"{row.name!r} is said to be faster, but its kernel multiplies the zeros"
        if statement.kind == "less_energy" and not report.environment.energy_meter:
            yield "error", f"{row.name!r} is said to save energy, but no meter was read"


RULES: tuple[Callable[[Report], _Said], ...] = (
    _lesson_1_small_dense,
    _lesson_2_speed,
    _lesson_3_training_cost,
    _lesson_4_density_over_time,
    _lesson_5_static_or_dynamic,
    _lesson_6_assumptions,
    _lesson_7_allocation,
    _lesson_8_regimes,
    _lesson_9_variance,
    _lesson_10_what_was_measured,
)


def _of_weights(report: Report) -> bool:
    """Whether a trained model with fewer weights is what the report is about."""
    changed = report.taxonomy.exactness == "changes_model"
    return changed and bool({"weights", "units"} & set(report.taxonomy.object))


def _compared(report: Report) -> list[Row]:
    return [row for row in report.rows if row.arm in ("ours", "dense", "small_dense")]


def _same_density(a: Row, b: Row) -> bool:
    return _near(a.density, b.density, NEAR)


def _near(a: float, b: float, relative: float) -> bool:
    return abs(a - b) <= relative * max(abs(a), abs(b))


def _difference(report: Report, row: Row, over: Row) -> float:
    """Return how much better a row is than another beyond the spread of the paired seeds.

    Zero or less: no difference. The spread is the standard deviation of the differences.
    """
    pairs = list(zip(row.quality, over.quality, strict=False))
    gains = [a - b if report.quality.higher_is_better else b - a for a, b in pairs]
    if len(gains) < 2:
        return 0.0
    return statistics.fmean(gains) - statistics.stdev(gains)
