"""Packed layers against the dense layers with zeros they stand for."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

from gossamer.kernels import pack
from gossamer.layers import PackedConv2d, PackedLinear, packed_conv, packed_linear
from gossamer.patterns import NM, Block
from gossamer.testing import check_product, random_mask

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
CONVS = {
    "1x1": {"kernel_size": 1},
    "1x1 strided": {"kernel_size": 1, "stride": 2},
    "1x1 padded": {"kernel_size": 1, "padding": 1, "stride": (2, 1)},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 strided": {"kernel_size": 3, "stride": 2},
    "2x3 dilated": {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 2)},
    "no bias": {"kernel_size": 3, "bias": False},
}


def pruned(make: Callable[[], Layer], density: float = 0.3) -> Layer:
    torch.manual_seed(0)
    dense = make().eval()
    with torch.no_grad():
        dense.weight *= random_mask(tuple(dense.weight.shape), density=density, seed=1)
    return dense


def linear(rows: int = 17, columns: int = 23) -> nn.Linear:
    return pruned(lambda: nn.Linear(columns, rows))


def conv(name: str = "3x3") -> nn.Conv2d:
    return pruned(lambda: nn.Conv2d(5, 7, **CONVS[name]))


PAIRS = {
    "linear": (linear, PackedLinear, (4, 23)),
    "conv": (conv, PackedConv2d, (2, 5, 6, 6)),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    make, packed, shape = PAIRS[request.param]
    dense = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return packed.from_dense(dense), dense, x


@pytest.mark.parametrize("shape", [(1, 23), (16, 23), (17, 23), (2, 3, 23), (23,), (0, 23)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_dense_layer(shape, dtype):
    dense = linear()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    output = PackedLinear.from_dense(dense)(x)
    assert output.dtype == dtype and output.shape == (*shape[:-1], 17)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output.double(), dense.double()(x.double()), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rows", "kernel"), [(1, "gemv"), (16, "gemv"), (17, "spmm"), (0, "spmm")])
def test_few_rows_go_through_the_decoding_kernel(rows, kernel, monkeypatch):
    used = []
    real = {"gemv": packed_linear.sparse_gemv, "spmm": packed_linear.spmm}

    def watch(name):
        return lambda *args, **options: used.append(name) or real[name](*args, **options)

    monkeypatch.setattr(packed_linear, "sparse_gemv", watch("gemv"))
    monkeypatch.setattr(packed_linear, "spmm", watch("spmm"))
    PackedLinear.from_dense(linear())(torch.ones(rows, 23))
    assert used == [kernel]


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strip_bytes", [1, 20_000, 1 << 20])
def test_conv_is_the_dense_layer(name, memory_format, strip_bytes, monkeypatch):
    monkeypatch.setattr(packed_conv, "STRIP_BYTES", strip_bytes)
    dense = conv(name)
    x = torch.randn(3, 5, 8, 9).to(memory_format=memory_format)
    layer = PackedConv2d.from_dense(dense)
    output, expected = layer(x), dense.double()(x.double())
    assert output.shape == expected.shape == (3, 7, *layer.output_size(8, 9))
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)


def test_1x1_meets_the_componentwise_bound_and_reads_the_image_in_place():
    dense = pruned(lambda: nn.Conv2d(150, 40, 1), 0.1)
    x = torch.randn(2, 150, 7, 7)
    weight = dense.weight.detach().flatten(1)
    layer = PackedConv2d.from_dense(dense)
    check_product(layer(x).flatten(2), weight, x.flatten(2), bias=layer.bias)


def test_padding_may_have_two_sides():
    dense = pruned(lambda: nn.Conv2d(5, 7, 3, stride=2))
    layer = PackedConv2d(
        pack(dense.weight.flatten(1)),
        dense.bias,
        kernel_size=(3, 3),
        stride=(2, 2),
        padding=(0, 1, 2, 1),
    )
    x, pad = torch.randn(2, 5, 9, 8), nn.ZeroPad2d((0, 1, 2, 1))
    torch.testing.assert_close(layer(x), dense(pad(x)).detach())
    torch.testing.assert_close(layer.to_dense()(x).detach(), layer(x))


@pytest.mark.parametrize("rows", [4, 40])
def test_clamp_is_relu6(rows):
    dense = linear()
    x = 20 * torch.randn(rows, 23)
    expected = nn.functional.relu6(PackedLinear.from_dense(dense)(x))
    assert torch.equal(PackedLinear.from_dense(dense, clamp=(0.0, 6.0))(x), expected)
    image = 20 * torch.randn(1, 5, 6, 6)
    layer = PackedConv2d.from_dense(conv(), clamp=(0.0, math.inf))
    assert torch.equal(layer(image), PackedConv2d.from_dense(conv())(image).relu())


def test_weights_that_are_zero_meet_nothing():
    """A channel that no weight reads may be anything: its products do not exist."""
    dense = pruned(lambda: nn.Conv2d(300, 20, 1))
    with torch.no_grad():
        dense.weight[:, 128:256] = 0.0  # a whole panel of columns
    x = torch.randn(1, 300, 5, 5)
    layer = PackedConv2d.from_dense(dense)
    expected = layer(x)
    x[:, 128:256] = torch.nan
    assert torch.equal(layer(x), expected)
    assert bool(dense(x).isnan().all())
    assert layer.density() == int(dense.weight.count_nonzero()) / dense.weight.numel()


def test_to_dense_and_back_is_the_identity(pair):
    layer, dense, _ = pair
    state = torch.get_rng_state()
    back = layer.to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(back) is type(dense) and repr(back) == repr(dense)
    assert all(
        torch.equal(a, b) for a, b in zip(back.parameters(), dense.parameters(), strict=True)
    )


def test_the_layer_is_a_copy_without_parameters(pair):
    layer, dense, x = pair
    before = layer(x)
    with torch.no_grad():
        dense.weight.fill_(9.0)
        dense.bias.fill_(9.0)
    assert torch.equal(layer(x), before) and not list(layer.parameters())


def _saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), _saved],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("warm", [False, True])
def test_copies_are_alike_and_alone(pair, twin, warm):
    layer, _, x = pair
    expected = layer(x) if warm else None
    other = twin(layer)
    assert other.weight.values is other.values
    assert torch.equal(other(x), layer(x) if expected is None else expected)
    other.values.fill_(torch.nan)
    assert not bool(layer.values.isnan().any())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_brings_its_entries_along(pair, assign, dtype):
    _, dense, x = pair
    layer = type(pair[0]).from_dense(dense, dtype=dtype)
    state = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.zero_()
    other = type(layer).from_dense(dense)
    assert not bool(other(x).any())
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(x), layer(x)) and other.weight.dtype == dtype
    assert other.weight.values is other.values
    assert all(torch.equal(part, state[name]) for name, part in other.state_dict().items())


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("columns", lambda t: t + 1000, "indices in 0..22"),
        ("columns", lambda t: t.flip(0), "ascending"),
        ("columns", lambda t: t.long(), "got .*torch.int64, torch.int64"),
        ("offsets", lambda t: t[:-1], r"offsets \[18\] .* got \[17\]"),
        ("offsets", lambda t: t * 2, "rise from 0"),
        ("values", lambda t: t[:-1], "as many columns as values"),
        ("values", lambda t: t.half(), "float32 or bfloat16, got torch.float16"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(key, change, message):
    layer, x = PackedLinear.from_dense(linear()), torch.randn(3, 23)
    expected, state = layer(x), dict(layer.state_dict())
    state[key] = change(state[key])
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(layer(x), expected)


def test_a_state_without_the_entries_is_refused():
    dense = linear()
    with pytest.raises(RuntimeError, match=r"Missing key.*values"):
        PackedLinear.from_dense(dense).load_state_dict(dense.state_dict())


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_another_precision_is_packed_anew(pair, convert):
    layer, dense, x = pair
    expected = layer(x)
    with pytest.raises(TypeError, match=r"packed to torch.float32, got .*; try from_dense"):
        convert(layer)
    assert torch.equal(layer(x), expected)
    half = type(layer).from_dense(dense, dtype=torch.bfloat16)
    assert half.values.dtype == torch.bfloat16
    torch.testing.assert_close(half(x), expected, rtol=0, atol=3e-2)


def test_moving_devices_keeps_weight_and_buffers_together(pair):
    layer = pair[0].to("meta")
    assert layer.weight.values is layer.values and layer.values.device.type == "meta"


def test_a_pattern_is_checked_and_stored_whole():
    dense = linear(16, 24)
    assert PackedLinear.from_dense(dense, Block(4, 1)).density() > dense.weight.ne(0).float().mean()
    with pytest.raises(ValueError, match="at most 1 of 4"):
        PackedLinear.from_dense(dense, NM(1, 4))


def _pack(rows: int, columns: int):
    return pack(torch.ones(rows, columns))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2)), "one group, got 2"),
        (lambda: PackedConv2d.from_dense(nn.Conv2d(4, 4, 3, padding="same")), "got 'same'"),
        (
            lambda: PackedConv2d.from_dense(nn.Conv2d(4, 4, 3, padding_mode="reflect")),
            "mode 'reflect'",
        ),
        (lambda: PackedConv2d(_pack(2, 10), kernel_size=(3, 3)), r"columns .* got 10"),
        (lambda: PackedConv2d(_pack(2, 10), padding=(0, -1, 0, 0)), "padding of at least 0"),
        (lambda: PackedLinear(_pack(2, 3), torch.ones(3)), r"bias of \[2\], got \[3\]"),
        (lambda: PackedLinear(_pack(2, 3), clamp=(1.0, 0.0)), r"low <= high, got \(1.0, 0.0\)"),
        (lambda: PackedLinear(_pack(2, 3))(torch.ones(1, 2)), r"input of \[..., 3\], got"),
        (lambda: PackedLinear(_pack(2, 3))(torch.tensor(1.0)), r"input of \[..., 3\], got \[\]"),
        (
            lambda: PackedConv2d(_pack(2, 3))(torch.ones(3, 4, 4)),
            r"\[batch, 3, height, width\], got \[3, 4, 4\]",
        ),
        (
            lambda: PackedConv2d(_pack(2, 9), kernel_size=(3, 3))(torch.ones(1, 1, 2, 4)),
            "at least 3 rows or columns, padding included, got 2",
        ),
        (
            lambda: PackedLinear(_pack(2, 3))(torch.ones(1, 3, requires_grad=True)),
            "requires a gradient",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_say_what_they_are():
    text = repr(PackedConv2d.from_dense(conv("3x3 strided"), clamp=(0.0, 6.0)))
    assert "5, 7, kernel_size=(3, 3), stride=(2, 2)" in text
    assert "density=" in text and "clamp=(0.0, 6.0)" in text
    assert "23, 17, density=" in repr(PackedLinear.from_dense(linear()))
