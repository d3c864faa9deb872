"""`gossamer papers` and `gossamer show`: tables for people, JSON for programs."""

import io
import json
import sys
from dataclasses import asdict, replace

import pytest
import typer
from typer.testing import CliRunner

from gossamer import catalog
from gossamer.cli.papers import papers, show


def run(*arguments: str) -> str:
    """Run an app of the two commands and return its stdout."""
    app = typer.Typer()
    app.command()(papers)
    app.command()(show)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def plain(paper: catalog.Paper) -> dict:
    """Return a paper as JSON has it, where tuples are lists."""
    return json.loads(json.dumps(asdict(paper)))


@pytest.fixture(autouse=True)
def piped(monkeypatch: pytest.MonkeyPatch):
    """Keep the terminal of whoever runs the tests out of them."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Pretend that stdout is a terminal of a given width."""

    def of_width(columns: int) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))

    return of_width


@pytest.fixture
def one_works(monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve a catalogue in which exactly one paper works; return its slug."""
    changed = tuple(
        replace(paper, status="works" if paper.slug == "dhsa" else "planned")
        for paper in catalog.papers()
    )
    monkeypatch.setattr(catalog, "papers", lambda: changed)
    return "dhsa"


def test_papers_prints_one_whole_line_each_when_piped():
    lines = run("papers").splitlines()
    rows = lines[1:-1]
    assert lines[0].split() == ["slug", "wing", "status", "paper"]
    assert [row.split()[:3] for row in rows] == [
        [paper.slug, paper.wing, paper.status] for paper in catalog.papers()
    ]
    for row, paper in zip(rows, catalog.papers(), strict=True):
        assert paper.title in row
        assert row.endswith(paper.summary)
    assert lines[-1].startswith("61 of 61 papers")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_papers_never_cuts_a_slug_in_a_terminal(terminal, columns: int):
    terminal(columns)
    output = run("papers")
    assert "…" not in output
    for paper in catalog.papers():
        assert paper.slug in output


@pytest.mark.parametrize(
    ("options", "slugs"),
    [
        (["VOXEL"], ["dsvt"]),
        (["gathered", "CHUNK", "--wing", "attention", "--status", "works"], ["dhsa"]),
        (["gathered", "chunk", "--wing", "attention", "--status", "planned"], ["token-select"]),
        (["--wing", "spatial"], ["dsvt", "queen"]),
        (["--where", "object=kv_cache,granularity=head"], ["lserve"]),
        (["--where", "object=graph_edges", "--wing", "graphs"], ["dygrass"]),
    ],
)
def test_papers_filters_by_words_wing_and_status(
    one_works: str, options: list[str], slugs: list[str]
):
    rows = run("papers", *options).splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == slugs


def test_papers_counts_what_works(one_works: str):
    assert run("papers").splitlines()[-1] == "61 of 61 papers, 1 of them working"
    assert run("papers", "voxel").splitlines()[-1] == "1 of 61 papers, 0 of them working"
    assert run("papers", "--status", "works").splitlines()[1].split()[0] == one_works


def test_papers_without_a_hit_says_so():
    assert run("papers", "phlogiston") == "0 of 61 papers, 0 of them working\n"
    assert json.loads(run("papers", "phlogiston", "--json")) == []


@pytest.mark.parametrize("words", [(), ("n:m",), ("beyond", "V1")])
def test_papers_json_is_one_list_of_whole_records(terminal, words: tuple[str, ...]):
    expected = [plain(paper) for paper in catalog.find(words)]
    assert json.loads(run("papers", *words, "--json")) == expected
    terminal(40)
    assert json.loads(run("papers", *words, "--json")) == expected


@pytest.mark.parametrize("paper", catalog.papers()[::12], ids=lambda paper: paper.slug)
def test_show_prints_every_field(paper: catalog.Paper):
    output = run("show", paper.slug)
    shown = dict(line.split(maxsplit=1) for line in output.splitlines())
    expected = {name: str(value) or "-" for name, value in asdict(paper).items()}
    del expected["taxonomy"]
    for name, terms in asdict(paper.taxonomy).items():
        expected[name] = terms if isinstance(terms, str) else ", ".join(terms)
    expected["arxiv"] = f"https://arxiv.org/abs/{paper.arxiv}"
    if paper.status == "works":
        expected["Measure"] = f"its claims here: gossamer reproduce {paper.slug}"
    assert shown == expected


def test_show_json_is_one_object(terminal):
    terminal(40)
    shown = json.loads(run("show", "hip-attention", "--json"))
    assert shown == plain(catalog.get("hip-attention"))


def test_show_tells_how_to_reproduce_only_what_works(one_works: str):
    assert f"gossamer reproduce {one_works}" in run("show", one_works)
    assert "reproduce" not in run("show", "sparse-frontier")


def test_titles_are_not_markup(monkeypatch: pytest.MonkeyPatch):
    odd = replace(catalog.get("dsvt"), title="[bold]Odd[/bold] [/] :smile: title")
    monkeypatch.setattr(catalog, "papers", lambda: (odd,))
    assert odd.title in run("papers")
    assert odd.title in run("show", "dsvt")


def test_a_stdout_of_few_letters_gets_the_table_all_the_same(monkeypatch: pytest.MonkeyPatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    papers(["d2it"])
    show("d2it")
    papers(["d2it"], as_json=True)
    stdout.seek(0)
    assert stdout.read().count("D?iT: Dynamic Diffusion Transformer") == 2


def test_direct_calls_print_to_stdout_of_the_moment(capsys: pytest.CaptureFixture[str]):
    papers(["voxel"], as_json=True)
    show("dsvt", as_json=True)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count('"slug": "dsvt"') == 2


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (papers, {"words": [], "wing": "kites"}, r"wing: expected one of .*'kites'"),
        (papers, {"words": [], "status": "done"}, r"status: expected one of .*'done'"),
        (papers, {"words": [], "where": "object=kites"}, r"where: expected object= one of"),
        (show, {"slug": "hip-atention"}, r"try 'hip-attention'"),
    ],
)
def test_bad_input_raises_before_anything_is_printed(capsys, command, arguments, message):
    with pytest.raises(ValueError, match=message):
        command(**arguments)
    assert capsys.readouterr() == ("", "")
