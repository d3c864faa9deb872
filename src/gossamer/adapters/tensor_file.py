"""The safetensors container: read strictly, written in one step, a tensor at a time.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every
tensor, and text by name) and the bytes of the tensors, without gaps. The public format, with
nothing added; `gossamer.adapters.safetensors` says what gossamer puts in it.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.files import parse_json, save_bytes
from gossamer.kernels.memory import empty_streamed

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
METADATA = "__metadata__"
MAX_HEADER = 100_000_000  # bytes, as the format has it
MAX_DIMS = 64
_MAX = 2**63 - 1


class Weight(Protocol):
    """A tensor, a packed weight or any other that knows its dense form."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def to_dense(self) -> Tensor: ...


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: its type, shape and first byte behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file that is open for reading; a context manager.

    The whole header is checked when the file is opened, so that each tensor lies inside the file,
    apart from the others, and nothing lies between them. Memory is asked for only for tensors that
    the file holds in full.

    Parameters
    ----------
    path : Path or str

    Attributes
    ----------
    metadata : dict of str to str
    tensors : dict of str to TensorInfo

    Raises
    ------
    FormatError
        If the file is not a safetensors file, or is damaged.
    OSError
        If it cannot be read; names path and cause.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        # A pipe must not be waited for, so opening does not block.
        self._file = self._reading(os.open, self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = self._reading(os.fstat, self._file)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(self.path, "expected a file, found a directory or a device")
            self._open(status.st_size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._reading(os.close, self._file)

    def read(self, name: str) -> Tensor:
        """Return a copy of a tensor.

        Raises
        ------
        FormatError
            If there is none of that name, or it is a bool tensor of other bytes than 0 and 1.
        OSError
            If it cannot be read.
        """
        if name not in self.tensors:
            raise self.error(name, "expected it in the file, found none")
        info = self.tensors[name]
        tensor = empty_streamed(info.shape, info.dtype, torch.device("cpu"))
        room = as_bytes(tensor)
        self._fill(room, self._data + info.begin)
        if info.dtype == torch.bool and info.size and int(tensor.view(torch.uint8).max()) > 1:
            raise self.error(name, "expected bools of 0 or 1, found another byte")
        return tensor

    def error(self, name: str, problem: str) -> FormatError:
        """Return the error that says what is wrong with a tensor."""
        return FormatError(self.path, f"tensor {shorten(name)}: {problem}")

    def _open(self, size: int) -> None:
        if size < 8:
            raise FormatError(
                self.path, f"expected a safetensors file of at least 8 bytes, found {size}"
            )
        length = int.from_bytes(self._bytes_at(0, 8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FormatError(
                self.path,
                f"expected a header of 2 to {min(MAX_HEADER, size - 8)} bytes, found {length}",
            )
        self._data = 8 + length
        header = self._json(self._bytes_at(8, length))
        metadata = header.pop(METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise FormatError(self.path, f"expected {METADATA} to be texts by name, found another")
        self.metadata: dict[str, str] = metadata
        self.tensors = {name: self._info(name, header[name]) for name in header}
        end = 0
        places = sorted(self.tensors.items(), key=lambda item: (item[1].begin, item[1].size))
        for name, info in places:
            if info.begin != end:
                raise self.error(
                    name, f"expected data_offsets from {end}, where data ends, found {info.begin}"
                )
            end += info.size
        if end != size - self._data:
            raise FormatError(
                self.path, f"expected {end} bytes of tensors, found {size - self._data}"
            )

    def _json(self, text: bytes) -> dict[str, Any]:
        try:
            header = parse_json(text)
        except ValueError as error:
            raise FormatError(self.path, f"header: {error}") from error
        if not isinstance(header, dict) or text[:1] != b"{":
            raise FormatError(self.path, "expected a header that opens with '{', found another")
        return header

    def _info(self, name: str, entry: Any) -> TensorInfo:
        keys = {"dtype", "shape", "data_offsets"}
        if not isinstance(entry, dict) or entry.keys() != keys:
            raise self.error(name, f"expected {sorted(keys)}, found {shorten(entry)}")
        tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(tag, str) or tag not in DTYPES:
            raise self.error(
                name, f"expected dtype to be one of {', '.join(DTYPES)}, found {shorten(tag)}"
            )
        if not are_sizes(shape) or math.prod(max(1, size) for size in shape) > _MAX // 8:
            raise self.error(
                name,
                f"expected shape to be at most {MAX_DIMS} sizes of less than 2**63 bytes in all, "
                f"found {shorten(shape)}",
            )
        if not are_sizes(offsets) or len(offsets) != 2:
            raise self.error(
                name, f"expected data_offsets to be two sizes, found {shorten(offsets)}"
            )
        info = TensorInfo(DTYPES[tag], tuple(shape), offsets[0])
        if offsets[1] - offsets[0] != info.size:
            raise self.error(
                name, f"expected {info.size} bytes for {tag} {shape}, found data_offsets {offsets}"
            )
        return info

    def _bytes_at(self, offset: int, size: int) -> bytes:
        room = bytearray(size)
        self._fill(memoryview(room), offset)
        return bytes(room)

    def _fill(self, room: memoryview, offset: int) -> None:
        while room:
            count = self._reading(os.preadv, self._file, [room], offset)
            if not count:
                raise FormatError(self.path, f"expected more than {offset} bytes, found the end")
            room, offset = room[count:], offset + count

    def _reading(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            cause = error.strerror or str(error)
            raise OSError(error.errno, f"could not read {self.path}: {cause}") from error


def write_tensors(
    path: Path | str, tensors: Mapping[str, Weight], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file in one step; each weight is made dense when its turn comes.

    Parameters
    ----------
    path : Path or str
    tensors : mapping of str to Tensor or PackedWeight
        On any device; the widest types come first in the file, so that all are aligned.
    metadata : mapping of str to str

    Raises
    ------
    TypeError
        If a name or text is no str, or a dtype has no form in safetensors.
    ValueError
        If a name is taken by the format, or the header is longer than it allows.
    OSError
        If the file cannot be written; the previous one is intact.
    """
    for text in (*metadata, *metadata.values(), *tensors):
        if not isinstance(text, str):
            raise TypeError(f"expected names and metadata to be str, got {text!r}")
    if METADATA in tensors:
        raise ValueError(f"expected names of tensors, got {METADATA!r}; try another name")
    for name, tensor in tensors.items():
        if tensor.dtype not in TAGS:
            raise TypeError(
                f"{name}: expected a dtype that safetensors holds, got {tensor.dtype}; "
                "try float32 or bfloat16"
            )
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = tensors[name].dtype, list(tensors[name].shape)
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": TAGS[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"expected a header of at most {MAX_HEADER} bytes, got {len(text)}; "
            "try fewer tensors or less metadata"
        )
    save_bytes(path, _content(text, (tensors[name] for name in names)))


def shorten(found: Any) -> str:
    """Return the repr of what was found in a file, where it may be long or deep."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    return short.repr(found)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a tensor, or of a copy of it on CPU."""
    flat = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def are_sizes(found: Any) -> bool:
    """Whether what a file says is a list of sizes."""
    return (
        isinstance(found, list)
        and len(found) <= MAX_DIMS
        and all(type(size) is int and 0 <= size <= _MAX for size in found)
    )


def _content(header: bytes, tensors: Iterator[Weight]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        yield as_bytes(tensor.to_dense())
