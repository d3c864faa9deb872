"""sparse-bitmask as compressed-tensors wrote it, read and written; contradictions refused."""

import errno
import itertools
import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gossamer.adapters import compressed_tensors as module
from gossamer.adapters.compressed_tensors import load_bitmask, save_bitmask
from gossamer.errors import FormatError
from gossamer.kernels import PackedWeight, pack
from gossamer.patterns import Unstructured

FILES = Path(__file__).parent / "files"
RELEASES = ("0.8.1", "0.14.0.1")  # which wrote the directories under FILES, names in both forms
WEIGHT = torch.tensor([[0.0, 1.5, 0.0, -2.0], [3.0, 0.0, 0.0, 0.0]])
INF = float("inf")


@pytest.mark.parametrize("release", RELEASES)
def test_directories_that_compressed_tensors_wrote(release):
    found = load_bitmask(FILES / f"sparse-bitmask-{release}")
    a = torch.zeros(3, 11)
    a[0, 1], a[0, 2], a[0, 10], a[2, 7], a[2, 8] = -1.5, 2.0, 3.25, 0.5, INF
    b = torch.zeros(2, 8, dtype=torch.bfloat16)
    b[0, 1], b[0, 7], b[1, 3] = 1.0, -2.0, 7.5
    conv = [[[[1, 0, 2]], [[0, 3, 0]]], [[[0, 0, 0]], [[4, 5, 6]]]]
    assert found.keys() == {"a.weight", "a.bias", "b.weight", "conv.weight"}
    assert isinstance(found["a.weight"], PackedWeight) and found["a.weight"].values.numel() == 5
    assert isinstance(found["b.weight"], PackedWeight)
    assert torch.equal(found["a.weight"].to_dense(), a)
    assert torch.equal(found["b.weight"].to_dense(), b)
    assert torch.equal(found["conv.weight"], torch.tensor(conv).half())
    assert torch.equal(found["a.bias"], torch.tensor([1.0, 0.0, 2.0]))


def read_bitmask(tensors: dict[str, torch.Tensor], stem: str) -> torch.Tensor:
    """Decompress by the format's description, one bit after the other."""
    shape = tensors[f"{stem}.shape"].tolist()
    dense = torch.zeros(shape, dtype=tensors[f"{stem}.compressed"].dtype)
    mask = np.unpackbits(tensors[f"{stem}.bitmask"].numpy(), axis=-1, bitorder="little")
    dense[torch.from_numpy(mask[:, : shape[1]].astype(bool))] = tensors[f"{stem}.compressed"]
    return dense


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(data=st.data())
def test_round_trip_is_bit_exact(tmp_path, any_packed, assert_same_packed, data):
    weight = data.draw(any_packed)
    with pytest.MonkeyPatch.context() as patch:  # many parts, rows across their borders
        patch.setattr(module, "CHUNK", data.draw(st.sampled_from([8, 24, 64, 1 << 18])))
        save_bitmask({"fc.weight": weight, "fc.bias": torch.ones(2)}, tmp_path)
        found = load_bitmask(tmp_path)
    unstructured = PackedWeight(weight.values, weight.support, Unstructured())
    assert_same_packed(found["fc.weight"], unstructured)
    assert torch.equal(found["fc.bias"], torch.ones(2))
    theirs = load_file(tmp_path / "model.safetensors")
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[weight.dtype]
    assert torch.equal(read_bitmask(theirs, "fc").view(bits), weight.to_dense().view(bits))
    counts = weight.support.offsets.diff()
    assert torch.equal(theirs["fc.row_offsets"], counts.cumsum(0) - counts)


