"""`gossamer lint`: exit codes, findings for people and for programs, and the schema."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gossamer import catalog
from gossamer.catalog.reports import Environment, Quality, Report, Row
from gossamer.cli.lint import lint
from gossamer.files import save_json

REPORT = Report(
    title="One small report",
    taxonomy=catalog.get("hip-attention").taxonomy,
    quality=Quality("test loss", False, "nothing"),
    environment=Environment(
        device="cpu",
        machine="Example CPU",
        dtype="float32",
        threads=2,
        batch=1,
        commit="0123abc",
        data_hash="0123456789abcdef",
        baseline_kernel="torch's SDPA",
        settings={"block": 64, "tokens": 4096},
        equal_budget=True,
    ),
    seeds=(0, 1, 2),
    rows=tuple(
        Row(f"ours at {density}", "ours", density, 10, "sparse", (1.0, 1.1, 1.2), "inference")
        for density in (0.3, 0.2, 0.1)
    ),
)


@pytest.fixture
def run(tmp_path: Path):
    """Run the command on reports saved as a.json, b.json, ..."""
    app = typer.Typer()
    app.command()(lint)

    def on(*reports: Report, options: tuple[str, ...] = ()):
        paths = [tmp_path / f"{letter}.json" for letter, _ in zip("abc", reports, strict=False)]
        for path, report in zip(paths, reports, strict=True):
            save_json(path, report.to_json())
        return CliRunner().invoke(app, [*map(str, paths), *options])

    return on


def spoilt() -> Report:
    return replace(REPORT, seeds=(0, 0, 0))


def test_a_clean_report_exits_0(run):
    result = run(REPORT)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("a.json: nothing to say\n")


def test_an_error_exits_1_and_is_printed(run):
    result = run(REPORT, spoilt())
    assert result.exit_code == 1
    assert "b.json: 1 finding" in result.stdout.replace("\n", " ")
    assert (
        "error  L9" in result.stdout
        and "different seeds: 1 of 3, expected 3 or more" in result.stdout
    )


def test_a_note_alone_exits_0(run):
    rows = (replace(REPORT.rows[0], kernel="dense"), *REPORT.rows[1:])
    result = run(replace(REPORT, rows=rows))
    assert result.exit_code == 0 and "simulated sparsity (mask)" in result.stdout


def test_json_is_one_document_by_file(run):
    result = run(REPORT, spoilt(), options=("--json",))
    assert result.exit_code == 1
    clean, found = json.loads(result.stdout).values()
    assert clean == []
    assert [(one["severity"], one["lesson"]) for one in found] == [("error", "L9")]


def test_the_schema_is_printed(run):
    result = run(options=("--schema",))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["properties"]["rows"]["type"] == "array"


def test_bad_input_raises_what_the_command_line_turns_into_2(run, tmp_path):
    assert isinstance(run().exception, ValueError)
    (tmp_path / "x.json").write_text("{}")
    result = run(options=(str(tmp_path / "x.json"),))
    assert isinstance(result.exception, ValueError) and "neither a report" in str(result.exception)
    assert isinstance(run(options=(str(tmp_path / "none.json"),)).exception, OSError)
