"""ONNX Runtime computes what the sparse model computes, from weights that hold its zeros."""

import errno
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.adapters.onnx import export_onnx
from gossamer.layers import SparseConv2d, SparseLinear

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # protobuf's types, at import
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.conv = SparseConv2d.from_dense(conv, conv.weight.abs() > 0.1)
        self.drop = nn.Dropout(0.5)
        self.head = SparseLinear.from_dense(linear, linear.weight > 0)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        hidden = self.drop(torch.relu(self.conv(image))).mean((2, 3))
        return self.head(hidden * self.scale + shift)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Branches, dict, Path]:
    torch.manual_seed(0)
    model = Branches().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, (torch.randn(2, 3, 6, 6), torch.randn(8)), path)
    return model, before, path


def test_onnx_runtime_agrees(exported):
    model, _, path = exported
    image, shift = torch.randn(2, 3, 6, 6), torch.randn(8)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, (image.numpy(), shift.numpy()), strict=True))
    (found,) = session.run(None, feeds)
    expected = model.eval()(image, shift)
    model.train()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


def test_the_file_holds_the_dense_weights_bit_by_bit(exported):
    model, _, path = exported
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    stored = [torch.tensor(onnx.numpy_helper.to_array(x)) for x in proto.graph.initializer]
    for weight in (model.conv.to_dense().weight, model.head.to_dense().weight):
        assert 0.2 < (weight == 0).double().mean() < 0.9
        assert any(
            torch.equal(weight, tensor) or (tensor.ndim == 2 and torch.equal(weight.mT, tensor))
            for tensor in stored
        )


def test_the_model_stays_as_it_was(exported):
    model, before, _ = exported
    assert model.training and isinstance(model.conv, SparseConv2d)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    program = type("Program", (), {"model_proto": onnx.ModelProto()})
    program.model_proto.producer_name = "test"
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(OSError, match=r"could not write .*model\.onnx: No space left"):
        export_onnx(nn.Linear(2, 2), torch.ones(1, 2), path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [
        ("model.onnx", b"old")
    ]


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match="example to be tensors, got list"):
        export_onnx(nn.Linear(2, 2), [torch.ones(1, 2)], path)
    monkeypatch.setattr("gossamer.adapters.onnx.LIMIT", 20)
    with pytest.raises(ValueError, match="at most 20 bytes, got 24; try half precision"):
        export_onnx(nn.Linear(2, 2), torch.ones(1, 2), path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(
        "gossamer.adapters.onnx.find_spec", lambda name: None if name == "onnxscript" else 1
    )
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'gossamer\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), torch.ones(1, 2), path)
    assert not path.exists()