def test_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "tiny", "quantization_config": {"a": 1}}')
    save_bitmask({"fc.weight": pack(WEIGHT), "fc.bias": torch.ones(2)}, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((FILES / "sparse-bitmask-0.14.0.1" / "config.json").read_text())
    sparsity = theirs["quantization_config"]["sparsity_config"]
    sparsity |= {"targets": ["fc"], "global_sparsity": 0.5}
    theirs["quantization_config"]["version"] = "0.14.0"
    assert written == theirs


def test_a_new_directory_is_made_in_one_that_is_there(tmp_path):
    save_bitmask({"fc.weight": pack(WEIGHT)}, tmp_path / "new")
    assert torch.equal(load_bitmask(tmp_path / "new")["fc.weight"].to_dense(), WEIGHT)
    with pytest.raises(FileNotFoundError):
        save_bitmask({"fc.weight": pack(WEIGHT)}, tmp_path / "none" / "new")


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"fc": pack(WEIGHT)}, ValueError, "like 'fc.weight', got 'fc'"),
        ({".weight": pack(WEIGHT)}, ValueError, "like 'fc.weight'"),
        ({"fc.shape": WEIGHT}, ValueError, "end in none of"),
        ({"fc.weight": WEIGHT.to_sparse()}, TypeError, "got torch.sparse_coo"),
        ({"fc.weight": [1]}, TypeError, "got list"),
    ],
)
def test_what_has_no_place_in_the_format(tmp_path, weights, error, message):
    with pytest.raises(error, match=message):
        save_bitmask(weights, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_damaged_configuration_is_not_replaced(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(FormatError, match=r"config\.json"):
            save_bitmask({"fc.weight": pack(WEIGHT)}, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_failure_at_any_call_leaves_a_directory_that_loads(tmp_path, file_faults):
    new = {"fc.weight": pack(2 * WEIGHT), "fc.bias": torch.ones(2)}
    for n in itertools.count(1):
        old = whole(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            faults = file_faults(patch, n, OSError(errno.ENOSPC, "No space left on device"))
            failure = None
            try:
                save_bitmask(new, tmp_path)
            except OSError as raised:
                failure = raised
        for descriptor in faults.leaked:
            with suppress(OSError):
                os.close(descriptor)
        found = load_bitmask(tmp_path)
        assert found.keys() == new.keys()
        expected = 2 * WEIGHT if faults.renamed else read_bitmask(old, "fc")
        assert torch.equal(found["fc.weight"].to_dense(), expected)
        assert len(list(tmp_path.iterdir())) == 2
        if failure is None:
            break
        assert re.search(r"could not write .*(model.safetensors|config.json): No spa", str(failure))
    assert n > 20


def whole(directory: Path) -> dict[str, torch.Tensor]:
    save_bitmask({"fc.weight": pack(WEIGHT), "fc.bias": torch.ones(2)}, directory)
    return load_file(directory / "model.safetensors")


def ints(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


U8 = torch.uint8


@pytest.mark.parametrize(
    ("part", "tensor", "problem"),
    [
        ("compressed", None, "expected fc.compressed beside it"),
        ("bitmask", None, "expected fc.bitmask beside it"),
        ("row_offsets", None, "expected fc.row_offsets beside it"),
        ("shape", None, "expected fc.shape beside it"),
        ("compressed", torch.ones(2), "'fc.compressed': .*each bit set, found 2"),
        ("compressed", torch.ones(4), "each bit set, found 4"),
        ("compressed", torch.ones(0), "each bit set, found 0"),
        ("compressed", torch.ones(3, 1), r"expected values \[n\], found torch.float32 \[3, 1\]"),
        ("compressed", torch.ones(()), r"found torch.float32 \[\]"),
        ("bitmask", ints([10], [0], dtype=U8), "each bit set"),
        ("bitmask", ints([10], [3], dtype=U8), "each bit set"),
        ("bitmask", ints([10], [16], dtype=U8), "'fc.bitmask': expected no bit after a row's end"),
        ("bitmask", ints([10], [129], dtype=U8), "expected no bit after"),
        ("bitmask", ints([2], [3], dtype=U8), "'fc.row_offsets': expected how many bits"),
        ("bitmask", ints([10], [1]), r"expected torch.uint8 \[2, 1\], found torch.int64 \[2, 1\]"),
        ("bitmask", ints(10, 1, dtype=U8), r"expected torch.uint8 \[2, 1\]"),
        ("bitmask", ints([10, 0], [1, 0], dtype=U8), r"expected torch.uint8 \[2, 1\]"),
        ("row_offsets", ints(0, 3), "'fc.row_offsets': expected how many bits"),
        ("row_offsets", ints(0, -2), "expected how many bits"),
        ("row_offsets", ints(2, 0), "expected how many bits"),
        ("row_offsets", ints(0, 2, 3), r"expected torch.int64 \[2\], found torch.int64 \[3\]"),
        ("row_offsets", ints(0, 2, dtype=torch.int32), r"found torch.int32 \[2\]"),
        ("shape", ints(2, 3), "expected no bit after"),
        ("shape", ints(2, 9), r"bitmask.*\[2, 2\]"),
        ("shape", ints(3, 4), r"bitmask.*\[3, 1\]"),
        ("shape", ints(2, 2, 4), r"bitmask.*\[2, 2, 1\]"),
        ("shape", ints(8), "bitmask"),
        ("shape", ints(-2, 4), "'fc.shape': expected sizes"),
        ("shape", ints(2, -4), "expected sizes"),
        ("shape", ints(2, 2**62), "bitmask"),
        ("shape", ints(2**62, 4), "bitmask"),
        ("shape", torch.empty(0, dtype=torch.int64), "expected sizes"),
        ("shape", torch.ones(1000).long(), "bitmask"),
        ("shape", torch.tensor([2.0, 4.0]), r"expected torch.int64 \[n\]"),
        ("shape", ints([2, 4]), r"expected torch.int64 \[n\]"),
        ("weight", torch.ones(1), "'fc.weight': expected one tensor of this name"),
    ],
)
def test_contradictions_are_refused(tmp_path, part, tensor, problem):
    tensors = whole(tmp_path) | {f"fc.{part}": tensor}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(FormatError, match=problem) as caught:
        load_bitmask(tmp_path)
    assert caught.value.path == tmp_path / "model.safetensors"


@pytest.mark.parametrize("shape", [(0, 2**61), (0, 2**62), (0,), (0, 0, 5), (3, 0)])
def test_empty_tensors_of_any_size_are_small(tmp_path, shape):
    whole(tmp_path)
    tensors = {
        "fc.shape": ints(*shape),
        "fc.bitmask": torch.empty(*shape[:-1], -(-shape[-1] // 8), dtype=U8),
        "fc.compressed": torch.empty(0),
        "fc.row_offsets": torch.zeros(shape[:-1], dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert tuple(load_bitmask(tmp_path)["fc.weight"].shape) == shape


def set_in(document, *path):
    *parents, key, value = path
    for parent in parents:
        document = document.setdefault(parent, {})
    document[key] = value


Q, S = "quantization_config", "sparsity_config"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ((Q, None), "format 'sparse-bitmask', found None"),
        ((Q, "text"), "found None"),
        ((Q, S, None), "found None"),
        ((Q, S, []), "found None"),
        ((Q, S, "format", "sparse-24-bitmask"), "found 'sparse-24-bitmask'"),
        ((Q, S, "format", ["sparse-bitmask"]), "found"),
        ((Q, "config_groups", {"group_0": {}}), "sparse only, found config_groups too"),
        ((Q, "kv_cache_scheme", {"bits": 8}), "found kv_cache_scheme"),
        ((Q, "transform_config", {"a": 1}), "found transform_config"),
        ((Q, "version", 0.9), "version to be like '0.9.1', found 0.9"),
        ((Q, "version", "new"), "found 'new'"),
        ((Q, "version", "9" * 5000 + ".1"), "version"),
        ((Q, "version", ""), "found ''"),
    ],
)
def test_configurations(tmp_path, path, problem):
    whole(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    set_in(document, *path)
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=problem) as caught:
        load_bitmask(tmp_path)
    assert caught.value.path == tmp_path / "config.json"


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": 1, "a": 1}', "[" * 99_999])
def test_configurations_that_are_none(tmp_path, text):
    whole(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError):
        load_bitmask(tmp_path)


def test_before_0_7_there_was_no_version(tmp_path):
    tensors = load_file(FILES / "sparse-bitmask-0.8.1" / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    section = {"compression_config": {"sparsity_config": {"format": "sparse-bitmask"}}}
    (tmp_path / "config.json").write_text(json.dumps(section))
    assert load_bitmask(tmp_path).keys() == {"a.weight", "a.bias", "b.weight", "conv.weight"}


def sharded(directory: Path) -> dict[str, str]:
    """Spread the tensors over two files, the parts of one weight too; return their places."""
    tensors = whole(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        here = {name: tensors[name] for name in names if places[name] == place}
        save_file(here, directory / place)
    return places


def test_several_files(tmp_path):
    places = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = load_bitmask(tmp_path)
    assert torch.equal(found["fc.weight"].to_dense(), WEIGHT)
    assert torch.equal(found["fc.bias"], torch.ones(2))


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("../model-0.safetensors", "expected files beside it, found '../model-0.safetensors'"),
        ("/etc/passwd", "expected files beside it"),
        ("sub/model-0.safetensors", "expected files beside it"),
        ("./model-0.safetensors", "expected files beside it"),
        ("none.safetensors", "expected files beside it"),
        ("model-0.safetensors\0", "expected files beside it"),
        ("\ud800.safetensors", "expected files beside it"),
        ("x" * 5000, "expected files beside it"),
        ("", "expected files beside it"),
        ("..", "expected files beside it"),
        (None, "files by tensor"),
        (["model-0.safetensors"], "files by tensor"),
        ("model-1.safetensors", "expected it here, as model.safetensors.index.json says"),
        ("config.json", "header|safetensors"),
    ],
)
def test_places_of_tensors(tmp_path, place, problem):
    directory = tmp_path / "model"
    directory.mkdir()
    places = sharded(directory)
    (tmp_path / "model-0.safetensors").write_bytes((directory / "model-0.safetensors").read_bytes())
    places["fc.bias"] = place  # it is in model-0
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FormatError, match=problem):
        load_bitmask(directory)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}, "weig'])
def test_indices_that_are_none(tmp_path, text):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError):
        load_bitmask(tmp_path)


def test_an_index_that_leaves_a_tensor_out(tmp_path):
    places = sharded(tmp_path)
    del places["fc.bias"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FormatError, match="expected to place 5 tensors, found 4"):
        load_bitmask(tmp_path)


def test_a_directory_without_weights(tmp_path):
    whole(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        load_bitmask(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_bitmask(tmp_path / "none")
