"""Files survive full disks, interruptions and kills."""

import errno
import itertools
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.files import load_json, save_bytes, save_json, save_text, staged

OLD, NEW = {"old": [1, 2.5, None, "é"]}, {"new": list(range(500))}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "killed"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (KeyboardInterrupt(), False),
        (Killed(), True),
    ],
    ids=["full", "broken", "interrupted", "killed"],
)
def test_a_failure_at_any_call_leaves_one_whole_file(tmp_path, error, killed, file_faults):
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        folder.mkdir()
        path = folder / "results.json"
        save_json(path, OLD)
        with pytest.MonkeyPatch.context() as patch:
            faults = file_faults(patch, n, error, killed=killed)
            failure = None
            try:
                save_json(path, NEW)
            except BaseException as raised:
                failure = raised
        for descriptor in faults.leaked:
            with suppress(OSError):
                os.close(descriptor)
        if failure is None:
            break
        assert load_json(path) == (NEW if faults.renamed else OLD)
        if not killed:
            assert [entry.name for entry in folder.iterdir()] == ["results.json"]
        if isinstance(error, OSError):
            assert type(failure) is type(error)
            assert str(path) in str(failure)
            assert str(error.strerror) in str(failure)
        save_json(path, NEW)
        assert load_json(path) == NEW
    assert n == 9  # open twice, write, fsync, close, replace, fsync, close; then all of them
    assert load_json(path) == NEW


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:3]))
    save_json(tmp_path / "a.json", NEW)
    assert load_json(tmp_path / "a.json") == NEW


def test_a_failed_first_save_leaves_nothing(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_json(tmp_path / "a.json", NEW)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.json", "with space é.json", "n" * 255])
def test_any_file_name_does(tmp_path, name):
    save_json(tmp_path / name, OLD)
    assert load_json(tmp_path / name) == OLD


def test_a_symbolic_link_keeps_pointing_at_its_target(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    save_json(target, OLD)
    link.symlink_to(target)
    save_json(link, NEW)
    assert link.is_symlink()
    assert load_json(target) == NEW


def test_missing_parent_and_directory_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"could not write .*missing.a\.json"):
        save_json(tmp_path / "missing" / "a.json", OLD)
    with pytest.raises(OSError, match="could not write"):
        save_json(tmp_path, OLD)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_unicode_is_still_written(tmp_path):
    save_text(tmp_path / "page.html", "caf\udce9 é")
    assert (tmp_path / "page.html").read_text("utf-8") == "caf? é"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_before_writing(tmp_path, value):
    save_json(tmp_path / "a.json", OLD)
    with pytest.raises(ValueError, match="expected JSON data with finite numbers"):
        save_json(tmp_path / "a.json", {"kl": value})
    assert load_json(tmp_path / "a.json") == OLD


json_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # lone surrogates: file names that are not text
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_chunks_are_written_in_order_and_asked_for_once(tmp_path):
    path = tmp_path / "a.bin"
    save_bytes(path, (memoryview(bytes([i]) * i) for i in range(4)))
    assert path.read_bytes() == b"\x01\x02\x02\x03\x03\x03"


def test_a_failure_of_the_content_leaves_the_previous_file(tmp_path):
    def chunks():
        yield b"half"
        raise ValueError("no more")

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="no more"):
        save_bytes(path, chunks())
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"old")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(json_data)
def test_round_trip_is_the_identity(tmp_path, document):
    save_json(tmp_path / "a.json", document)
    assert load_json(tmp_path / "a.json") == document


def test_staged_files_appear_together_and_the_named_one_last(tmp_path, monkeypatch):
    moved = []
    real = Path.replace

    def noted(path, target):
        moved.append(Path(target).name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    (tmp_path / "b").write_text("old")
    with staged(tmp_path, last="b") as stage:
        for name in "abc":
            (stage / name).write_text(name)
        assert (tmp_path / "b").read_text() == "old" and not (tmp_path / "a").exists()
    assert moved == ["a", "c", "b"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict(a="a", b="b", c="c")


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_stage_that_fails_leaves_nothing(tmp_path, fresh, error):
    folder = tmp_path / "deep" / "folder" if fresh else tmp_path
    with pytest.raises(type(error)), staged(folder, last="b") as stage:
        (stage / "a").write_text("a")
        raise error
    assert not folder.exists() if fresh else not any(tmp_path.iterdir())
