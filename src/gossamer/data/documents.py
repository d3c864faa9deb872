"""Real English prose: what ships with Python, or what the user brings."""

import platform
import random
import sys
from dataclasses import dataclass
from pathlib import Path

_LICENCE = "PSF-2.0 (part of the Python documentation)"


@dataclass(frozen=True)
class Document:
    """A text to run a model on.

    Parameters
    ----------
    text : str
        The text.
    name : str
        What it is, for reports.
    licence : str
        Its licence, "not recorded" for a text of the user's.
    """

    text: str
    name: str
    licence: str


def default_text() -> Document:
    """Return the language reference topics that ship with CPython, some 90,000 SmolLM2 tokens.

    Returns
    -------
    Document
        All of `pydoc_data.topics` in the order of their names, each paragraph once: topics that
        gather others would otherwise let a model copy them. The text is that of the running
        Python version, which the document's name gives.

    Examples
    --------
    >>> document = default_text()
    >>> len(document.text) > 250_000, document.licence
    (True, 'PSF-2.0 (part of the Python documentation)')
    """
    topics = _topics()
    return _document([topics[name] for name in sorted(topics)], "all topics")


def texts(seed: int = 0) -> tuple[Document, Document, Document]:
    """Return three different texts of similar length, for experiments on more than one document.

    Parameters
    ----------
    seed : int, default 0
        Deals the topics of `default_text` out to three disjoint documents.

    Returns
    -------
    tuple of three Document
        About 30,000 to 50,000 SmolLM2 tokens each.

    Examples
    --------
    >>> [document.name.split(", ")[1] for document in texts(seed=3)]
    ['third 1 of seed 3', 'third 2 of seed 3', 'third 3 of seed 3']
    """
    topics = _topics()
    names = sorted(topics)
    random.Random(seed).shuffle(names)
    thirds: list[list[str]] = [[], [], []]
    for name in names:
        min(thirds, key=lambda third: sum(map(len, third))).append(topics[name])
    first, second, third = (
        _document(third, f"third {number} of seed {seed}")
        for number, third in enumerate(thirds, start=1)
    )
    return first, second, third


def read(path: Path | str) -> Document:
    """Read a text of the user's.

    Parameters
    ----------
    path : Path or str
        A UTF-8 text file, or "-" for standard input.

    Returns
    -------
    Document
        The text without a byte order mark, each line ending in a plain newline.

    Raises
    ------
    ValueError
        There is no such file, or it is not text, or it is empty.

    Examples
    --------
    >>> read("no such file")
    Traceback (most recent call last):
    ValueError: cannot read the text 'no such file': No such file or directory
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the text {str(path)!r}: {error.strerror}") from error
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8 text in {name}, got byte {data[error.start]:#04x} at {error.start}"
        ) from error
    if (position := text.find("\0")) >= 0:
        raise ValueError(f"expected text in {name}, got binary data: NUL at character {position}")
    if not text.strip():
        raise ValueError(
            f"expected text in {name}, got nothing but {len(text)} characters of space"
        )
    return Document(text.replace("\r\n", "\n"), name, "not recorded")


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _document(parts: list[str], what: str) -> Document:
    name = f"pydoc_data.topics of Python {platform.python_version()}, {what}"
    paragraphs = dict.fromkeys(
        paragraph.strip("\n") for part in parts for paragraph in part.strip().split("\n\n")
    )
    return Document("\n\n".join(filter(None, paragraphs)), name, _LICENCE)
