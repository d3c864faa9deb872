import io
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from gossamer.data import documents


def paragraphs(text: str) -> list[str]:
    return [paragraph.strip("\n") for paragraph in text.strip().split("\n\n")]


def test_default_text_holds_every_paragraph_once_in_order() -> None:
    document = documents.default_text()
    first_seen = dict.fromkeys(
        paragraph for name in sorted(topics) for paragraph in paragraphs(topics[name])
    )
    assert paragraphs(document.text) == [paragraph for paragraph in first_seen if paragraph]
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in document.name


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_disjoint_and_of_similar_length(seed: int) -> None:
    dealt = documents.texts(seed)
    assert dealt == documents.texts(seed) != documents.texts(seed + 1)
    assert len(set(dealt)) == 3
    every = [set(paragraphs(document.text)) for document in dealt]
    wanted = {paragraph for topic in topics.values() for paragraph in paragraphs(topic)} - {""}
    assert set().union(*every) - {""} == wanted
    total = sum(len(document.text) for document in dealt)
    assert all(0.25 * total < len(document.text) < 0.42 * total for document in dealt)


def test_read_a_file(tmp_path: Path) -> None:
    path = tmp_path / "with space é.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "Grüße\r\nan alle\n漢字\x0c\n".encode())
    document = documents.read(path)
    assert document.text == "Grüße\nan alle\n漢字\x0c\n"
    assert document == documents.read(str(path))
    assert (document.name, document.licence) == (str(path), "not recorded")


def test_read_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("naïve".encode())))
    assert documents.read("-") == documents.Document("naïve", "standard input", "not recorded")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing but 0 characters of space"),
        (b" \n\t\r\n", "nothing but 5 characters of space"),
        (b"\xef\xbb\xbf", "nothing but 0 characters of space"),
        (b"text\x00text", "binary data: NUL at character 4"),
        (b"caf\xe9", "expected UTF-8 text in .* got byte 0xe9 at 3"),
        ("text".encode("utf-16"), "expected UTF-8 text in .* got byte 0xff at 0"),
        (b"\x7fELF\x02\x01\x01\x00", "binary data: NUL"),
    ],
)
def test_read_refuses_what_is_not_text(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        documents.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ValueError, match="standard input"):
        documents.read("-")


def test_read_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the text '.*/missing': No such file"):
        documents.read(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"cannot read the text .* Is a directory"):
        documents.read(tmp_path)
