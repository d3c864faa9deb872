"""Model directories in compressed-tensors' former format ``sparse-bitmask``.

compressed-tensors wrote the format up to 0.14 and removed it in 0.15; the layout here was read
from its releases 0.4.0 to 0.14.0.1. A compressed tensor STEM is four tensors in safetensors:

- STEM.shape [dims] I64;
- STEM.bitmask [..., ceil(C / 8)] U8: a bit for each place of a row, the lowest first;
- STEM.compressed [nnz]: the values of the places whose bit is set, row after row;
- STEM.row_offsets [...] I64: how many values the rows before hold, counted along the first
  dimension only.

STEM is the name of the module since 0.9, whose tensor is STEM.weight, and the whole name of the
tensor before. config.json holds ``sparsity_config`` inside ``quantization_config``, which 0.4 to
0.6 called ``compression_config`` and left without a version.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.adapters.tensor_file import TensorFile, shorten, write_tensors
from gossamer.errors import FormatError
from gossamer.files import load_json, save_json
from gossamer.kernels.memory import empty_streamed
from gossamer.kernels.packed import DTYPES, PackedWeight
from gossamer.kernels.packed_checks import CHUNK, entries, packed_problem
from gossamer.kernels.support import MAX_SIZE, Support
from gossamer.patterns import Unstructured

LAYOUT = "0.14.0"  # the compressed-tensors whose layout is written
FORMAT = "sparse-bitmask"
PARTS = ("compressed", "bitmask", "row_offsets", "shape")
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SECTIONS = ("quantization_config", "compression_config")
_FURTHER = ("config_groups", "kv_cache_scheme", "transform_config")  # what else changes weights
_SUFFIX = ".weight"
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_bitmask(weights: Mapping[str, PackedWeight | Tensor], directory: Path | str) -> None:
    """Write packed weights, and tensors beside them, as compressed-tensors 0.9 to 0.14 reads them.

    Parameters
    ----------
    weights : mapping of str to PackedWeight or Tensor
        Packed weights are compressed, all their entries kept; their names end in ``.weight``.
        Tensors are written as they are.
    directory : Path or str
        Made if missing. Gets ``model.safetensors`` and, after it, ``config.json``: one that is
        there keeps its other fields. Each file is replaced in one step.

    Raises
    ------
    TypeError, ValueError
        If something is neither a packed weight nor a dense tensor, or a name has no place in the
        format.
    FormatError
        If the directory holds a damaged ``config.json``.
    OSError
        If a file cannot be written; the previous one is intact.

    Examples
    --------
    >>> import tempfile
    >>> from gossamer.kernels import pack
    >>> packed = pack(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_bitmask({"fc.weight": packed, "fc.bias": torch.zeros(2)}, folder)
    ...     load_bitmask(folder)["fc.weight"].to_dense().tolist()
    [[0.0, 2.0], [3.0, 0.0]]
    """
    directory = Path(directory)
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    stored = total = 0
    for name, weight in weights.items():
        if isinstance(weight, PackedWeight):
            stem = name.removesuffix(_SUFFIX)
            if stem == name or not stem:
                raise ValueError(
                    f"expected names of packed weights like 'fc{_SUFFIX}', got {name!r}; "
                    "try to_dense() for it"
                )
            modules.append(stem)
            parts = {f"{stem}.{part}": tensor for part, tensor in _compressed(name, weight).items()}
        elif isinstance(weight, Tensor) and weight.layout == torch.strided:
            if name.endswith(tuple(f".{part}" for part in PARTS)):
                raise ValueError(f"expected names that end in none of {PARTS}, got {name!r}")
            parts = {name: weight}
        else:
            found = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(
                f"{name}: expected a PackedWeight or a dense tensor, got {found}; try pack(...)"
            )
        tensors |= parts
        stored += len(weight.values) if isinstance(weight, PackedWeight) else weight.numel()
        total += math.prod(weight.shape)
    config = load_json(directory / CONFIG) if (directory / CONFIG).exists() else {}
    if not isinstance(config, dict):
        raise FormatError(directory / CONFIG, f"expected an object, found {shorten(config)}")
    sparsity = {
        "format": FORMAT,
        "targets": modules,
        "ignore": [],
        "global_sparsity": 1 - stored / max(1, total),
        "sparsity_structure": "unstructured",
        "registry_requires_subclass": False,
    }
    section = {
        "version": LAYOUT,
        "quant_method": "compressed-tensors",
        "sparsity_config": sparsity,
        "transform_config": {},
    }
    directory.mkdir(exist_ok=True)
    write_tensors(directory / SINGLE, tensors, {"format": "pt"})
    save_json(directory / CONFIG, config | {_SECTIONS[0]: section})


def load_bitmask(directory: Path | str) -> dict[str, PackedWeight | Tensor]:
    """Read a model directory in format ``sparse-bitmask``, of any release that wrote it.

    Parameters
    ----------
    directory : Path or str
        Holds ``config.json`` and ``model.safetensors``, or several files and their index.

    Returns
    -------
    dict of str to PackedWeight or Tensor
        On CPU. Compressed matrices of float32 or bfloat16 are packed; what else is compressed
        (convolutions, vectors, other types) comes dense, everything else as it is.

    Raises
    ------
    FormatError
        If a file is damaged or contradicts another, or the weights are quantised besides.
    OSError
        If a file cannot be read.
    """
    directory = Path(directory)
    whole_names = _stems_are_names(directory / CONFIG)
    with ExitStack() as stack:
        files = _files(directory, stack)
        weights: dict[str, PackedWeight | Tensor] = {}
        for name, file in files.items():
            stem, _, part = name.rpartition(".")
            if part in PARTS:
                if part != PARTS[0] and f"{stem}.{PARTS[0]}" in files:
                    continue  # read with its values
                name, weight = stem if whole_names else stem + _SUFFIX, _decompressed(files, name)
            else:
                weight = file.read(name)
            if name in weights:
                raise file.error(name, "expected one tensor of this name, found two")
            weights[name] = weight
    return weights


def _compressed(name: str, weight: PackedWeight) -> dict[str, Tensor]:
    weight = weight.to("cpu")
    if problem := packed_problem(weight):
        raise ValueError(f"{name}: {problem}")
    rows, columns = weight.shape
    width = -(-columns // 8)
    bitmask = torch.zeros(rows * width, dtype=torch.uint8)
    for row, column in entries(weight.support):
        bit = (1 << column % 8).to(torch.uint8)
        bitmask.index_add_(0, row * width + column // 8, bit)
    return {
        "compressed": weight.values,
        "bitmask": bitmask.reshape(rows, width),
        "row_offsets": weight.support.offsets[:-1],
        "shape": torch.tensor([rows, columns]),
    }


def _stems_are_names(config: Path) -> bool:
    """Check what the configuration says; return whether it is of the time before 0.9."""
    document = load_json(config)
    sections = [document.get(key) for key in _SECTIONS] if isinstance(document, dict) else []
    section = next((found for found in sections if isinstance(found, dict)), {})
    sparsity = section.get("sparsity_config")
    found = sparsity.get("format") if isinstance(sparsity, dict) else None
    if found != FORMAT:
        raise FormatError(
            config, f"expected a sparsity_config of format {FORMAT!r}, found {shorten(found)}"
        )
    if further := [key for key in _FURTHER if section.get(key)]:
        raise FormatError(
            config,
            f"expected weights that are sparse only, found {further[0]} too; "
            "try to decompress them with compressed-tensors below 0.15",
        )
    version = section.get("version")
    if version is None:
        return True
    match = isinstance(version, str) and re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", version)
    if not match:
        raise FormatError(config, f"expected version to be like '0.9.1', found {shorten(version)}")
    return (int(match[1]), int(match[2])) < (0, 9)


def _files(directory: Path, stack: ExitStack) -> dict[str, TensorFile]:
    """Return the open file of every tensor in a directory."""
    if (directory / SINGLE).exists():
        file = stack.enter_context(TensorFile(directory / SINGLE))
        return dict.fromkeys(file.tensors, file)
    index = directory / INDEX
    document = load_json(index)
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(index, "expected weight_map to be files by tensor, found another")
    there = {path.name for path in directory.iterdir()}
    if strange := sorted(set(places.values()) - there):  # a path elsewhere is strange as well
        raise FormatError(index, f"expected files beside it, found {shorten(strange[0])}")
    shards = {
        name: stack.enter_context(TensorFile(directory / name)) for name in set(places.values())
    }
    files = {name: shards[place] for name, place in places.items()}
    for name, file in files.items():
        if name not in file.tensors:
            raise file.error(name, f"expected it here, as {INDEX} says, found none")
    if len(files) != (found := sum(len(file.tensors) for file in shards.values())):
        raise FormatError(index, f"expected to place {found} tensors, found {len(files)}")
    return files


def _decompressed(files: Mapping[str, TensorFile], name: str) -> PackedWeight | Tensor:
    """Check the four tensors of a stem against each other and put them together."""
    stem = name.rpartition(".")[0]
    for part in PARTS:
        if f"{stem}.{part}" not in files:
            raise files[name].error(name, f"expected {stem}.{part} beside it, found none")
    shape = tuple(_part(files, stem, "shape", torch.int64).tolist())
    if not shape or min(shape) < 0:
        raise files[name].error(f"{stem}.shape", f"expected sizes, found {shorten(list(shape))}")
    bitmask = _part(files, stem, "bitmask", torch.uint8, (*shape[:-1], -(-shape[-1] // 8)))
    row_offsets = _part(files, stem, "row_offsets", torch.int64, shape[:-1])
    values = _part(files, stem, "compressed")
    if bitmask.numel() and int(bitmask[..., -1].max()) >> (shape[-1] - 1) % 8 + 1:
        raise files[name].error(f"{stem}.bitmask", "expected no bit after a row's end, found one")

    packed = len(shape) == 2 and values.dtype in DTYPES and max(shape) <= MAX_SIZE
    bits = values.view(_SAME_SIZE[values.dtype.itemsize])  # not all types can be indexed
    dense = bits.new_zeros(0 if packed else shape)
    narrow = torch.int16 if shape[-1] <= 1 << 16 else torch.int32
    columns = empty_streamed((len(values) if packed else 0,), narrow, values.device)
    counts = torch.zeros(math.prod(shape[:-1]), dtype=torch.int64)
    end = 0
    for row, column in _places(bitmask):
        begin, end = end, end + len(row)
        if end > len(values):
            break
        if packed:
            columns[begin:end] = column.to(narrow)
        else:
            dense.view(-1)[row * shape[-1] + column] = bits[begin:end]
        counts[row[0] : row[-1] + 1] += torch.bincount(row - row[0])
    if end != len(values):
        raise files[name].error(
            f"{stem}.compressed", f"expected a value for each bit set, found {len(values)} values"
        )
    counts = counts.reshape(shape[:-1])
    if not torch.equal(row_offsets, counts.cumsum(0) - counts):
        raise files[name].error(
            f"{stem}.row_offsets",
            "expected how many bits the rows before set, found others",
        )
    if not packed:
        return dense.view(values.dtype)
    offsets = torch.cat([row_offsets, torch.tensor([len(values)])])
    return PackedWeight(values, Support(offsets, columns, (shape[0], shape[1])), Unstructured())


def _part(
    files: Mapping[str, TensorFile],
    stem: str,
    part: str,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Read a vector, or a tensor of `shape`, once the header promises one."""
    name = f"{stem}.{part}"
    info = files[name].tensors[name]
    fits = len(info.shape) == 1 if shape is None else info.shape == shape
    if not fits or dtype not in (None, info.dtype):
        sizes = "[n]" if shape is None else shorten(list(shape))
        raise files[name].error(
            name, f"expected {dtype or 'values'} {sizes}, found {info.dtype} {list(info.shape)}"
        )
    return files[name].read(name)


def _places(bitmask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through the bits that are set, by parts: their rows and columns, int64."""
    width = bitmask.shape[-1]
    flat = bitmask.flatten().numpy()
    for begin in range(0, len(flat), CHUNK // 8):
        bits = np.unpackbits(flat[begin : begin + CHUNK // 8], bitorder="little")
        if bits.any():
            place = torch.from_numpy(np.flatnonzero(bits)) + begin * 8
            yield place // (width * 8), place % (width * 8)
