"""Results are kept row by row; damaged files are refused, never believed."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.bench.store import ROW_NUMBERS, ResultStore, load_results
from gossamer.errors import FormatError

SETTINGS = {"model": "tiny", "context": 64, "versions": {"torch": "2.13.0", "python": "3.11"}}
STOCK = {"method": "stock", "prefill_seconds": 2.0, "prefill_speedup": 1.0}
HIP = {"method": "hip", "density": 0.1, "passkey": {"found": 7, "asked": 8}, "notes": ["short"]}
# A file of schema 1, as written: it must load for ever.
VERSION_1 = """{"schema": 1, "model": "tiny", "rows": [{"method": "stock", "prefill_seconds": 1,
"prefill_speedup": 1.0, "decode_ms_per_token": 2.5, "decode_speedup": 1.0, "kv_bytes": 4096,
"kv_bytes_read_per_token": 4096, "density": 1.0, "selection_share": 0.0, "perplexity": 9.5,
"kl": 0.0, "top1_agreement": 1.0, "passkey": {"found": 8, "asked": 8}, "notes": []}],
"complete": true, "peak_rss_bytes": 1000}"""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_schema_1_loads(tmp_path):
    document = load_results(write(tmp_path / "results.json", VERSION_1))
    assert document == json.loads(VERSION_1)
    later = {
        "decode_floor_ms",
        "weight_bytes_read_per_token",
    }  # added since, so a reader must do without
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


def test_a_row_that_cannot_be_saved_is_not_added(tmp_path, monkeypatch, file_faults):
    store = ResultStore(tmp_path / "results.json", SETTINGS)
    store.append(STOCK)
    with monkeypatch.context() as patch:
        file_faults(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
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
