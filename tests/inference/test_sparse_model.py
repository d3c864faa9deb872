"""Compiled networks against the masked dense networks they stand for, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import inference
from gossamer.inference.fused import DepthwiseConv2d
from gossamer.inference.graph import fuse, trace
from gossamer.inference.segment import Segment
from gossamer.kernels import sparse_gemv, spmm
from gossamer.kernels.program import Program
from gossamer.layers import PackedConv2d, PackedLinear, packed_conv, packed_linear
from gossamer.testing import random_mask


class Block(nn.Module):
    """Expand, filter, project; functional activations, one of them in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, 4 * inputs, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(4 * inputs)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        self.filter = nn.Conv2d(4 * inputs, 4 * inputs, 3, stride, groups=4 * inputs, bias=False)
        self.filter_norm = nn.BatchNorm2d(4 * inputs)
        self.drop = nn.Dropout(0.5)
        self.project = nn.Conv2d(4 * inputs, outputs, 1)
        self.project_norm = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand_norm(self.expand(x)))
        y = torch.relu_(self.filter_norm(self.filter(self.pad(y))))
        y = self.project_norm(self.project(self.drop(y)))
        return x + y if self.residual else y


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, groups=4),
        nn.Conv2d(32, 48, 1, stride=2),
        nn.Hardtanh(-0.5, 0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )
    with torch.no_grad():
        for name, part in model.named_parameters():
            if part.ndim > 1 and not name.startswith("0."):
                part.mul_(random_mask(tuple(part.shape), density=0.2, seed=part.numel()))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def images(batch: int = 1, height: int = 20, width: int = 20) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def check_like(compiled: nn.Module, model: nn.Module, x: Tensor) -> None:
    exact = copy.deepcopy(model).double()(x.double()).detach()
    assert float(exact.abs().max()) > 0.01
    torch.testing.assert_close(compiled(x).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["measured", "sparse", "dense"])
def test_outputs_are_those_of_the_masked_dense_network(kernel):
    model = network()
    compiled = inference.compile(model, images(), kernel=kernel, repeats=1)
    for x in (images(), images(4), images(2, 33, 47), images(0)):
        if len(x):
            check_like(compiled, model, x)
        assert not compiled(x).requires_grad and compiled(x).shape == (len(x), 10)


def test_layouts_of_the_input_do_not_matter():
    compiled = inference.compile(network(), images(), kernel="sparse")
    x = images(2)
    mixed = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(mixed), compiled(x))


def test_everything_between_the_layers_is_folded():
    compiled = inference.compile(network(), images(), kernel="sparse")
    nodes = compiled.graph.graph.nodes
    names = [type(m).__name__ for m in map(_module_of(compiled), nodes) if m is not None]
    tail = ["PackedConv2d", "FusedConv2d", "PackedConv2d"]  # 3x3, grouped, strided 1x1
    tail += ["AdaptiveAvgPool2d", "Flatten", "PackedLinear", "PackedLinear"]
    assert names == ["FusedConv2d", "Segment", *tail]
    assert {node.op for node in nodes} == {"placeholder", "call_module", "output"}
    clamps = [module.clamp for module in compiled.modules() if hasattr(module, "clamp")]
    assert clamps.count((0.0, 6.0)) == 3 and clamps.count((-0.5, 0.5)) == 1


def _module_of(compiled):
    def find(node):
        return compiled.graph.get_submodule(node.target) if node.op == "call_module" else None

    return find


def test_a_segment_reuses_its_buffers_and_equals_its_layers():
    (segment,) = (
        module
        for module in inference.compile(network(), images(), kernel="sparse").modules()
        if isinstance(module, Segment)
    )
    assert [name for name, _ in segment.steps].count("+") == 1 and len(segment.steps) == 7
    for size in (6, 9, 6, 17, 5, 30, 9, 6):
        x = torch.randn(2, 8, size, size)
        assert torch.equal(segment(x), segment._by_layers(x))
    assert len(segment._plans) == 4
    assert segment(torch.empty(0, 8, 6, 6)).shape == (0, 16, 3, 3)


