"""The ten lessons: each is silent on a good report and speaks up at its own offence only."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.catalog import Taxonomy
from gossamer.catalog.lint import EXTREME_DENSITY, LEAST_ROUNDS, Finding, check, clean
from gossamer.catalog.reports import LESSONS, Measured, Report, Statement, from_json

HERE, DERIVED, PAPER = "measured_here", "derived", "paper"


def change(report: Report, name: str, **changes) -> Report:
    rows = tuple(replace(one, **changes) if one.name == name else one for one in report.rows)
    return replace(report, rows=rows)


def without(report: Report, *arms: str) -> Report:
    """Leave arms out, and the statements that need them."""
    rows = tuple(one for one in report.rows if one.arm not in arms)
    names = {one.name for one in rows}
    said = tuple(one for one in report.statements if {one.row, one.over} <= names)
    return replace(report, rows=rows, statements=said)


def claiming(report: Report, *statements: Statement) -> Report:
    return replace(report, statements=statements)


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(one.severity, one.lesson) for one in check(report)]


def test_a_good_report_leaves_nothing_to_say(good):
    assert check(good) == ()
    assert check(from_json(json.loads(json.dumps(good.to_json())))) == ()


def environment(**changes):
    return lambda r: replace(r, environment=replace(r.environment, **changes))


def taxonomy(**changes):
    return lambda r: replace(r, taxonomy=replace(r.taxonomy, **changes))


FASTER = Statement("faster", "b", "dense", 4.0)
OFFENCES = [
    ("L1", "error", "no dense model of as many", lambda r: without(r, "small_dense")),
    ("L1", "error", "parameters .200, 100, 50.", lambda r: change(r, "small", parameters=400)),
    ("L2", "error", "milliseconds of both .*: multiply-adds are no time",
     lambda r: change(r, "b", milliseconds=None)),
    ("L2", "error", "not both measured in this run",
     lambda r: change(r, "dense", milliseconds=Measured((4.0,) * 30, PAPER))),
    ("L2", "error", "not both measured in this run",
     lambda r: change(r, "b", milliseconds=Measured((1.0,) * 30, DERIVED))),
    ("L2", "error", "by 8.0, but the figures give 4.00",
     lambda r: claiming(r, Statement("faster", "b", "dense", 8.0))),
    ("L2", "error", "by None, but the figures give 10.00",
     lambda r: claiming(r, Statement("smaller", "b", "dense"))),
    ("L2", "error", "nbytes of both are not given",
     lambda r: change(r, "dense", nbytes=None)),
    ("L2", "warning", "timed 5 times, fewer than 30",
     lambda r: change(r, "b", milliseconds=Measured((1.0,) * 5, HERE))),
    ("L2", "warning", "takes 2.00 times as long",
     lambda r: claiming(change(r, "b", milliseconds=Measured((8.0,) * 30, HERE)),
                        Statement("faster", "b", "dense", 0.5))),
    ("L2", "warning", "gains 20.00 in time, more than the 10.00 .* suspect the baseline",
     lambda r: claiming(change(r, "dense", milliseconds=Measured((20.0,) * 30, HERE)),
                        Statement("faster", "b", "dense", 20.0))),
    ("L3", "error", "cost of all training is not given for dense",
     lambda r: change(r, "dense", training_macs=None)),
    ("L4", "error", "density over time of 'a' is not given",
     lambda r: change(r, "a", peak_density=None)),
    ("L4", "error", "at density 0.1 throughout, but reached 0.5",
     lambda r: change(r, "b", peak_density=0.5)),
    ("L4", "error", "'c' held dense weights, which is not declared",
     lambda r: change(r, "c", peak_dense=("gradients", "weights"))),
    ("L5", "error", "no arm static", lambda r: without(r, "static")),
    ("L5", "error", "no arm random growth", lambda r: change(r, "grown", density=0.5)),
    ("L5", "warning", "'c' is not better than 'grown' by the spread",
     lambda r: change(r, "grown", quality=(0.8, 0.82, 0.78))),
    ("L5", "warning", "ever active is not given for 'a'",
     lambda r: change(r, "a", exploration=None)),
    ("L6", "error", "one table without the cost of training of moved",
     lambda r: change(r, "moved", training_macs=None)),
    ("L7", "error", "no mask was shuffled",
     lambda r: claiming(without(r, "shuffled"), Statement("right_weights", "c", "dense"))),
    ("L7", "error", "the allocation was found, not the weights",
     lambda r: change(r, "moved", quality=(0.8, 0.81, 0.79))),
    ("L8", "error", "fewer than 3 densities: 0.05, 0.1", lambda r: change(r, "a", density=0.1)),
    ("L8", "warning", "no extreme among",
     lambda r: change(change(without(r, "static", "random_growth", "shuffled"),
                             "b", density=0.3, peak_density=0.3),
                      "c", density=0.4, peak_density=0.4)),
    ("L8", "error", "layers without a weight: 2.conv",
     lambda r: change(r, "c", collapsed=("2.conv",))),
    ("L9", "error", "different seeds: 1", lambda r: replace(r, seeds=(7, 7, 7))),
    ("L9", "error", "'a' has 2 qualities for 3 seeds",
     lambda r: claiming(change(r, "a", quality=(0.9, 0.9)))),
    ("L9", "error", "selected on the test set",
     lambda r: replace(r, quality=replace(r.quality, selected_on="test"))),
    ("L9", "error", "rows differ in epochs", environment(equal_budget=False)),
    ("L9", "error", "commit is not 7 hexadecimal", environment(commit="")),
    ("L9", "error", "commit is not 7 hexadecimal", environment(commit="main ok")),
    ("L9", "error", "data_hash is not 8 hexadecimal", environment(data_hash="0123")),
    ("L9", "error", "hyper-parameters are not listed", environment(settings={})),
    ("L9", "error", "'a' against 'dense': no difference beyond the spread",
     lambda r: claiming(r, Statement("better", "a", "dense"))),
    ("L9", "error", "'c' is worse than 'dense' by more than",
     lambda r: claiming(r, Statement("as_good", "c", "dense"))),
    ("L10", "note", r"'a': simulated sparsity \(mask\)", lambda r: change(r, "a", kernel="dense")),
    ("L10", "error", "its kernel multiplies the zeros",
     lambda r: change(r, "b", kernel="dense")),
    ("L10", "error", "no meter was read",
     lambda r: claiming(r, Statement("less_energy", "b", "dense", 2.0))),
]  # fmt: skip


@pytest.mark.parametrize(("lesson", "severity", "text", "spoil"), OFFENCES)
def test_each_offence_is_found_by_its_lesson(good, lesson, severity, text, spoil):
    findings = check(spoil(good))
    hits = [one for one in findings if (one.severity, one.lesson) == (severity, lesson)]
    assert any(re.search(text, one.text) for one in hits), findings


def test_every_lesson_has_an_offence_that_is_an_error():
    assert {lesson for lesson, severity, *_ in OFFENCES if severity == "error"} == set(LESSONS)


@pytest.mark.parametrize(
    ("lesson", "spoil"),
    [
        ("L1", lambda r: without(r, "small_dense")),
        ("L3", lambda r: change(r, "dense", training_macs=None)),
        ("L4", lambda r: change(r, "a", peak_density=None)),
        ("L8", lambda r: change(r, "a", density=0.1, peak_density=0.1, parameters=100)),
        ("L9", lambda r: replace(r, environment=replace(r.environment, equal_budget=False))),
    ],
)
def test_a_stated_reason_makes_a_missing_comparison_a_note(good, lesson, spoil):
    spoilt = spoil(good)
    assert kinds(spoilt) == [("error", lesson)]
    excused = replace(spoilt, reasons={lesson: "There was no time to train any more of these."})
    assert kinds(excused) == [("note", lesson)] and clean(check(excused))
    assert "There was no time" in check(excused)[0].text


def test_a_reason_excuses_no_falsehood(good):
    spoilt = change(good, "b", peak_density=0.5)
    excused = replace(spoilt, reasons={"L4": "It was only for a moment, nobody will notice."})
    assert kinds(excused) == [("error", "L4")]


def test_lower_can_be_better(good):
    mirrored = replace(
        good,
        quality=replace(good.quality, higher_is_better=False),
        rows=tuple(replace(r, quality=tuple(-q for q in r.quality)) for r in good.rows),
    )
    assert check(mirrored) == ()


def test_weights_are_not_asked_of_attention(good):
    """An exact or training-free method of attention owes neither training costs nor twins."""
    taxonomy = replace(
        good.taxonomy,
        object=("attention",),
        decided=("inference",),
        mode="input_dependent",
        needs=("pretrained",),
        exactness="approximate",
    )
    rows = tuple(
        replace(r, decided=r.decided and "inference", training_macs=None)
        for r in without(good, "small_dense", "static", "random_growth", "shuffled").rows
    )
    assert check(replace(good, taxonomy=taxonomy, rows=rows, statements=())) == ()


def test_a_static_method_is_asked_for_shuffled_masks(good):
    report = without(good, "static", "random_growth", "shuffled")
    static = replace(
        report,
        taxonomy=replace(good.taxonomy, mode="static", decided=("one_shot",)),
        rows=tuple(replace(r, decided=r.decided and "one_shot") for r in report.rows),
    )
    assert kinds(static) == [("warning", "L7")]


def test_findings_are_plain_records():
    assert clean((Finding("warning", "L1", "x"), Finding("note", "L2", "y")))
    assert not clean((Finding("error", "L1", "x"),))


def test_the_docs_name_every_lesson_and_field():
    page = (Path(__file__).parents[2] / "docs" / "lessons.md").read_text("utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| L")]
    assert tuple(rows) == LESSONS
    assert not [name for name in Taxonomy.__dataclass_fields__ if f"`{name}`" not in page]
    assert f"{LEAST_ROUNDS} rounds" in page and f"({EXTREME_DENSITY} or less)" in page
    assert "our reading of the handbook's themes" in page
