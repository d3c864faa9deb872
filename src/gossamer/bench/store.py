"""Results on disk: checked when read, resumable row by row."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError
from gossamer.files import format_json, load_json, save_json

SCHEMA = 1

ROW_NUMBERS = (
    "prefill_seconds",
    "prefill_speedup",
    "decode_ms_per_token",
    "decode_speedup",
    "decode_floor_ms",
    "kv_bytes",
    "kv_bytes_read_per_token",
    "weight_bytes_read_per_token",
    "density",
    "selection_share",
    "perplexity",
    "kl",
    "top1_agreement",
)
_OWN_KEYS = ("schema", "rows", "complete", "peak_rss_bytes")


def load_results(path: Path | str) -> dict[str, Any]:
    """Read a results file of ``gossamer compare`` and check it against its schema.

    Parameters
    ----------
    path : Path or str
        A ``results.json``, complete or not.

    Returns
    -------
    dict
        The document; its rows have unique methods and finite numbers (or None).

    Raises
    ------
    FormatError
        If the file is damaged, of another kind, or written by a later schema.
    OSError
        If it cannot be read.
    """
    document = load_json(path)
    if not isinstance(document, dict) or "schema" not in document:
        raise FormatError(path, "expected a results object with a 'schema' field, found none")
    if type(document["schema"]) is not int or document["schema"] != SCHEMA:
        raise FormatError(
            path,
            f"expected schema {SCHEMA}, found {document['schema']!r}; "
            "a newer gossamer may be able to read it",
        )
    if not isinstance(document.get("complete"), bool):
        raise FormatError(path, f"expected complete: bool, found {document.get('complete')!r}")
    if not isinstance(document.get("versions", {}), dict):
        raise FormatError(path, f"expected versions: object, found {document['versions']!r}")
    rows = document.get("rows")
    if not isinstance(rows, list):
        raise FormatError(path, f"expected rows: list, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        if problem := _row_problem(row):
            raise FormatError(path, f"rows[{index}]: {problem}")
    methods = [row["method"] for row in rows]
    if len(set(methods)) < len(methods):
        raise FormatError(path, f"expected each method once, found {methods}")
    return document


class ResultStore:
    """The results of one comparison, saved after every row so that none is measured twice.

    Parameters
    ----------
    path : Path or str
        The results file. An older file stays until the first row replaces it.
    settings : mapping of str to JSON data
        Everything that shapes the numbers (model, text, context, dtype, device, threads, seed,
        versions, ...); they become the top-level fields of the file.

    Raises
    ------
    ValueError
        If a setting is not JSON data or takes a name the file uses itself.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = ResultStore(Path(folder, "results.json"), {"model": "tiny"})
    ...     store.append({"method": "stock", "prefill_seconds": 1.5})
    ...     again = ResultStore.resume(Path(folder, "results.json"), {"model": "tiny"})
    ...     [row["method"] for row in again.rows]
    ['stock']
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any]) -> None:
        if taken := [key for key in _OWN_KEYS if key in settings]:
            raise ValueError(f"settings: expected none of {', '.join(_OWN_KEYS)}, got {taken[0]!r}")
        self.path = Path(path)
        self._settings: dict[str, Any] = json.loads(format_json(settings))
        self._rows: list[dict[str, Any]] = []
        self._complete = False
        self._peak_rss_bytes: int | None = None

    @classmethod
    def resume(cls, path: Path | str, settings: Mapping[str, Any]) -> "ResultStore":
        """Go on from the rows of an earlier run with the same settings, if there was one.

        Parameters
        ----------
        path : Path or str
            The results file; where none exists yet, the store starts empty.
        settings : mapping of str to JSON data
            Must equal the settings of the earlier run.

        Returns
        -------
        ResultStore

        Raises
        ------
        ValueError
            If a setting differs; the message names the first that does.
        FormatError
            If the file is damaged.
        """
        store = cls(path, settings)
        if not store.path.exists():
            return store
        document = load_results(store.path)
        earlier = {key: value for key, value in document.items() if key not in _OWN_KEYS}
        if difference := _difference(earlier, store._settings):
            raise ValueError(
                f"cannot resume {path}: {difference}; "
                "repeat the earlier settings or start again without --resume"
            )
        store._rows = document["rows"]
        store._complete = document["complete"]
        store._peak_rss_bytes = document.get("peak_rss_bytes")
        return store

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """The finished rows, in the order they were measured."""
        return tuple(self._rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished row and save; a row that cannot be saved is not added.

        Parameters
        ----------
        row : mapping of str to JSON data
            ``"method"`` and what was measured; None where nothing was.

        Raises
        ------
        ValueError
            If the row is malformed or its method is there already.
        OSError
            If the file cannot be written; the previous one is intact.
        """
        added: dict[str, Any] = json.loads(format_json(row))
        if problem := _row_problem(added):
            raise ValueError(f"row: {problem}")
        if added["method"] in [earlier["method"] for earlier in self._rows]:
            raise ValueError(f"row: expected a method not yet measured, got {added['method']!r}")
        rows = [*self._rows, added]
        save_json(self.path, self._document(rows, complete=False, peak=self._peak_rss_bytes))
        self._rows, self._complete = rows, False

    def replace(self, row: Mapping[str, Any]) -> None:
        """Put a better measured row in place of its method's earlier one and save.

        Raises
        ------
        ValueError
            If the row is malformed or its method was not measured yet.
        OSError
            If the file cannot be written; the previous one is intact.
        """
        better: dict[str, Any] = json.loads(format_json(row))
        if problem := _row_problem(better):
            raise ValueError(f"row: {problem}")
        if better["method"] not in [earlier["method"] for earlier in self._rows]:
            raise ValueError(f"row: expected a method already measured, got {better['method']!r}")
        rows = [better if row["method"] == better["method"] else row for row in self._rows]
        save_json(self.path, self._document(rows, complete=False, peak=self._peak_rss_bytes))
        self._rows, self._complete = rows, False

    def finish(self, *, peak_rss_bytes: int | None = None) -> None:
        """Mark the comparison complete and save.

        Parameters
        ----------
        peak_rss_bytes : int, optional
            Peak memory of this process; the larger of this and an earlier run's is kept.

        Raises
        ------
        OSError
            If the file cannot be written; the previous one is intact.
        """
        peak = max(filter(None, (peak_rss_bytes, self._peak_rss_bytes)), default=None)
        save_json(self.path, self._document(self._rows, complete=True, peak=peak))
        self._complete, self._peak_rss_bytes = True, peak

    def document(self) -> dict[str, Any]:
        """Return what the file holds: settings, rows and whether they are complete."""
        return json.loads(
            format_json(
                self._document(self._rows, complete=self._complete, peak=self._peak_rss_bytes)
            )
        )

    def _document(
        self, rows: Sequence[Mapping[str, Any]], *, complete: bool, peak: int | None
    ) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **self._settings,
            "rows": rows,
            "complete": complete,
            "peak_rss_bytes": peak,
        }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _row_problem(row: Any) -> str | None:
    """Say what is wrong with a row, None if nothing is."""
    if not isinstance(row, dict) or not isinstance(row.get("method"), str):
        return "expected an object with a method: str"
    for name in ROW_NUMBERS:
        if row.get(name) is not None and not _is_number(row[name]):
            return f"expected {name}: finite number or null, got {row[name]!r}"
    passkey = row.get("passkey")
    if passkey is not None and not (
        isinstance(passkey, dict)
        and all(type(passkey.get(name)) is int for name in ("found", "asked"))
    ):
        return f"expected passkey: {{found: int, asked: int}} or null, got {passkey!r}"
    notes = row.get("notes")
    listed = notes if isinstance(notes, list) else [notes]
    if notes is not None and not all(isinstance(note, str) for note in listed):
        return f"expected notes: text, list of texts or null, got {notes!r}"
    return None


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """Name the first setting that differs, None if none does."""
    for key in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if nested := _difference(before, after, f"{prefix}{key}."):
                return nested
        elif (key in earlier) != (key in now) or before != after:
            was = repr(before) if key in earlier else "absent"
            is_now = repr(after) if key in now else "absent"
            return f"setting {prefix}{key} was {was}, is now {is_now}"
    return None