def test_copies_of_a_compiled_model_run():
    compiled = inference.compile(network(), images(), kernel="sparse")
    expected = compiled(images())
    assert torch.equal(copy.deepcopy(compiled)(images()), expected)


def test_loaded_weights_are_the_ones_that_run():
    first, second = network(), network()
    with torch.no_grad():
        for part in second.parameters():
            part *= 1.5
    x = images()
    one, other = (inference.compile(model, x, kernel="sparse") for model in (first, second))
    expected = other(x)
    assert not torch.equal(one(x), expected)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), expected)


class Broadcasting(nn.Module):
    """A sum of equal shapes on the example, of different ones elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        return self.wide(y + self.narrow(F.pad(y, (1, 1, 1, 1))[..., :3, :3]))


def test_a_sum_that_broadcasts_elsewhere_still_does():
    torch.manual_seed(0)
    model = Broadcasting().eval()
    compiled = inference.compile(model, torch.ones(1, 4, 1, 1), threshold=1.0, kernel="sparse")
    for size in (1, 4):
        x = torch.randn(2, 4, size, size)
        torch.testing.assert_close(compiled(x), model(x).detach())


def test_the_report_says_what_runs():
    model = network()
    compiled = inference.compile(model, images(2), kernel="sparse")
    layers = {layer.name: layer for layer in compiled.report()}
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert list(layers) == convs
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight
        assert layer.weight in (tuple(weight.shape), tuple(weight[:, 0].shape))
        assert layer.density == int(weight.count_nonzero()) / weight.numel()
        assert layer.sparse_ms is None and layer.dense_ms is None
    kernels = {name: layer.kernel for name, layer in layers.items()}
    assert kernels.pop("0") == "conv2d" and kernels.pop("7") == "conv2d"  # dense; grouped
    assert {kernels.pop(name) for name in ("3.filter", "4.filter")} == {"depthwise"}
    assert {kernels.pop(name) for name in ("12", "15")} == {"gemv"}
    assert set(kernels.values()) == {"spmm"}
    expand = model.get_submodule("4.expand").weight
    assert layers["4.expand"].multiplications == int(expand.count_nonzero()) * 2 * 10 * 10
    assert layers["0"].multiplications == 8 * 27 * 2 * 10 * 10
    assert 0.2 < compiled.density() < 0.3


def test_measured_kernels_are_the_fastest_ones(monkeypatch):
    """With a clock that every kernel moves by a known time, the choice follows it."""
    cost = {PackedConv2d: 3.0, PackedLinear: 3.0, DepthwiseConv2d: 5.0}
    now = [0.0]
    real = nn.Module.__call__

    def call(module, *args):
        now[0] += cost.get(type(module), 4.0)
        return real(module, *args)

    monkeypatch.setattr(inference.sparse_model, "alone", lambda module: module)
    monkeypatch.setattr(nn.Module, "__call__", call)
    monkeypatch.setattr(inference.sparse_model.time, "perf_counter", lambda: now[0])
    layers = inference.compile(network(), images(), repeats=2).report()
    for layer in layers:
        assert layer.dense_ms == 4000.0
        assert layer.sparse_ms == (3000.0 if layer.kernel in ("spmm", "gemv") else None)
        assert layer.kernel != "depthwise"
    assert {layer.kernel for layer in layers} == {"spmm", "gemv", "conv2d"}


def test_the_threshold_is_a_density():
    sparser = inference.compile(network(), images(), kernel="sparse", threshold=0.1)
    assert {layer.kernel for layer in sparser.report()} == {"conv2d", "depthwise", "linear"}


def test_zero_weights_are_not_multiplied(monkeypatch):
    """Every sparse product gets the entries of its layer's weight and no more."""
    model = network()
    compiled = inference.compile(model, images(), kernel="sparse")
    entries = []

    def watch(real):
        return lambda weight, *args, **options: (
            entries.append(len(weight.values)) or real(weight, *args, **options)
        )

    class Watched(Program):
        def spmm(self, weight, *args):
            entries.append(len(weight.values))
            super().spmm(weight, *args)

    monkeypatch.setattr(packed_conv, "spmm", watch(spmm))
    monkeypatch.setattr(packed_linear, "sparse_gemv", watch(sparse_gemv))
    monkeypatch.setattr(inference.segment, "Program", Watched)
    compiled(images())
    chosen = [layer for layer in compiled.report() if layer.kernel in ("spmm", "gemv")]
    nonzero = [int(model.get_submodule(layer.name).weight.count_nonzero()) for layer in chosen]
    assert len(chosen) == 8 and entries == nonzero


