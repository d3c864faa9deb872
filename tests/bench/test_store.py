"""Files survive full disks, interruptions and kills; damaged files are refused, never believed."""

import errno
import itertools
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.bench.store import (
    ROW_NUMBERS,
    ResultStore,
    load_json,
    load_results,
    save_json,
    save_text,
)
from gossamer.errors import FormatError

OLD, NEW = {"old": [1, 2.5, None, "é"]}, {"new": list(range(500))}
SETTINGS = {"model": "tiny", "context": 64, "versions": {"torch": "2.13.0", "python": "3.11"}}
STOCK = {"method": "stock", "prefill_seconds": 2.0, "prefill_speedup": 1.0}
HIP = {"method": "hip", "density": 0.1, "passkey": {"found": 7, "asked": 8}, "notes": ["short"]}
# A file of schema 1, as written: it must load for ever.
VERSION_1 = """{"schema": 1, "model": "tiny", "rows": [{"method": "stock", "prefill_seconds": 1,
"prefill_speedup": 1.0, "decode_ms_per_token": 2.5, "decode_speedup": 1.0, "kv_bytes": 4096,
"kv_bytes_read_per_token": 4096, "density": 1.0, "selection_share": 0.0, "perplexity": 9.5,
"kl": 0.0, "top1_agreement": 1.0, "passkey": {"found": 8, "asked": 8}, "notes": []}],
"complete": true, "peak_rss_bytes": 1000}"""


class Faults:
    """Counts the file system calls of one save and makes the n-th one go wrong."""

    NAMES = ("open", "write", "fsync", "replace", "close")

    def __init__(self, monkeypatch, n, error, *, killed=False):
        self.n, self.error, self.killed = n, error, killed
        self.calls, self.renamed, self.leaked = 0, False, []
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        if killed:  # after a kill nothing else reaches the disk, clean-up included
            monkeypatch.setattr(os, "unlink", self.wrap("unlink", os.unlink))

    def wrap(self, name, real):
        def call(*arguments, **options):
            self.calls += 1
            dead = self.killed and self.calls > self.n
            if name == "close" and (dead or self.calls == self.n):
                self.leaked.append(arguments[0])
            if name == "write" and self.calls == self.n:
                real(arguments[0], bytes(arguments[1])[:7])  # the disk fills up halfway
            if dead or self.calls == self.n:
                raise self.error
            result = real(*arguments, **options)
            self.renamed |= name == "replace"
            return result

        return call


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
def test_a_failure_at_any_call_leaves_one_whole_file(tmp_path, error, killed):
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        folder.mkdir()
        path = folder / "results.json"
        save_json(path, OLD)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, n, error, killed=killed)
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(json_data)
def test_round_trip_is_the_identity(tmp_path, document):
    save_json(tmp_path / "a.json", document)
    assert load_json(tmp_path / "a.json") == document


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_schema_1_loads(tmp_path):
    document = load_results(write(tmp_path / "results.json", VERSION_1))
    assert document == json.loads(VERSION_1)
    later = {"decode_floor_ms"}  # added since, so a reader must do without
    assert set(document["rows"][0]) == {"method", "passkey", "notes", *ROW_NUMBERS} - later


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected one JSON document"),
        ("[]", "'schema' field"),
        ("{}", "'schema' field"),
        ('{"schema": 2, "rows": [], "complete": true}', "expected schema 1, found 2"),
        ('{"schema": true, "rows": [], "complete": true}', "expected schema 1, found True"),
        ('{"schema": 1, "rows": {}, "complete": true}', "expected rows: list, found dict"),
        ('{"schema": 1, "rows": [], "complete": true, "versions": 2}', "versions: object, found 2"),
        ('{"schema": 1, "rows": []}', "expected complete: bool, found None"),
        ('{"schema": 1, "schema": 1, "rows": [], "complete": true}', "occurs twice"),
        ('{"schema": 1, "rows": [], "complete": true, "seed": NaN}', "number NaN"),
        (b'{"schema": 1, "rows": [], "complete": true, "text": "\xff"}', "utf-8"),
        ("\ufeff" + VERSION_1, "BOM"),
        ("[" * 100_000, "expected one JSON document"),
        ("9" * 10_000, "expected one JSON document|'schema' field"),
        ('{"schema": 1, "complete": true, "rows": [3]}', r"rows\[0\]: .* method: str"),
        (
            '{"schema": 1, "complete": true, "rows": [{"method": "a"}, {"method": "a"}]}',
            "each method once",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, problem):
    path = write(tmp_path / "results.json", text)
    with pytest.raises(FormatError, match=problem) as caught:
        load_results(path)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ROW_NUMBERS for value in ("1", "1e999", "true", "[]")),
        ("passkey", "3"),
        ("passkey", '{"found": 1}'),
        ("passkey", '{"found": 1, "asked": 2.5}'),
        ("notes", "3"),
        ("notes", "[3]"),
    ],
)
def test_rows_are_checked_field_by_field(tmp_path, field, value):
    value = '"1"' if value == "1" else value
    text = f'{{"schema": 1, "complete": true, "rows": [{{"method": "a", "{field}": {value}}}]}}'
    with pytest.raises(FormatError, match=rf"rows\[0\]: expected {field}: "):
        load_results(write(tmp_path / "results.json", text))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_any_mutation_loads_or_is_refused(tmp_path, data):
    text = bytearray(VERSION_1.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(
            st.sampled_from([b"", b'"', b"}", b"[", b"null", b"1e999", b"-", b"\xff", b"\r\n"])
        )
        text[at : at + data.draw(st.integers(0, 3))] = piece
        text = text or bytearray(b" ")
    try:
        document = load_results(write(tmp_path / "fuzz.json", bytes(text)))
    except FormatError:
        return
    assert document["schema"] == 1


def test_every_truncation_is_refused(tmp_path):
    whole = VERSION_1.encode()
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            load_results(write(tmp_path / "cut.json", whole[:length]))


def test_rows_are_on_disk_one_at_a_time(tmp_path):
    path = tmp_path / "results.json"
    store = ResultStore(path, SETTINGS)
    assert not path.exists()
    store.append(STOCK)
    assert load_results(path)["rows"] == [STOCK]
    store.append(HIP)
    expected = {
        "schema": 1,
        **SETTINGS,
        "rows": [STOCK, HIP],
        "complete": False,
        "peak_rss_bytes": None,
    }
    assert load_results(path) == store.document() == expected
    store.finish(peak_rss_bytes=5000)
    expected |= {"complete": True, "peak_rss_bytes": 5000}
    assert load_results(path) == store.document() == expected


def test_an_older_file_stays_until_the_first_row(tmp_path):
    path = write(tmp_path / "results.json", VERSION_1)
    store = ResultStore(path, SETTINGS)
    assert path.read_text() == VERSION_1
    store.append(STOCK)
    assert load_results(path)["rows"] == [STOCK]


def test_resume_goes_on_from_the_finished_rows(tmp_path):
    path = tmp_path / "results.json"
    first = ResultStore(path, SETTINGS)
    first.append(STOCK)
    first.finish(peak_rss_bytes=9000)
    again = ResultStore.resume(path, SETTINGS)
    assert again.rows == (STOCK,)
    again.append(HIP)
    assert load_results(path) == again.document()
    assert again.document()["complete"] is False
    again.finish(peak_rss_bytes=4000)
    assert load_results(path)["rows"] == [STOCK, HIP]
    assert load_results(path)["peak_rss_bytes"] == 9000


def test_resume_without_a_file_starts_empty(tmp_path):
    assert ResultStore.resume(tmp_path / "results.json", SETTINGS).rows == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**SETTINGS, "context": 128}, "setting context was 64, is now 128"),
        ({**SETTINGS, "seed": None}, "setting seed was absent, is now None"),
        ({"model": "tiny", "context": 64}, "setting versions was .*, is now absent"),
        (
            {**SETTINGS, "versions": {"torch": "2.14.0", "python": "3.11"}},
            r"setting versions\.torch was '2\.13\.0', is now '2\.14\.0'",
        ),
    ],
)
def test_resume_refuses_other_settings(tmp_path, changed, message):
    path = tmp_path / "results.json"
    ResultStore(path, SETTINGS).append(STOCK)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        ResultStore.resume(path, changed)
    assert path.read_bytes() == before


