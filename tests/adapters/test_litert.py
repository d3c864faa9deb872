"""LiteRT's interpreter computes what torch does, from files that hold what they should."""

import importlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.adapters.litert import export_litert
from gossamer.layers import SparseConv2d

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # protobuf's types, at import
    interpreter = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="ai-edge-litert (extra peers) is not installed"
    )
schema = importlib.import_module("ai_edge_litert.schema_py_generated")


class Branches(nn.Module):
    """Every operation that a file has words for, and every kind of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),  # SAME
            nn.Conv2d(3, 8, 3, 2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 16, (3, 5), 2, padding=(1, 2), groups=8),  # explicit, 2 a channel
        )
        self.wide = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16, bias=False)  # SAME
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.narrow = nn.Conv2d(16, 16, 1)  # VALID
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))  # of 2 outputs a channel
        y = self.norm(self.wide(x))
        y = F.relu6(y + self.narrow(F.relu(y)))
        y = F.pad(y, (1, 0, 2, 0))
        y += y
        return self.head(self.drop(y.mean((2, 3))))


def randomised(model: nn.Module) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model.eval()


def run(path, image: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """Return the file's output, in torch's order."""
    session = interpreter.Interpreter(str(path), num_threads=threads)
    session.allocate_tensors()
    session.set_tensor(
        session.get_input_details()[0]["index"], image.permute(0, 2, 3, 1).contiguous().numpy()
    )
    session.invoke()
    output = torch.from_numpy(session.get_tensor(session.get_output_details()[0]["index"]))
    return output.permute(0, 3, 1, 2) if output.ndim == 4 else output


def operators(path) -> list[str]:
    graph = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = [names[code.builtinCode] for code in graph.operatorCodes]
    return [codes[call.opcodeIndex] for call in graph.subgraphs[0].operators]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_interpreter_agrees(threads, tmp_path):
    torch.manual_seed(0)
    model, image, path = randomised(Branches()), torch.randn(2, 3, 33, 48), tmp_path / "a.tflite"
    image = F.pad(image, (0, 0, 0, 1))
    export_litert(model, image, path)
    with torch.no_grad():
        expected = model.double()(image.double())
    torch.testing.assert_close(run(path, image, threads).double(), expected, rtol=1e-5, atol=1e-5)


def test_norms_clamps_and_same_padding_cost_no_operator(tmp_path):
    path = tmp_path / "a.tflite"
    export_litert(randomised(Branches()), torch.randn(1, 3, 32, 48), path)
    assert operators(path) == [
        "CONV_2D",
        *("PAD", "DEPTHWISE_CONV_2D"),
        "DEPTHWISE_CONV_2D",
        "RELU",  # its input has another reader
        *("CONV_2D", "ADD", "PAD", "ADD", "MEAN", "FULLY_CONNECTED"),
    ]


@pytest.mark.parametrize("weights", ["dense", "sparse"])
def test_sparse_layers_become_dense_and_may_be_stored_sparse(weights, tmp_path):
    torch.manual_seed(1)
    conv = nn.Conv2d(24, 32, 1)
    sparse = SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.2)
    full = nn.Conv2d(32, 8, 1)
    model = nn.Sequential(sparse, nn.ReLU(), full, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    image, path = torch.randn(3, 24, 9, 7), tmp_path / "a.tflite"
    export_litert(model, image, path, weights=weights)
    with torch.no_grad():
        expected = model(image)
    torch.testing.assert_close(run(path, image), expected, rtol=1e-5, atol=1e-5)
    rows = schema.ModelT.InitFromPackedBuf(path.read_bytes()).subgraphs[0].tensors
    kept = [tensor.sparsity for tensor in rows if tensor.sparsity is not None]
    assert operators(path).count("DENSIFY") == len(kept) == (weights == "sparse")
    if kept:
        weight = sparse.to_dense().weight.flatten(1)
        ends, columns = kept[0].dimMetadata[-1].arraySegments, kept[0].dimMetadata[-1].arrayIndices
        assert ends.values.tolist() == [0, *weight.count_nonzero(1).cumsum(0).tolist()]
        assert columns.values.tolist() == weight.nonzero()[:, 1].tolist()


def test_what_is_stored_is_aligned(tmp_path):
    path = tmp_path / "a.tflite"
    export_litert(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), torch.zeros(1, 3, 7, 7), path)
    content = path.read_bytes()
    buffers = schema.ModelT.InitFromPackedBuf(content).buffers[1:]
    places = [content.index(bytes(buffer.data)) for buffer in buffers if buffer.data.any()]
    assert len(places) == 2 and all(place % 16 == 0 for place in places)


class Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.ones(1, 4, 6, 6))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.function(self, image)


def changed_through_a_view(self, image):
    means = image.mean((2, 3), keepdim=True)
    means.flatten(1).relu_()
    return means + means


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU()), "silu"),
        (nn.Sequential(nn.BatchNorm2d(4)), "batch_norm"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "conv2d.default of 2 groups"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), "conv2d.padding"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Hardtanh()), "hardtanh"),
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), "flatten"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "adaptive_avg_pool2d"),
        (nn.Sequential(nn.Linear(6, 2)), "linear"),
        (nn.Sequential(nn.ReflectionPad2d(1)), "pad"),
        (nn.Sequential(nn.ConstantPad2d(1, 2.0)), "pad"),
        (nn.Sequential(nn.ZeroPad2d(-1)), r"pad.default by \[-1, -1, -1, -1\]"),
        (Called(lambda self, x: x + self.shift), "add"),
        (Called(lambda self, x: x + 1.0), "add"),
        (Called(lambda self, x: torch.add(x, x, alpha=2)), "add"),
        (Called(lambda self, x: x.mean()), "mean"),
        (Called(lambda self, x: x.mean(1)), "mean"),
        (Called(lambda self, x: F.conv2d(x, x)), "computed weights"),
        (Called(changed_through_a_view), "relu_"),
    ],
)
def test_operations_without_a_word_in_the_file_are_refused_by_name(model, operation, tmp_path):
    with pytest.raises(ValueError, match=rf"expected convolutions .*, got .*{operation}"):
        export_litert(model.eval(), torch.randn(1, 4, 6, 6), tmp_path / "a.tflite")
    assert not any(tmp_path.iterdir())


def test_bad_input_and_missing_packages(tmp_path, monkeypatch):
    model, path = nn.Sequential(nn.Conv2d(3, 4, 1)), tmp_path / "a.tflite"
    image = torch.zeros(1, 3, 4, 4)
    for example in (image[0], image.double(), "image"):
        with pytest.raises(TypeError, match=r"expected example to be float32 images .*, got"):
            export_litert(model, example, path)
    with pytest.raises(ValueError, match="expected weights to be dense or sparse, got 'csr'"):
        export_litert(model, image, path, weights="csr")
    monkeypatch.setattr("gossamer.adapters.tflite_file.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs ai_edge_litert: pip install 'gossamer\[peers\]'"):
        export_litert(model, image, path)
    assert not path.exists()


def test_the_model_stays_as_it_was(tmp_path):
    model = randomised(Branches()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_litert(model, torch.randn(1, 3, 32, 32), tmp_path / "a.tflite")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
