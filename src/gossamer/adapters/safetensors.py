"""Weights in safetensors files: dense with zeros, which loads anywhere, or packed.

A packed weight NAME is three tensors in the file, which any safetensors reader shows:
NAME.values [nnz] F32 or BF16, NAME.columns [nnz] U16 (I32 where the matrix has more than 65536
columns) and NAME.offsets [M + 1] I64. Metadata ``gossamer.packed`` is JSON: the version of this
layout, the shape and pattern of each weight, and the CRC-32 of each tensor's name, type, shape and
bytes. Metadata ``gossamer.crc32`` is the CRC-32 of all other metadata. NaN, infinities and the
sign of zeros that are entries are kept bit by bit.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.adapters.dense_copy import dense_copy
from gossamer.adapters.tensor_file import (
    TensorFile,
    are_sizes,
    as_bytes,
    shorten,
    write_tensors,
)
from gossamer.errors import FormatError
from gossamer.files import parse_json
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.packed_checks import PATTERNS, packed_problem
from gossamer.kernels.support import Support
from gossamer.patterns import WeightPattern

VERSION = 1
PACKED, CHECKSUM = "gossamer.packed", "gossamer.crc32"
PARTS = ("values", "columns", "offsets")
_OWN = "gossamer."
_PATTERNS = {pattern.__name__: pattern for pattern in PATTERNS}


def save_dense(
    weights: nn.Module | Mapping[str, Tensor | PackedWeight],
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights with their zeros to a safetensors file that any library loads.

    Parameters
    ----------
    weights : Module, or mapping of str to Tensor or PackedWeight
        A module's sparse and packed layers are written as the dense layers they stand for, under
        their names. Tensors that share memory are written in full each.
    path : Path or str
        Replaced in one step.
    metadata : mapping of str to str, optional
        Text to keep in the file. ``format: pt``, which transformers asks for, is always there.

    Raises
    ------
    TypeError, ValueError
        If something is no tensor, or of a type or name that safetensors does not hold.
    OSError
        If the file cannot be written; the previous one is intact.

    Examples
    --------
    >>> import tempfile
    >>> from gossamer.kernels import pack
    >>> packed = pack(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_dense({"fc.weight": packed}, Path(folder, "model.safetensors"))
    ...     with TensorFile(Path(folder, "model.safetensors")) as file:
    ...         file.read("fc.weight").tolist()
    [[0.0, 2.0], [3.0, 0.0]]
    """
    if isinstance(weights, nn.Module):
        weights = dense_copy(weights).state_dict()
    for name, weight in weights.items():
        if not isinstance(weight, Tensor | PackedWeight):
            raise TypeError(
                f"{name}: expected a tensor or a PackedWeight, got {type(weight).__name__}; "
                "try its to_dense()"
            )
    write_tensors(path, weights, {"format": "pt", **(metadata or {})})


