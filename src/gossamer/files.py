"""Files on disk: written whole or not at all, and read strictly."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError


def save_bytes(path: Path | str, chunks: Iterable[bytes | memoryview]) -> None:
    """Replace a file in one step: a reader sees the old file or the new one, whole.

    The chunks go to a temporary file in the same directory, which is flushed to the disk and then
    renamed. Until the rename, any failure leaves the previous file as it was and no temporary.

    Parameters
    ----------
    path : Path or str
        File to write; a symbolic link keeps pointing at its target, which is replaced.
    chunks : iterable of bytes or memoryview
        Its content, asked for one after the other; what they raise is passed on.

    Raises
    ------
    OSError
        If the disk is full, the directory is missing or read-only, ...; names path and cause.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_bytes(Path(folder, "a.bin"), [b"hello ", b"world"])
    ...     Path(folder, "a.bin").read_bytes()
    b'hello world'
    """
    target = Path(path).resolve()
    try:
        _replace(target, chunks)
    except OSError as error:
        cause = error.strerror or str(error)
        raise OSError(error.errno, f"could not write {target}: {cause}") from error


def save_text(path: Path | str, text: str) -> None:
    """Replace a file by `text` in one step, as `save_bytes` does.

    Parameters
    ----------
    path : Path or str
        File to write.
    text : str
        Content, written as UTF-8; what UTF-8 cannot hold becomes ``?``.

    Raises
    ------
    OSError
        As `save_bytes` does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_text(Path(folder, "page.html"), "<p>hello</p>")
    ...     Path(folder, "page.html").read_text()
    '<p>hello</p>'
    """
    save_bytes(path, [text.encode(errors="replace")])  # file names need not be text


def save_json(path: Path | str, document: Any) -> None:
    """Replace a file by a JSON document in one step, as `save_bytes` does.

    Parameters
    ----------
    path : Path or str
        File to write.
    document : JSON data
        Mappings, lists, strings, finite numbers, booleans and None.

    Raises
    ------
    ValueError
        If the document holds NaN, an infinity or something JSON has no form for.
    OSError
        As `save_bytes` does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_json(Path(folder, "a.json"), {"density": 0.25})
    ...     load_json(Path(folder, "a.json"))
    {'density': 0.25}
    """
    save_text(path, format_json(document))


@contextlib.contextmanager
def staged(directory: Path | str, *, last: str) -> Iterator[Path]:
    """Let several files of one directory appear together, or none of them.

    Yields an empty directory beside them. When the block ends well its files are flushed to the
    disk and moved, one of them last: a directory that was new is complete once that one is there.
    When it fails, nothing has changed.

    Parameters
    ----------
    directory : Path or str
        Made if it is not there. Files of other names stay.
    last : str
        Name of the file to move last.

    Raises
    ------
    OSError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with staged(Path(folder, "model"), last="config.json") as stage:
    ...         for name in ("config.json", "weights.bin"):
    ...             _ = Path(stage, name).write_text(name)
    ...     sorted(path.name for path in Path(folder, "model").iterdir())
    ['config.json', 'weights.bin']
    """
    target = Path(directory)
    fresh = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    stage = target / f".gossamer-{secrets.token_hex(8)}.tmp"
    try:
        stage.mkdir()
        yield stage
        written = sorted(stage.iterdir(), key=lambda path: (path.name == last, path.name))
        for path in [*written, stage]:
            _flush(path)
        for path in written:
            path.replace(target / path.name)
        stage.rmdir()
        _flush(target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):  # something has been moved already
                target.rmdir()
        raise


def load_json(path: Path | str) -> Any:
    """Read one JSON document strictly: UTF-8, no duplicate keys, no NaN.

    Parameters
    ----------
    path : Path or str
        File to read.

    Returns
    -------
    JSON data

    Raises
    ------
    FormatError
        If the file is damaged or is not JSON.
    OSError
        If it cannot be read.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise FormatError(path, str(error)) from error


def parse_json(data: bytes) -> Any:
    """Parse one JSON document as strictly as `load_json`; ValueError if it is none."""
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON document, found {error}") from error


def format_json(document: Any) -> str:
    """Return a JSON document as text to read; ValueError if it is not JSON data."""
    try:
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected JSON data with finite numbers, got {error}; try None for a missing value"
        ) from error


def _replace(target: Path, chunks: Iterable[bytes | memoryview]) -> None:
    temporary = target.with_name(f".gossamer-{secrets.token_hex(8)}.tmp")
    # The directory is opened first: after the rename only its flush can still fail.
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(file, view) :]
                os.fsync(file)
            finally:
                os.close(file)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key that occurs twice")
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"the number {name}")