def test_resume_refuses_a_damaged_file(tmp_path):
    path = write(tmp_path / "results.json", VERSION_1[:-5])
    with pytest.raises(FormatError):
        ResultStore.resume(path, SETTINGS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (STOCK, "not yet measured, got 'stock'"),
        ({"prefill_seconds": 1.0}, "method: str"),
        ({"method": "hip", "kl": float("nan")}, "finite numbers"),
        ({"method": "hip", "kl": "low"}, "kl: finite number or null, got 'low'"),
    ],
)
def test_a_bad_row_changes_nothing(tmp_path, row, message):
    path = tmp_path / "results.json"
    store = ResultStore(path, SETTINGS)
    store.append(STOCK)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        store.append(row)
    assert store.rows == (STOCK,)
    assert path.read_bytes() == before


def test_a_row_that_cannot_be_saved_is_not_added(tmp_path, monkeypatch):
    store = ResultStore(tmp_path / "results.json", SETTINGS)
    store.append(STOCK)
    with monkeypatch.context() as patch:
        Faults(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            store.append(HIP)
    assert store.rows == (STOCK,)
    store.append(HIP)
    assert load_results(store.path)["rows"] == [STOCK, HIP]


@pytest.mark.parametrize("name", ["schema", "rows", "complete", "peak_rss_bytes"])
def test_settings_cannot_take_the_files_own_fields(name):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        ResultStore("results.json", {name: 1})


def test_the_callers_objects_are_copied(tmp_path):
    row, chosen = {"method": "hip", "notes": ["a"]}, {"versions": {"torch": "1"}}
    store = ResultStore(tmp_path / "results.json", chosen)
    store.append(row)
    row["notes"].append("b")
    chosen["versions"]["torch"] = "2"
    store.document()["rows"].clear()
    assert store.document()["versions"] == {"torch": "1"}
    assert store.rows[0]["notes"] == ["a"]
