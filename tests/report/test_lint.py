"""Findings on files: our own evidence has no errors, and spoilt evidence has its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer import reproduce
from gossamer.catalog.lint import clean
from gossamer.errors import FormatError
from gossamer.files import save_json
from gossamer.report.lint import check_evidence, lint_file
from gossamer.reproduce import Claim, Evidence

RESULTS = sorted(Path(__file__).parents[2].glob("results/*/reproduce/*.json"))
CLAIM = Claim(
    "twice as fast as dense", 2.0, "Table 1", 8.0, 3.9, "ours <= baseline / 2", True, "tiny MLP", 3
)


def evidence(*claims: Claim, **changes) -> Evidence:
    fields = {
        "slug": "token-select",
        "scale": "full",
        "seed": 0,
        "device": "cpu",
        "seconds": 1.5,
        "claims": claims,
        "threads": 2,
        "machine": "Example CPU",
        "versions": {"torch": "2.13.0"},
        "commit": "0123abc",
    }
    return Evidence(**(fields | changes))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_our_own_evidence_has_no_errors(path: Path):
    assert clean(lint_file(path))


def test_there_is_evidence_to_check():
    assert len(RESULTS) >= 8


def test_good_evidence_leaves_nothing_to_say():
    assert check_evidence(evidence(CLAIM)) == ()
    assert check_evidence(evidence(replace(CLAIM, paper=None, source=""))) == ()


@pytest.mark.parametrize(
    ("found", "severity", "lesson", "text"),
    [
        (evidence(), "error", "L9", "nothing was measured"),
        (evidence(error="interrupted"), "error", "L9", "stopped early: interrupted"),
        (evidence(CLAIM, scale="quick"), "warning", "L9", "a smoke test"),
        (evidence(CLAIM, commit=""), "warning", "L9", "the commit of the code is not recorded"),
        (evidence(replace(CLAIM, seeds=None)), "warning", "L9", "the seeds of 1 claims"),
        (evidence(replace(CLAIM, claim="- -")), "error", "L9", "expected a claim in words"),
        (evidence(replace(CLAIM, criterion=" ")), "error", "L9", "expected a criterion in words"),
        (evidence(CLAIM, replace(CLAIM, setting="")), "error", "L9", "claim 2: expected a setting"),
        (evidence(replace(CLAIM, source=" ")), "error", "L10", "2.0 is quoted from nowhere"),
        (evidence(replace(CLAIM, ours=None)), "error", "L10", "ours was not measured: None"),
        (evidence(replace(CLAIM, ours="nan")), "error", "L10", "ours was not measured: 'nan'"),
        (evidence(replace(CLAIM, baseline=None)), "error", "L2", "without a baseline"),
        (evidence(CLAIM, slug="dass"), "warning", "L10", "no hardware for dass"),
        (
            evidence(replace(CLAIM, claim="saves half of the energy")),
            "error",
            "L10",
            "no meter is named",
        ),
    ],
)
def test_each_flaw_is_one_finding(found, severity, lesson, text):
    findings = check_evidence(found)
    assert [(one.severity, one.lesson) for one in findings] == [(severity, lesson)]
    assert text in findings[0].text


def test_energy_with_a_meter_may_be_claimed():
    measured = replace(CLAIM, claim="saves half of the energy", setting="power meter at the plug")
    assert check_evidence(evidence(measured)) == ()


def test_files_are_told_apart(tmp_path: Path):
    save_json(tmp_path / "evidence.json", evidence(CLAIM).to_json())
    assert lint_file(tmp_path / "evidence.json") == ()
    save_json(tmp_path / "other.json", {"rows": []})
    with pytest.raises(FormatError, match=r"other.json: .* \(neither a report nor evidence\)"):
        lint_file(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FormatError, match="expected one JSON document"):
        lint_file(tmp_path / "broken.json")
    damaged = json.loads((tmp_path / "evidence.json").read_text())
    damaged["threads"] = "two"
    save_json(tmp_path / "damaged.json", damaged)
    with pytest.raises(FormatError, match="threads: unexpected value 'two'"):
        lint_file(tmp_path / "damaged.json")


def test_a_run_notes_its_commit():
    assert len(reproduce.stopped("x", scale="quick", seed=0, seconds=0.0, error="e").commit) in (
        0,
        40,
    )