def test_channels_that_no_weight_reads_may_hold_anything():
    first, second = nn.Conv2d(3, 200, 1), nn.Conv2d(200, 16, 1)
    with torch.no_grad():
        second.weight *= random_mask((16, 200, 1, 1), density=0.2, seed=0)
        second.weight[:, 128:] = 0.0
        first.weight *= random_mask((200, 3, 1, 1), density=0.4, seed=0)
    model = nn.Sequential(first, second).eval()
    expected = inference.compile(model, images(), kernel="sparse")(images())
    with torch.no_grad():
        first.bias[128:] = 1e38
        first.bias[150:] = -1e38
    compiled = inference.compile(model, images(), kernel="sparse")
    for name, buffer in compiled.named_buffers():
        if name.endswith("fused_0.bias"):
            buffer[128:] = torch.nan
    assert torch.equal(compiled(images()), expected)
    with torch.no_grad():
        first.bias[128:] = torch.nan
    assert bool(model(images()).isnan().all())


def test_the_model_is_left_as_it_was_and_shares_nothing():
    model = network()
    before = copy.deepcopy(model.state_dict())
    forward, hooks = type(model).forward, len(model._forward_hooks)
    compiled = inference.compile(model, images(), kernel="sparse")
    x = images()
    expected = compiled(x)
    state = model.state_dict()
    assert all(torch.equal(state[name], part) for name, part in before.items())
    assert not model.training and repr(model) == repr(network())
    assert type(model).forward is forward and len(model._forward_hooks) == hooks
    storages = {part.untyped_storage().data_ptr() for part in model.state_dict().values()}
    tensors = [*compiled.parameters(), *compiled.buffers()]
    assert not storages & {part.untyped_storage().data_ptr() for part in tensors}
    with torch.no_grad():
        for part in model.parameters():
            part.fill_(torch.nan)
    assert torch.equal(compiled(x), expected)


def test_calls_leave_the_input_and_earlier_outputs_alone():
    compiled = inference.compile(network(), images(), kernel="sparse")
    x = images(2)
    first = compiled(x)
    kept, same = first.clone(), x.clone()
    compiled(2 * x)
    assert torch.equal(first, kept) and torch.equal(x, same)


