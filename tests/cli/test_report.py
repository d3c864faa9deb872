"""``gossamer report``: one page from any results, and one clear line where there are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossamer.cli import app
from gossamer.files import save_json
from gossamer.reproduce import Claim, Evidence


def evidence():
    claims = (
        Claim("half the work", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True),
        Claim("twice as fast", 2.0, "Table 2", 1.0, 1.1, "ours >= 2", False),
    )
    return Evidence("tiny", "quick", 0, "cpu", 1.5, claims, 2, "Example CPU", {}).to_json()


def test_a_page_and_its_summary(tmp_path: Path):
    save_json(tmp_path / "tiny.json", evidence())
    save_json(tmp_path / "other.json", {"a": 1})
    out = tmp_path / "deep.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    (only,) = summary["results"]
    assert (only["name"], only["claims"], only["hold"]) == ("tiny", 2, 1)
    assert len(summary["left_out"]) == 1
    assert "left out: " in result.stderr and "wrote " in result.stderr
    page = out.read_text()
    assert "half the work" in page and "<svg" in page and "Left out" in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.json", None, "nowhere.json"),
        ("torn.json", "{", "torn.json"),
        ("other.json", '{"a": 1}', "expected results of gossamer compare, reproduce or bench"),
        ("", None, "expected a folder with results in it"),
    ],
)
def test_bad_input_is_exit_code_two_and_writes_nothing(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    command = [sys.executable, "-m", "gossamer", "report", str(tmp_path / name)]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "out.html")], capture_output=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr.decode()
    assert b"Traceback" not in result.stderr and not result.stdout
    assert not (tmp_path / "out.html").exists()


def test_no_arguments_ask_for_some():
    assert CliRunner().invoke(app, ["report"]).exit_code == 2
