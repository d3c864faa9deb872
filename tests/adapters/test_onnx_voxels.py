"""ONNX Runtime computes what DSVT computes, for scenes of other sizes, in standard operators."""

import warnings

import pytest
import torch
from torch import nn

from gossamer.adapters.onnx_voxels import export_voxels, voxel_inputs
from gossamer.spatial import DSVT, DSVTConfig, Stage, Voxels

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # protobuf's types, at import
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

SHAPE = (16, 16, 4)
STAGES = (Stage((6, 6, 4), blocks=2, set_size=5, pool=(1, 1, 4)), Stage((6, 6, 1), 1, 5))


def scene(count: int, seed: int) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(16 * 16 * 4, generator=generator)[:count]
    coords = torch.stack([0 * cells, cells // 256, cells // 16 % 16, cells % 16], 1)
    return Voxels(torch.randn(count, 16, generator=generator), coords, SHAPE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    model = DSVT(DSVTConfig(SHAPE, channels=16, heads=8, hidden=16, stages=STAGES)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    path = tmp_path_factory.mktemp("onnx") / "dsvt.onnx"
    export_voxels(model, scene(150, 0), path)
    return model, path


@pytest.mark.parametrize(("count", "seed"), [(150, 0), (301, 1), (40, 2)])
def test_onnx_runtime_agrees_on_any_scene(exported, count, seed):
    model, path = exported
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    voxels = scene(count, seed)
    inputs = voxel_inputs(model, voxels)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
    (found,) = session.run(None, feeds)
    with torch.no_grad():
        expected = model(voxels).features
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_there_are_no_custom_operators(exported):
    proto = onnx.load(exported[1])
    assert {entry.domain for entry in proto.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert not proto.functions
