"""Dense files load in the safetensors library; packed files give back every bit."""

import errno
import itertools
import json
import os
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.adapters import safetensors as module
from gossamer.adapters.safetensors import load_packed, read_metadata, save_dense, save_packed
from gossamer.adapters.tensor_file import DTYPES, TAGS, TensorFile, write_tensors
from gossamer.errors import FormatError
from gossamer.kernels import PackedWeight, SparseWeight, pack
from gossamer.kernels.support import Support
from gossamer.layers import SparseConv2d, SparseLinear
from gossamer.patterns import NM, Block, Channel, Unstructured, WeightPattern

VERSION_1 = Path(__file__).parent / "files" / "packed-1.safetensors"
WEIGHT = torch.tensor([[0.0, 1.5, 0.0, -2.0], [3.0, 0.0, 0.0, 0.0]])


def sparse_model() -> nn.Module:
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    return nn.Sequential(
        SparseConv2d.from_dense(conv, conv.weight.abs() > 0.1),
        nn.BatchNorm2d(4),
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            SparseLinear.from_dense(linear, linear.weight > 0),
        ),
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_passes_between_the_libraries(tmp_path, dtype):
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (3, 2, 8), dtype=torch.uint8)
    tensors = {
        "a": bits.view(dtype),
        "é b": bits.view(dtype).flatten()[0].clone(),
        "none": torch.empty(0, 4, dtype=dtype),
    }
    save_dense(tensors, tmp_path / "ours", metadata={"note": "naïve"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt", "note": "naïve"})
    for found in (load_file(tmp_path / "ours"), read_all(tmp_path / "theirs")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
            assert found[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == read_metadata(tmp_path / "theirs")


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def test_dense_files_hold_the_dense_weights(tmp_path):
    tensors = {
        "packed": pack(WEIGHT, NM(2, 4), torch.bfloat16),
        "csr": WEIGHT.to_sparse(),
        "view": torch.arange(12.0).reshape(3, 4).T[1:],
        "parameter": nn.Parameter(torch.tensor([-0.0, float("nan")])),
    }
    save_dense(tensors, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["csr"], WEIGHT)
    assert torch.equal(found["packed"], WEIGHT.bfloat16())
    assert torch.equal(found["view"], tensors["view"])
    assert found["parameter"].view(torch.int32).tolist() == [-(2**31), 0x7FC00000]


def test_a_module_with_sparse_layers_loads_into_the_dense_one(tmp_path):
    model = sparse_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_dense(model, tmp_path / "a.safetensors")
    dense = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    dense.load_state_dict(load_file(tmp_path / "a.safetensors"))
    image = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(dense.eval()(image), model.eval()(image))
    assert torch.equal(dense[0].weight, model[0].to_dense().weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_are_made_dense_one_at_a_time(tmp_path):
    alive = []

    class Lazy:
        shape, dtype = (2, 2), torch.float32

        def to_dense(self):
            assert not any(reference() is not None for reference in alive)
            tensor = torch.ones(2, 2)
            alive.append(weakref.ref(tensor))
            return tensor

    write_tensors(tmp_path / "a", {str(i): Lazy() for i in range(3)}, {})
    assert len(load_file(tmp_path / "a")) == 3


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(data=st.data())
def test_packed_round_trip_is_bit_exact(tmp_path, any_packed, assert_same_packed, data):
    weights = {f"layer {i}.weight": data.draw(any_packed) for i in range(2)}
    bias = torch.tensor([-0.0, float("nan"), 1.0])
    save_packed({**weights, "bias": bias}, tmp_path / "a.safetensors", metadata={"epoch": "3"})
    found = load_packed(tmp_path / "a.safetensors")
    assert found.keys() == {*weights, "bias"}
    for name, weight in weights.items():
        assert_same_packed(found[name], weight)
    assert found["bias"].view(torch.int32).equal(bias.view(torch.int32))
    assert read_metadata(tmp_path / "a.safetensors") == {"format": "pt", "epoch": "3"}
    assert len(load_file(tmp_path / "a.safetensors")) == 7  # theirs reads it, in parts


@pytest.mark.parametrize("width", [65_536, 65_537])
def test_wide_matrices(tmp_path, assert_same_packed, width):
    weight = torch.zeros(3, width)
    weight[0, [0, 32_768, width - 1]] = torch.tensor([1.0, 2.0, 3.0])
    packed = pack(weight)
    save_packed({"a": packed}, tmp_path / "a")
    assert_same_packed(load_packed(tmp_path / "a")["a"], packed)
    assert load_file(tmp_path / "a")["a.columns"].dtype == (
        torch.uint16 if width == 65_536 else torch.int32
    )


def test_nothing_of_the_dense_size_is_made(tmp_path):
    huge = 2**31 - 1  # a dense row would take 8 GiB
    support = Support(torch.tensor([0, 1]), torch.tensor([huge - 1]).int(), (1, huge))
    save_packed({"a": PackedWeight(torch.ones(1), support, Unstructured())}, tmp_path / "a")
    assert load_packed(tmp_path / "a")["a"].shape == (1, huge)


def test_loaded_weights_outlive_the_file(tmp_path):
    save_packed({"a": pack(WEIGHT)}, tmp_path / "a")
    found = load_packed(tmp_path / "a")["a"]
    os.truncate(tmp_path / "a", 0)
    assert torch.equal(found.to_dense(), WEIGHT)


def test_version_1_loads_for_ever():
    found = load_packed(VERSION_1)
    assert found["fc.weight"].pattern == NM(2, 4)
    assert torch.equal(found["fc.weight"].to_dense(), WEIGHT.bfloat16())
    assert found["fc.blocks"].pattern == Block(1, 2)
    assert found["fc.blocks"].values.tolist() == [0.0, 1.5, 0.0, -2.0, 3.0, 0.0]
    assert found["fc.bias"].tolist() == [0.5, -1.0]
    assert read_metadata(VERSION_1) == {"format": "pt", "note": "version 1"}


def test_a_plain_file_is_not_packed(tmp_path):
    save_dense({"a": WEIGHT}, tmp_path / "a")
    with pytest.raises(FormatError, match=r"which save_packed writes.*try safetensors"):
        load_packed(tmp_path / "a")


def forge(path: Path, *, parts=None, entry=None, record=None, texts=None, drop=()) -> None:
    """Write a packed file that is wrong in the ways named, and right in its checksums."""
    packed = pack(WEIGHT, NM(2, 4))
    tensors = {
        "fc.values": packed.values,
        "fc.columns": packed.support.columns.view(torch.uint16),
        "fc.offsets": packed.support.offsets,
        "bias": torch.ones(2),
    }
    tensors = {k: v for k, v in (tensors | (parts or {})).items() if k not in drop}
    default = {"shape": [2, 4], "pattern": {"name": "NM", "n": 2, "m": 4}}
    weights = {"fc": default | entry if isinstance(entry, dict) else entry or default}
    crc32 = {name: module._checksum(name, tensor) for name, tensor in tensors.items()}
    whole = {"version": 1, "weights": weights, "crc32": crc32} | (record or {})
    metadata = {module.PACKED: whole if isinstance(whole, str) else json.dumps(whole)}
    metadata |= texts or {}
    metadata = {module.CHECKSUM: module._text_checksum(metadata)} | metadata
    write_tensors(path, tensors, metadata)


def test_the_forger_can_write_a_right_file(tmp_path):
    forge(tmp_path / "a")
    assert torch.equal(load_packed(tmp_path / "a")["fc"].to_dense(), WEIGHT)


def ints(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


U16 = torch.uint16


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": {"fc.offsets": ints(1, 2, 3)}}, "'fc': offsets: .* rise from 0 to 3"),
        ({"parts": {"fc.offsets": ints(0, 4, 3)}}, "fall in row 1"),
        ({"parts": {"fc.offsets": ints(0, -1, 3)}}, "fall in row 0"),
        ({"parts": {"fc.offsets": ints(0, -(2**63), 3)}}, "fall in row 0"),
        ({"parts": {"fc.offsets": ints(0, 2**62, 3)}}, "fall in row 1"),
        ({"parts": {"fc.offsets": ints(0, 2, 4)}}, "found 0 to 4"),
        ({"parts": {"fc.offsets": ints(0, 2, 2)}}, "found 0 to 2"),
        ({"parts": {"fc.offsets": ints(0, 2)}}, r"offsets: expected \[3\], found \[2\]"),
        ({"parts": {"fc.offsets": ints(0, 2, 3, 3)}}, r"offsets: expected \[3\], found \[4\]"),
        ({"parts": {"fc.offsets": ints(0, 2, 3)[None]}}, r"found \[1, 3\]"),
        ({"parts": {"fc.offsets": ints(0, 2, 3, dtype=torch.int32)}}, "expected .*int64"),
        ({"parts": {"fc.columns": ints(1, 4, 0, dtype=U16)}}, "found 4 after 1 in row 0"),
        ({"parts": {"fc.columns": ints(1, 65535, 0, dtype=U16)}}, r"0\.\.3, .*found 65535"),
        ({"parts": {"fc.columns": ints(1, 1, 0, dtype=U16)}}, "found 1 after 1"),
        ({"parts": {"fc.columns": ints(3, 1, 0, dtype=U16)}}, "found 1 after 3"),
        ({"parts": {"fc.columns": ints(1, 3, dtype=U16)}}, r"values: expected \[2\], found \[3\]"),
        ({"parts": {"fc.columns": ints(1, 3, 0, dtype=torch.int32)}}, "expected .*int16"),
        ({"parts": {"fc.columns": ints(1, 3, 0, dtype=torch.int16)}}, "uint16 or int32"),
        ({"parts": {"fc.columns": ints(1, 3, 0)}}, "expected .*int16"),
        ({"parts": {"fc.columns": ints(1, dtype=U16)[0]}}, r"columns: expected \[1\], found \[\]"),
        ({"parts": {"fc.values": torch.ones(3).half()}}, "float32 or bfloat16, found .*float16"),
        ({"parts": {"fc.values": torch.ones(3).int()}}, "float32 or bfloat16"),
        ({"parts": {"fc.values": torch.ones(4)}}, r"values: expected \[3\], found \[4\]"),
        ({"parts": {"fc.values": torch.ones(3, 1)}}, r"found \[3, 1\]"),
        ({"parts": {"fc": torch.ones(1)}}, "tensor 'fc': expected either .*found both"),
        ({"drop": ["fc.values"]}, "tensor 'fc.values': expected it in the file"),
        ({"drop": ["fc.columns"]}, "'fc.columns'"),
        ({"drop": ["fc.offsets"]}, "'fc.offsets'"),
        ({"entry": {"shape": [3, 4]}}, r"offsets: expected \[4\]"),
        ({"entry": {"shape": [2, 3]}}, "expected 0..2"),
        ({"entry": {"shape": [2, 5]}}, r"expected a shape that NM\(n=2, m=4\) divides"),
        ({"entry": {"shape": [2, 65540]}}, "expected .*int32"),
        ({"entry": {"shape": [2, 0]}}, "found 1"),
        ({"entry": {"shape": [-1, 4]}}, "'fc': expected shape"),
        ({"entry": {"shape": [2, 4, 1]}}, "expected shape"),
        ({"entry": {"shape": [2, True]}}, "expected shape"),
        ({"entry": {"shape": [2.0, 4]}}, "expected shape"),
        ({"entry": {"shape": [2**31, 4]}}, "sizes of 0 to 2147483647"),
        ({"entry": {"shape": "24"}}, "expected shape"),
        ({"entry": {"pattern": None}}, "'fc': expected a pattern of Unstructured, NM"),
        ({"entry": {"pattern": {"name": "Random"}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": ["NM"]}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 2}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 3, "m": 2}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 0, "m": 2}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 2.0, "m": 4}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 2, "m": 4, "k": 1}}}, "expected a pattern"),
        ({"entry": {"pattern": {"name": "NM", "n": 1, "m": 4}}}, r"those of NM\(n=1, m=4\)"),
        ({"entry": {"pattern": {"name": "NM", "n": 1, "m": 10**30}}}, "divides"),
        ({"entry": {"pattern": {"name": "Block", "rows": 1, "columns": 2}}}, "those of Block"),
        ({"entry": {"pattern": {"name": "Block", "rows": 1, "columns": 3}}}, "divides"),
        ({"entry": {"pattern": {"name": "Block", "rows": 0, "columns": 1}}}, "a pattern of"),
        ({"entry": {"pattern": {"name": "Channel", "dim": 0}}}, "those of Channel"),
        ({"entry": {"pattern": {"name": "Channel", "dim": 2}}}, "a pattern of a matrix"),
        ({"entry": [2, 4]}, "expected its shape and pattern"),
        ({"entry": {"more": 1}}, "expected its shape and pattern"),
        ({"record": {"version": 2}}, "expected version 1 .*found 2; a newer gossamer"),
        ({"record": {"version": True}}, "found True"),
        ({"record": {"version": "1"}}, "found '1'"),
        ({"record": {"weights": []}}, "expected objects"),
        ({"record": {"crc32": {}}}, "found it in one"),
        ({"record": {"more": {}}}, "expected objects"),
        ({"texts": {module.PACKED: "[]"}}, "expected version 1"),
        ({"texts": {module.PACKED: "{"}}, "expected one JSON document"),
        ({"texts": {module.PACKED: '{"version": 1, "version": 1}'}}, "occurs twice"),
        ({"texts": {module.PACKED: "[" * 100_000}}, "expected one JSON document"),
        ({"texts": {module.CHECKSUM: "00000000"}}, "metadata of CRC-32 '00000000'"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, problem):
    forge(tmp_path / "a", **change)
    with pytest.raises(FormatError, match=problem) as caught:
        load_packed(tmp_path / "a")
    assert caught.value.path == tmp_path / "a"


class Spread(WeightPattern):
    pass


good = pack(WEIGHT)


@pytest.mark.parametrize(
    ("weights", "metadata", "error", "message"),
    [
        ({"a": [1.0]}, None, TypeError, "a: expected a PackedWeight or a dense tensor, got li"),
        ({"a": WEIGHT.to_sparse()}, None, TypeError, "got torch.sparse_coo; try pack"),
        ({1: good}, None, TypeError, "names to be str, got 1"),
        ({"a": good, "a.values": WEIGHT}, None, ValueError, "'a.values' twice"),
        ({"a": torch.ones(2).to(torch.complex64)}, None, TypeError, "a: expected a dtype"),
        ({"__metadata__": WEIGHT}, None, ValueError, "try another name"),
        ({"a": good}, {"gossamer.crc32": "0"}, ValueError, r"no name of gossamer\.\*"),
        ({"a": good}, {"epoch": 3}, TypeError, "to be str, got 3"),
        (
            {"a": replace(good, values=torch.ones(9))},
            None,
            ValueError,
            r"a: values: .* \[3\]",
        ),
        ({"a": replace(good, pattern=Spread())}, None, ValueError, "expected one of Unstructured"),
        ({"a": replace(good, pattern=Channel(0))}, None, ValueError, "those of Channel"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_changes_nothing(
    tmp_path, weights, metadata, error, message
):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error, match=message):
        save_packed(weights, tmp_path / "a", metadata=metadata)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_dense_refuses_what_is_no_tensor(tmp_path):
    for value in (3, SparseWeight.from_dense(WEIGHT)):
        with pytest.raises(TypeError, match=r"a: expected a tensor or a Packed.*(int|Spa)"):
            save_dense({"a": value}, tmp_path / "a")
    with pytest.raises(UnicodeEncodeError):
        save_dense({"\ud800": WEIGHT}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_too_long_a_header_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("gossamer.adapters.tensor_file.MAX_HEADER", 100)
    with pytest.raises(ValueError, match="header of at most 100 bytes"):
        save_dense({"a" * 99: WEIGHT}, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_call_leaves_a_whole_file(tmp_path, file_faults, code):
    path = tmp_path / "a.safetensors"
    old, new = {"a": pack(WEIGHT)}, {"a": pack(2 * WEIGHT), "b": torch.ones(3)}
    for n in itertools.count(1):
        save_packed(old, path)
        with pytest.MonkeyPatch.context() as patch:
            faults = file_faults(patch, n, OSError(code, os.strerror(code)))
            failure = None
            try:
                save_packed(new, path)
            except OSError as raised:
                failure = raised
        for descriptor in faults.leaked:
            with suppress(OSError):
                os.close(descriptor)
        if failure is None:
            break
        assert str(path) in str(failure) and os.strerror(code) in str(failure)
        assert load_packed(path).keys() == (new.keys() if faults.renamed else old.keys())
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert n > 12


@pytest.mark.parametrize("call", ["open", "fstat", "preadv", "close"])
def test_a_disk_that_fails_is_named(tmp_path, monkeypatch, call):
    save_packed({"a": good}, tmp_path / "a")
    real = getattr(os, call)
    for n in itertools.count(1):
        count = 0

        def failing(*arguments, last=n):
            nonlocal count
            count += 1
            if count == last:
                if call == "close":
                    real(*arguments)
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                load_packed(tmp_path / "a")
            except OSError as error:
                assert str(error) == f"[Errno 5] could not read {tmp_path}/a: Input/output error"
                continue
        break
    assert n == {"open": 2, "fstat": 2, "preadv": 6, "close": 2}[call]


def test_short_reads_are_continued(tmp_path, monkeypatch):
    save_packed({"a": good}, tmp_path / "a")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, rooms, at: real(file, [rooms[0][:5]], at))
    assert torch.equal(load_packed(tmp_path / "a")["a"].to_dense(), WEIGHT)


def test_a_file_cut_while_it_is_read(tmp_path):
    save_packed({"a": good}, tmp_path / "a")
    with TensorFile(tmp_path / "a") as file:
        os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size - 1)
        with pytest.raises(FormatError, match="found the end"):
            for name in file.tensors:
                file.read(name)


def test_tags_are_one_to_one():
    assert len(TAGS) == len(DTYPES)
