"""Result files are told apart by what they hold; anything else is refused with a reason."""

import json
from pathlib import Path

import pytest

from gossamer.errors import FormatError
from gossamer.files import save_json
from gossamer.report.documents import gather, read
from gossamer.reproduce import Claim, Evidence

ROOT = Path(__file__).parents[2]
RATIO = {"name": "spmm", "ratio": 2.0, "bar": 1.5, "holds": True}


def evidence(slug="tiny"):
    claims = (Claim("half", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True),)
    return Evidence(slug, "quick", 0, "cpu", 1.5, claims, 2, "Example CPU", {})


def test_every_committed_result_is_of_a_kind():
    paths = sorted((ROOT / "results").rglob("*.json"))
    found, left_out = gather([ROOT / "results"])
    assert not left_out
    assert sorted(result.path for result in found) == paths
    for result in found:
        own = "evidence" if result.path.parent.name == "reproduce" else result.kind
        assert result.kind == own


def test_a_file_of_several_papers(tmp_path):
    save_json(tmp_path / "all.json", [evidence("one").to_json(), evidence("two").to_json()])
    assert [result.name for result in read(tmp_path / "all.json")] == ["one", "two"]
    assert [result.content for result in read(tmp_path / "all.json")] == [
        evidence("one"),
        evidence("two"),
    ]


def test_a_folder_is_read_at_any_depth_and_its_other_files_are_named(tmp_path, document):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    save_json(tmp_path / "deep" / "er" / "paper.json", evidence().to_json())
    save_json(tmp_path / "a.json", {"figures": [RATIO]})
    save_json(tmp_path / "z.json", document)
    save_json(tmp_path / "other.json", {"vocab": 5})
    (tmp_path / "torn.json").write_text('{"claims": [')
    (tmp_path / "notes.txt").write_text("not read")
    found, left_out = gather([tmp_path])
    assert [result.kind for result in found] == ["comparison", "evidence", "benchmark"]
    assert [line.split(": ")[0] for line in left_out] == [
        str(tmp_path / name) for name in ("other.json", "torn.json")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ('{"claims": [', "JSON"),
        ("[]", "expected results of gossamer"),
        ("7", "expected results of gossamer"),
        ('{"schema": 1}', "none of their fields rows, claims and figures"),
        ('{"figures": {}}', "expected results of gossamer"),
        ('{"schema": 9, "claims": []}', "expected evidence of schema 1"),
        ('{"schema": 1, "claims": 3}', "expected evidence"),
        ("[1, 2]", "expected evidence"),
        ('{"schema": 1, "complete": true, "rows": [{}]}', r"rows\[0\]: expected an object"),
        ('{"figures": [1]}', r"figures\[0\]: expected an object with a name"),
        ('{"figures": [{"name": "a"}]}', "expected ratio: finite number, got None"),
        ('{"figures": [{"name": "a", "ratio": true}]}', "expected ratio: .* got True"),
        ('{"figures": [{"name": "a", "ratio": NaN}]}', "JSON|NaN"),
        ('{"figures": [{"name": "a", "ratio": 1, "bar": "x"}]}', "expected bar: .*'x'"),
        ('{"figures": [{"name": "a", "ratio": 1, "holds": 1}]}', "expected holds: .*got 1"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "given.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=message) as refused:
        read(path)
    assert refused.value.path == path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slug", 3),
        ("seconds", "long"),
        ("versions", []),
        ("claims", [{"claim": "x"}]),
        ("claims", [{**evidence().to_json()["claims"][0], "holds": "yes"}]),
        ("claims", [{**evidence().to_json()["claims"][0], "ours": [1]}]),
    ],
)
def test_damaged_evidence_is_refused(tmp_path, field, value):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(evidence().to_json() | {field: value}))
    with pytest.raises(FormatError):
        read(path)


def test_a_folder_without_results_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with results in it, found none"):
        gather([tmp_path])
    with pytest.raises(FileNotFoundError):
        gather([tmp_path / "nowhere.json"])
