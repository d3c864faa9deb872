"""``gossamer reproduce``: what is printed, what is saved, and the exit codes."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from gossamer import reproduce as package
from gossamer.cli import reproduce as command
from gossamer.files import save_json
from gossamer.reproduce import load

MODULES = {
    "a_holds": "yield Claim('a claim', 0.5, 'Table 1', 1.0, 0.48, 'ours <= 0.5', True)",
    "b_fails": "yield Claim('b claim', 2.0, 'Table 2', 1.0, 1.10, 'ours >= 2', False)",
    "c_raises": "raise OSError('the model file is missing')",
    "d_interrupted": "raise KeyboardInterrupt",
    "e_holds": "yield Claim('e claim', None, '', None, f'{scale} {seed}', 'given', True)",
}


@pytest.fixture
def papers(tmp_path, monkeypatch):
    """Choose which papers exist; each has one claim, or one way to stop."""
    folder = tmp_path / "papers"
    folder.mkdir()

    def choose(*names):
        for name in names:
            (folder / f"{name}.py").write_text(
                "from gossamer.reproduce import Claim\n\n\n"
                f"def reproduce(scale, seed):\n    {MODULES[name]}\n    yield from ()\n"
            )

    monkeypatch.setattr(package, "__path__", [str(folder)])
    yield choose
    for name in MODULES:
        sys.modules.pop(f"gossamer.reproduce.{name}", None)


def invoke(*arguments):
    app = typer.Typer()
    app.command()(command.reproduce)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_claim_that_holds_exits_0_and_shows_both_figures(papers):
    papers("a_holds")
    result = invoke("a-holds")
    assert result.exit_code == 0
    for words in ("a-holds", "1 of 1 claims hold", "Table 1", "0.48", "ours <= 0.5", "yes"):
        assert words in result.stdout


def test_flaws_of_the_evidence_go_to_stderr(papers):
    papers("a_holds", "e_holds")
    result = invoke("all", "--json")
    assert "a-holds: L9: claim 1: expected a setting in words" in result.stderr
    assert "L9" not in result.stdout


def test_a_claim_that_fails_exits_1_and_says_no(papers):
    papers("b_fails")
    result = invoke("b-fails")
    assert result.exit_code == 1
    assert "0 of 1 claims hold" in result.stdout
    assert " no" in result.stdout


def test_json_is_one_document_on_stdout(papers):
    papers("e_holds")
    result = invoke("e-holds", "--json", "--scale", "full", "--seed", "7")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (document["slug"], document["scale"], document["seed"]) == ("e-holds", "full", 7)
    assert document["claims"][0]["ours"] == "full 7"


def test_all_is_a_list_and_fails_if_one_claim_does(papers):
    papers("a_holds", "b_fails", "e_holds")
    result = invoke("all", "--json")
    assert result.exit_code == 1
    assert [document["slug"] for document in json.loads(result.stdout)] == [
        "a-holds",
        "b-fails",
        "e-holds",
    ]


def test_one_papers_crash_is_shown_and_does_not_lose_the_others(papers):
    papers("a_holds", "c_raises", "e_holds")
    result = invoke("all", "--json")
    documents = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [document["complete"] for document in documents] == [True, False, True]
    assert documents[1]["error"] == "OSError: the model file is missing"
    assert "Traceback" in result.stderr


def test_an_interruption_keeps_what_is_finished_and_exits_130(papers, tmp_path):
    papers("a_holds", "d_interrupted", "e_holds")
    result = invoke("all", "--json", "--out", tmp_path / "out")
    documents = json.loads(result.stdout)
    assert result.exit_code == 130
    assert [document["slug"] for document in documents] == ["a-holds", "d-interrupted"]
    assert documents[1]["complete"] is False
    assert documents[1]["claims"] == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-holds.json"]


def test_an_interrupted_paper_alone_never_passes(papers):
    papers("d_interrupted")
    result = invoke("d-interrupted")
    assert result.exit_code == 130
    assert "incomplete (interrupted)" in result.stdout


def test_out_keeps_one_file_a_paper_and_a_crash_spares_it(papers, tmp_path):
    papers("a_holds", "c_raises")
    out = tmp_path / "new" / "out"
    out.mkdir(parents=True)
    save_json(out / "c-raises.json", {"earlier": True})
    invoke("all", "--out", out)
    assert load(out / "a-holds.json").holds
    assert json.loads((out / "c-raises.json").read_text()) == {"earlier": True}


def test_a_full_disk_still_prints_the_result(papers, tmp_path, monkeypatch):
    def full(path, document):
        raise OSError(28, f"could not write {path}: No space left on device")

    monkeypatch.setattr(command, "save_json", full)
    papers("a_holds")
    result = invoke("a-holds", "--json", "--out", tmp_path)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["slug"] == "a-holds"
    assert "No space left on device" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a-hold"], "got 'a-hold', try 'a-holds'"),
        (["a-holds", "--scale", "huge"], "scale: expected one of quick, full, gpu, got 'huge'"),
        (["all", "--seed", "-1"], "seed: expected 0 <= seed"),
        (["a-holds", "--out", __file__], "File exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(papers, arguments, message):
    papers("a_holds")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