class Shared(nn.Module):
    """One convolution called twice, clamped once; a functional clamp that must stay in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.clamp(min=0.1)
        return self.conv(z).relu() + y.mean((2, 3), keepdim=True)


def test_what_has_other_readers_is_not_folded_away():
    torch.manual_seed(0)
    model = Shared().eval()
    compiled = inference.compile(model, torch.randn(1, 4, 5, 5), threshold=1.0, kernel="sparse")
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(compiled(x), model(x).detach())
    assert [layer.name for layer in compiled.report()] == ["conv", "conv#2"]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(0.0, 6.0), (1.0, 9.0)], (1.0, 6.0)),
        ([(0.0, 1.0), (2.0, 3.0)], (2.0, 2.0)),
        ([(2.0, 3.0), (0.0, 1.0)], (1.0, 1.0)),
    ],
)
def test_two_clamps_are_one(bounds, expected):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 1), *(nn.Hardtanh(*pair) for pair in bounds)).eval()
    traced = trace(model)
    (layer,) = fuse(traced).values()
    assert layer.clamp == expected
    x = 9 * torch.randn(1, 2, 6, 6)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(
    "after",
    [
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        nn.GELU(),
        nn.PReLU(),
        nn.Upsample(scale_factor=2),
        nn.BatchNorm2d(4, affine=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_cannot_be_folded_still_runs(after):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), after)
    model.eval()
    compiled = inference.compile(model, images(), threshold=1.0, kernel="sparse")
    torch.testing.assert_close(compiled(images()), model(images()).detach())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 1, padding=2),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(3, 3, (3, 5), (2, 1), groups=3),
        nn.Conv2d(3, 3, 3, dilation=2, padding=1, groups=3),
        nn.Conv2d(3, 4, (1, 3), (2, 3), (0, 2), (1, 2)),
        nn.ConvTranspose2d(3, 4, 3),
    ],
    ids=str,
)
def test_every_convolution_runs(conv):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), conv, nn.Conv2d(conv.out_channels, 2, 1))
    compiled = inference.compile(model.eval(), images(), threshold=1.0, kernel="sparse")
    x = images(2, 13, 17)
    torch.testing.assert_close(compiled(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_single_layer_and_a_plain_perceptron_run():
    torch.manual_seed(0)
    for model in (nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4))):
        compiled = inference.compile(model.eval(), torch.ones(2, 8), threshold=1, kernel="sparse")
        for rows in (1, 16, 40):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(compiled(x), model(x).detach())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


CONV = nn.Conv2d(3, 4, 1).eval()
BROKEN = copy.deepcopy(CONV)
BROKEN.bias.data[1] = torch.nan
BAD_INPUT = [
    ((nn.Conv2d(3, 4, 1), images()), {}, ValueError, "'the model' in training mode; try .*eval"),
    ((nn.Sequential(CONV, nn.Dropout()).train(), images()), {}, ValueError, "in training mode"),
    ((BROKEN, images()), {}, ValueError, "NaN or infinity in '0'"),
    (
        (nn.Sequential(CONV, Branching()).eval(), images()),
        {},
        ValueError,
        r"trace, got TraceError at test_sparse_model.py:\d+ `if x.sum\(\) > 0:`.*try",
    ),
    ((nn.Sequential(nn.ReLU()).eval(), images()), {}, ValueError, "found none in Sequential"),
    ((copy.deepcopy(CONV).double(), images()), {}, TypeError, "float32 weights, got .*float64"),
    ((CONV, images().double()), {}, TypeError, "example to be a float32 tensor, got .*float64"),
    ((CONV, None), {}, TypeError, "got NoneType"),
    ((copy.deepcopy(CONV).to("meta"), images()), {}, ValueError, "'weight' on meta"),
    ((CONV, images()), {"kernel": "fast"}, ValueError, "measured, sparse, dense, got 'fast'"),
    ((CONV, images()), {"threshold": 1.5}, ValueError, r"in \[0, 1\], a density, got 1.5"),
    ((CONV, images()), {"repeats": 0}, ValueError, "repeats of at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        inference.compile(*arguments, **options)
    CONV.eval()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (images().double(), TypeError, "float32 tensor, got torch.float64"),
        (images()[0], ValueError, r"4 dimensions on the CPU, got \[3, 20, 20\]"),
        (torch.ones(1, 4, 8, 8), ValueError, r"\[batch, 3, height, width\], got \[1, 4, 8, 8\]"),
    ],
)
def test_bad_images_are_named(x, error, message):
    compiled = inference.compile(CONV, images(), threshold=1.0, kernel="sparse")
    with pytest.raises(error, match=message):
        compiled(x)


def test_a_compiled_model_does_not_train():
    compiled = inference.compile(CONV, images())
    with pytest.raises(ValueError, match="train the model, then compile it"):
        compiled.train()
    assert not any(module.training for module in compiled.eval().modules())
