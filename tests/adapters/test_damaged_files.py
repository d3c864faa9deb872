"""Every reader refuses every damaged file at once, and asks for no memory of claimed sizes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gossamer.adapters import tensor_file
from gossamer.adapters.compressed_tensors import load_bitmask
from gossamer.adapters.safetensors import load_packed, read_metadata, save_packed
from gossamer.adapters.tensor_file import METADATA, TensorFile
from gossamer.errors import FormatError
from gossamer.kernels import pack
from gossamer.patterns import NM

HERE = Path(__file__).parent / "files"


def load_all(path):
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


READERS = {
    "tensors": load_all,
    "packed": load_packed,
    "bitmask": lambda path: load_bitmask(path.parent),
}


def seed(reader: str, folder: Path) -> Path:
    """Write a whole small file of the kind that a reader reads."""
    path = folder / "model.safetensors"
    weight = torch.tensor([[0.0, 1.5, 0.0, -2.0], [3.0, 0.0, 0.0, 0.0], [0.0] * 4])
    if reader == "tensors":
        save_file({"a": weight, "b": weight.bool(), "c": torch.arange(3)}, path, {"format": "pt"})
    elif reader == "packed":
        save_packed({"fc": pack(weight, NM(2, 4)), "bias": torch.arange(3.0)}, path)
    else:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(HERE / "sparse-bitmask-0.14.0.1" / name, folder / name)
    return path


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture(autouse=True)
def modest(monkeypatch):
    """No reader asks for memory that no file of these tests could fill, or keeps a file open."""
    real = tensor_file.empty_streamed

    def empty_streamed(shape, dtype, device):
        size = dtype.itemsize
        for dim in shape:
            size *= dim
        assert size < 10_000, f"asked for {size} bytes"
        return real(shape, dtype, device)

    monkeypatch.setattr(tensor_file, "empty_streamed", empty_streamed)
    before = set(Path("/proc/self/fd").iterdir())
    yield
    open_now = set(Path("/proc/self/fd").iterdir())
    assert open_now <= before  # what earlier tests left open may close meanwhile


@pytest.fixture(params=READERS)
def reader(request):
    return request.param


def refused(reader: str, path: Path, data: bytes) -> FormatError:
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        READERS[reader](path)
    assert caught.value.path == path
    assert len(str(caught.value)) < 1000 + len(str(path))
    return caught.value


def test_the_whole_files_load(reader, tmp_path):
    assert READERS[reader](seed(reader, tmp_path))


def test_truncations(reader, tmp_path):
    path = seed(reader, tmp_path)
    data = path.read_bytes()
    assert len(data) < 4096
    for length in range(0, len(data), 4 if reader == "bitmask" else 1):
        refused(reader, path, data[:length])


@pytest.mark.parametrize(
    "length", [0, 1, 7, 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8]
)
def test_lengths_of_the_header(reader, tmp_path, length):
    path = seed(reader, tmp_path)
    error = refused(reader, path, length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "header" in error.problem


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"null",
        lambda text: b'"a"',
        lambda text: b" " + text,
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text + b"\0",
        lambda text: text + b"x",
        lambda text: text + text,
        lambda text: text.rstrip()[:-1],
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.replace(b"[", b"[NaN, ", 1),
        lambda text: text.replace(b"[", b"[1e999, ", 1),
        lambda text: text.replace(b'"dtype"', b'"dtype\xff"', 1),
        lambda text: text.replace(b'"dtype"', b'"dtype":"F32","dtype"', 1),
        lambda text: b"{" + b'"a":[' * 100_000,
        lambda text: b'{"a":' + b"9" * 100_000 + b"}",
        lambda text: b'{"a":{"dtype":"U8","shape":[' + b"1," * 9999 + b'1],"data_offsets":[0,1]}}',
        lambda text: b'{"' + b"a" * 100_000 + b'":3}',
    ],
)
def test_headers_that_are_none(reader, tmp_path, change):
    path = seed(reader, tmp_path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    refused(reader, path, join(change(whole[8 : 8 + length]), whole[8 + length :]))


def duplicated(header):
    first = next(name for name in header if name != METADATA)
    text = json.dumps(header)
    return (text[:-1] + f", {json.dumps(first)}: {json.dumps(header[first])}}}").encode()


@pytest.mark.parametrize(
    "change",
    [
        duplicated,
        lambda header: {**header, METADATA: None},
        lambda header: {**header, METADATA: []},
        lambda header: {**header, METADATA: {"format": 1}},
        lambda header: {**header, METADATA: {"format": {"a": "b"}}},
        lambda header: {**header, "more": {}},
    ],
)
def test_headers_of_another_form(reader, tmp_path, change):
    path = seed(reader, tmp_path)
    header, data = split(path.read_bytes())
    refused(reader, path, join(change(header), data))


ENTRIES = {
    "null": lambda entry: None,
    "list": lambda entry: [entry],
    "missing key": lambda entry: {key: entry[key] for key in ("dtype", "shape")},
    "further key": lambda entry: {**entry, "stride": [1]},
    "dtype unknown": lambda entry: {**entry, "dtype": "F31"},
    "dtype list": lambda entry: {**entry, "dtype": ["F32"]},
    "dtype lower case": lambda entry: {**entry, "dtype": entry["dtype"].lower()},
    "dtype of another width": lambda entry: {
        **entry,
        "dtype": "F16" if entry["dtype"] in ("F32", "I64", "U8", "BOOL") else "F64",
    },
    "shape null": lambda entry: {**entry, "shape": None},
    "shape of text": lambda entry: {**entry, "shape": ["3"]},
    "shape negative": lambda entry: {**entry, "shape": [-1, *entry["shape"]]},
    "shape two negatives": lambda entry: {**entry, "shape": [-1, -1, *entry["shape"]]},
    "shape fraction": lambda entry: {**entry, "shape": [1.0, *entry["shape"]]},
    "shape bool": lambda entry: {**entry, "shape": [True, *entry["shape"]]},
    "shape longer": lambda entry: {**entry, "shape": [2, *entry["shape"]]},
    "shape wraps to the same": lambda entry: {**entry, "shape": [2**64 + 1, *entry["shape"]]},
    "shape wraps to zero": lambda entry: {**entry, "shape": [2**32, 2**32, *entry["shape"]]},
    "shape wraps behind zero": lambda entry: {**entry, "shape": [0, 2**62, 2**62]},
    "shape of 10000 digits": lambda entry: {**entry, "shape": [10**4000]},
    "shape of 65 dims": lambda entry: {**entry, "shape": [1] * 65},
    "offsets null": lambda entry: {**entry, "data_offsets": None},
    "offsets one": lambda entry: {**entry, "data_offsets": entry["data_offsets"][:1]},
    "offsets three": lambda entry: {**entry, "data_offsets": [*entry["data_offsets"], 0]},
    "offsets negative": lambda entry: {**entry, "data_offsets": [-8, 8]},
    "offsets falling": lambda entry: {**entry, "data_offsets": entry["data_offsets"][::-1]},
    "offsets fraction": lambda entry: {
        **entry, "data_offsets": [float(offset) for offset in entry["data_offsets"]]
    },
    "offsets shifted": lambda entry: {
        **entry, "data_offsets": [offset + 1 for offset in entry["data_offsets"]]
    },
    "offsets beyond": lambda entry: {
        **entry, "data_offsets": [offset + 2**40 for offset in entry["data_offsets"]]
    },
    "a terabyte": lambda entry: {**entry, "shape": [2**40], "data_offsets": [0, 2**42]},
}  # fmt: skip


@pytest.mark.parametrize("change", ENTRIES.values(), ids=ENTRIES)
def test_entries(reader, tmp_path, change):
    path = seed(reader, tmp_path)
    header, data = split(path.read_bytes())
    for name in header.keys() - {METADATA}:
        if header[name]["data_offsets"][0] < header[name]["data_offsets"][1]:
            error = refused(reader, path, join({**header, name: change(header[name])}, data))
            assert "tensor " in error.problem


def test_overlaps_holes_and_ends(reader, tmp_path):
    path = seed(reader, tmp_path)
    header, data = split(path.read_bytes())
    names = header.keys() - {METADATA}
    for name in names:  # nobody's data
        refused(reader, path, join({key: header[key] for key in header if key != name}, data))
    refused(reader, path, join(header, data + b"\0"))
    refused(reader, path, join(header, data[:-1]))
    refused(reader, path, join(header, b""))
    twice = {**header, "twin": header[next(iter(names))]}
    refused(reader, path, join(twice, data))


@pytest.mark.parametrize(
    "content",
    [b"\x80\x04\x95 a pickle", b"PK\x03\x04 a zip archive" * 9, b"GGUF" * 99, os.urandom(999)],
)
def test_files_of_other_kinds(reader, tmp_path, content):
    refused(reader, seed(reader, tmp_path), content)


def test_a_pipe_is_not_waited_for(reader, tmp_path):
    path = seed(reader, tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match="expected a file"):
        READERS[reader](path)


def test_a_directory_and_nothing(tmp_path):
    for read in (load_all, load_packed, read_metadata):
        with pytest.raises(FormatError, match="expected a file"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"could not read .*none\.safetensors: No such"):
            read(tmp_path / "none.safetensors")


def test_any_flipped_bit_of_a_packed_file(tmp_path):
    path = seed("packed", tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << (at * 5 + 3) % 8
        refused("packed", path, bytes(flipped))


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(
        left[name].to_dense().equal(right[name].to_dense()) for name in left
    )


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None
)
@given(st.data())
def test_any_mutation_loads_or_is_refused(tmp_path, data):
    reader = data.draw(st.sampled_from(list(READERS)))
    path = seed(reader, tmp_path)
    whole = READERS[reader](path)
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = st.sampled_from([b"", b"0", b"9", b'"', b"}", b"[", b"-", b"\xff", b"\r\n", b"\0"])
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(piece)
        text = text or bytearray(b" ")
    path.write_bytes(text)
    try:
        found = READERS[reader](path)
    except FormatError:
        return
    assert reader != "packed" or same(found, whole)
