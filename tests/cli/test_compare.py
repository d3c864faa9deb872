"""`gossamer compare` on a tiny model: its files, its JSON, Ctrl-C and --resume."""

import json

import pytest
from typer.testing import CliRunner

from gossamer.bench import compare as job
from gossamer.cli import app


@pytest.fixture(scope="module")
def command(checkpoint) -> list[str]:
    model, text = str(checkpoint), str(checkpoint / "text.txt")
    return [
        *("compare", "--model", model, "--text", text, "--context", "100"),
        *("--decode", "8", "--methods", "stock,dense,streaming:sink=2:local=14"),
    ]


def test_an_interruption_keeps_the_rows_and_resume_goes_on(command, tmp_path, monkeypatch):
    out = tmp_path / "out"
    measure, measured = job._document_round, []

    def interrupted(task, spec, method):
        if spec == "dense" and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(spec)
        return measure(task, spec, method)

    monkeypatch.setattr(job, "_document_round", interrupted)
    stopped = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    kept = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in kept["rows"]] == ["stock"] and not kept["complete"]

    monkeypatch.setattr(job, "_document_round", measure)
    resumed = CliRunner().invoke(app, [*command, "--out", str(out), "--resume", "--json"])
    assert resumed.exit_code == 0, resumed.output
    printed = json.loads(resumed.stdout)
    assert printed == json.loads((out / "results.json").read_text())
    assert printed["complete"] and len(printed["rows"]) == 3
    first, again = (found["rows"][0]["samples"] for found in (kept, printed))
    assert again["prefill_seconds"][0] == first["prefill_seconds"][0]
    assert "<svg" in (out / "report.html").read_text()


def test_the_table_names_every_method(command, tmp_path):
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("stock", "dense", "streaming", "peak memory"))