def save_packed(
    weights: Mapping[str, PackedWeight | Tensor],
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write packed weights, and tensors beside them, to a safetensors file.

    Parameters
    ----------
    weights : mapping of str to PackedWeight or Tensor
        Tensors (biases, norms, ...) are written as they are.
    path : Path or str
        Replaced in one step.
    metadata : mapping of str to str, optional
        Text to keep in the file; `read_metadata` returns it.

    Raises
    ------
    TypeError, ValueError
        If something is neither, a packed weight contradicts itself, two names clash, or metadata
        is no text or takes a name that begins with ``gossamer.``.
    OSError
        If the file cannot be written; the previous one is intact.

    Examples
    --------
    >>> import tempfile
    >>> from gossamer.kernels import pack
    >>> packed = pack(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_packed({"fc.weight": packed}, Path(folder, "packed.safetensors"))
    ...     load_packed(Path(folder, "packed.safetensors"))
    {'fc.weight': PackedWeight(pattern=Unstructured())}
    """
    if taken := [key for key in metadata or {} if str(key).startswith(_OWN)]:
        raise ValueError(f"metadata: expected no name of {_OWN}*, got {taken[0]!r}")
    tensors: dict[str, Tensor] = {}
    records: dict[str, Any] = {}
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"expected names to be str, got {name!r}")
        if isinstance(weight, PackedWeight):
            parts = _split(name, weight)
            pattern = {"name": type(weight.pattern).__name__, **vars(weight.pattern)}
            records[name] = {"shape": list(weight.shape), "pattern": pattern}
        elif isinstance(weight, Tensor) and weight.layout == torch.strided:
            parts = {name: weight.detach().cpu()}
        else:
            found = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(
                f"{name}: expected a PackedWeight or a dense tensor, got {found}; try pack(...)"
            )
        if clash := [part for part in parts if part in tensors]:
            raise ValueError(f"expected names apart from each other, got {clash[0]!r} twice")
        tensors |= parts
    checksums = {name: _checksum(name, tensor) for name, tensor in tensors.items()}
    packed = {"version": VERSION, "weights": records, "crc32": checksums}
    texts = {"format": "pt", **(metadata or {}), PACKED: json.dumps(packed)}
    write_tensors(path, tensors, texts | {CHECKSUM: _text_checksum(texts)})


def load_packed(path: Path | str) -> dict[str, PackedWeight | Tensor]:
    """Read a file that `save_packed` wrote; nothing is unpacked to dense.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    dict of str to PackedWeight or Tensor
        On CPU; values, support and pattern are those that were saved, bit by bit.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or of a later version.
    OSError
        If it cannot be read.
    """
    with TensorFile(path) as file:
        record = _record(file)
        weights: dict[str, PackedWeight | Tensor] = {}
        for name in record["weights"]:
            weights[name] = _packed(file, name, record)
        parts = {f"{name}.{part}" for name in record["weights"] for part in PARTS}
        for name in file.tensors:
            if name in parts:
                continue
            if name in weights:
                raise file.error(name, "expected either a packed weight or a tensor, found both")
            weights[name] = _checked(file, name, record)
    return weights


def read_metadata(path: Path | str) -> dict[str, str]:
    """Return the text that a safetensors file keeps beside its tensors, gossamer's own apart.

    Raises
    ------
    FormatError
        If the file is no safetensors file.
    OSError
        If it cannot be read.
    """
    with TensorFile(path) as file:
        return {key: text for key, text in file.metadata.items() if not key.startswith(_OWN)}


def _split(name: str, weight: PackedWeight) -> dict[str, Tensor]:
    """Return what the file holds of a weight; ValueError if it contradicts itself."""
    weight = weight.to("cpu")
    if problem := packed_problem(weight):
        raise ValueError(f"{name}: {problem}")
    columns, offsets = weight.support.columns, weight.support.offsets
    columns = columns.view(torch.uint16) if columns.dtype == torch.int16 else columns
    parts = (weight.values.detach(), columns, offsets)
    return {f"{name}.{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)}


def _record(file: TensorFile) -> dict[str, Any]:
    """Return what the metadata says of the packed weights, checked for its form."""
    texts = dict(file.metadata)
    if PACKED not in texts:
        raise FormatError(
            file.path,
            f"expected metadata {PACKED!r}, which save_packed writes, found none; "
            "try safetensors.torch.load_file",
        )
    try:
        record = parse_json(texts[PACKED].encode(errors="replace"))
    except ValueError as error:
        raise FormatError(file.path, f"metadata {PACKED!r}: {error}") from error
    version = record.get("version") if isinstance(record, dict) else None
    if type(version) is not int or version != VERSION:
        raise FormatError(
            file.path,
            f"expected version {VERSION} of packed weights, found {shorten(version)}; "
            "a newer gossamer may be able to read it",
        )
    found, computed = texts.pop(CHECKSUM, None), _text_checksum(texts)
    if found != computed:
        raise FormatError(
            file.path, f"expected metadata of CRC-32 {shorten(found)}, found {computed!r}: damaged"
        )
    if record.keys() != {"version", "weights", "crc32"} or not all(
        isinstance(record[key], dict) for key in ("weights", "crc32")
    ):
        raise FormatError(file.path, f"metadata {PACKED!r}: expected objects weights and crc32")
    if differing := sorted(record["crc32"].keys() ^ file.tensors.keys()):
        raise file.error(differing[0], "expected it in file and metadata, found it in one")
    return record


def _packed(file: TensorFile, name: str, record: dict[str, Any]) -> PackedWeight:
    entry = record["weights"][name]
    if not isinstance(entry, dict) or entry.keys() != {"shape", "pattern"}:
        raise file.error(name, f"expected its shape and pattern, found {shorten(entry)}")
    shape, pattern = entry["shape"], _pattern(file, name, entry["pattern"])
    if not are_sizes(shape) or len(shape) != 2:
        raise file.error(name, f"expected shape [rows, columns], found {shorten(shape)}")
    values, columns, offsets = (_checked(file, f"{name}.{part}", record) for part in PARTS)
    if columns.dtype == torch.int16:
        raise file.error(f"{name}.columns", "expected uint16 or int32, found int16")
    columns = columns.view(torch.int16) if columns.dtype == torch.uint16 else columns
    weight = PackedWeight(values, Support(offsets, columns, (shape[0], shape[1])), pattern)
    if problem := packed_problem(weight):
        raise file.error(name, problem)
    return weight


def _pattern(file: TensorFile, name: str, entry: Any) -> WeightPattern:
    fields = dict(entry) if isinstance(entry, dict) else {}
    kind = fields.pop("name", None)
    try:
        if not isinstance(kind, str) or any(type(value) is not int for value in fields.values()):
            raise TypeError("expected a name and integers")
        return _PATTERNS[kind](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise file.error(
            name, f"expected a pattern of {', '.join(_PATTERNS)}, found {shorten(entry)}"
        ) from error


def _checked(file: TensorFile, name: str, record: dict[str, Any]) -> Tensor:
    tensor = file.read(name)
    if record["crc32"][name] != (found := _checksum(name, tensor)):
        raise file.error(
            name, f"expected CRC-32 {shorten(record['crc32'][name])}, found {found}: damaged"
        )
    return tensor


def _checksum(name: str, tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's name, type, shape and bytes."""
    head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
    return zlib.crc32(as_bytes(tensor), zlib.crc32(head.encode()))


def _text_checksum(texts: Mapping[str, str]) -> str:
    """Return the CRC-32 of metadata, whatever its order in the file."""
    return f"{zlib.crc32(json.dumps(texts, sort_keys=True).encode()):08x}"
