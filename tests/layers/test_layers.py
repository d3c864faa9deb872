"""Sparse layers against the masked dense layers they stand for."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from gossamer.kernels import SparsePattern, SparseWeight
from gossamer.layers import SparseConv2d, SparseLinear
from gossamer.testing import random_mask

CONVS = {
    "1x1": {"kernel_size": 1},
    "1x1 strided": {"kernel_size": 1, "stride": 2},
    "1x1 padded": {"kernel_size": 1, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 strided": {"kernel_size": 3, "stride": 2},
    "2x3 dilated": {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (1, 2)},
    "no bias": {"kernel_size": 3, "bias": False},
}


def seeded(make):
    torch.manual_seed(0)
    return make()


def masked_pair(dense: nn.Linear | nn.Conv2d, sparse_class: type, density: float = 0.3):
    """A sparse layer, and the dense layer with the weights that it does not hold zeroed."""
    mask = random_mask(tuple(dense.weight.shape), density=density, seed=1)
    layer = sparse_class.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight *= mask
    return layer, dense, mask


def linear_pair(rows: int = 17, columns: int = 23):
    return masked_pair(seeded(lambda: nn.Linear(columns, rows)), SparseLinear)


def conv_pair(name: str = "3x3"):
    return masked_pair(seeded(lambda: nn.Conv2d(5, 7, **CONVS[name])), SparseConv2d)


def check_like_dense(layer, dense, mask, x: Tensor) -> None:
    """Output and every gradient equal those of the masked dense layer in float64."""
    exact, wide = copy.deepcopy(dense).double(), x.double().requires_grad_()
    x = x.detach().requires_grad_()
    output, expected = layer(x), exact(wide)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    output.backward(grad)
    expected.backward(grad.double())
    pairs = [
        (output, expected),
        (x.grad, wide.grad),
        (layer.values.grad, exact.weight.grad[mask]),
    ]
    if layer.bias is not None:
        pairs.append((layer.bias.grad, exact.bias.grad))
    for found, wanted in pairs:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 23), (49, 23), (2, 3, 23), (23,), (0, 23)])
def test_linear_is_the_masked_dense_layer(shape):
    layer, dense, mask = linear_pair()
    check_like_dense(layer, dense, mask, torch.randn(shape))


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_conv_is_the_masked_dense_layer(name, memory_format):
    layer, dense, mask = conv_pair(name)
    x = torch.randn(3, 5, 8, 9).to(memory_format=memory_format)
    check_like_dense(layer, dense, mask, x)
    assert layer(x).shape == dense(x).shape


PAIRS = {"linear": (linear_pair, (4, 23)), "conv": (conv_pair, (2, 5, 6, 6))}


@pytest.fixture(params=PAIRS)
def pair(request):
    make, shape = PAIRS[request.param]
    return *make(), torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_to_dense_and_back_is_the_identity(pair):
    layer, dense, _, _ = pair
    state = torch.get_rng_state()
    back = layer.to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(back) is type(dense) and repr(back) == repr(dense)
    assert all(
        torch.equal(a, b) for a, b in zip(back.parameters(), dense.parameters(), strict=True)
    )
    again = type(layer).from_dense(back, layer.pattern.to_mask().view_as(back.weight))
    assert torch.equal(again.values, layer.values)
    assert torch.equal(again.indices, layer.indices)


def test_values_are_copied_from_the_dense_layer(pair):
    layer, dense, _, x = pair
    before = layer(x).detach()
    with torch.no_grad():
        dense.weight.fill_(9.0)
        dense.bias.fill_(9.0)
    assert torch.equal(layer(x).detach(), before)


def test_non_zeros_are_the_default_mask():
    dense = nn.Linear(4, 3)
    with torch.no_grad():
        dense.weight[1] = 0.0
    assert SparseLinear.from_dense(dense).pattern.offsets.tolist() == [0, 4, 4, 8]


@pytest.mark.parametrize(
    "twin",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: _saved(layer),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_train_alike_and_alone(pair, twin):
    layer, _, mask, x = pair
    other = twin(layer)
    assert other.pattern.indices is other.indices
    for part in (layer, other):
        part(x).square().sum().backward()
    assert torch.equal(layer.values.grad, other.values.grad)
    before = layer.values.detach().clone()
    with torch.no_grad():
        other.values.add_(1.0)
    other.set_pattern(~mask)
    assert torch.equal(layer.values, before)
    assert torch.equal(layer.pattern.to_mask(), mask.flatten(1))


def _saved(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("assign", [False, True])
def test_state_brings_its_pattern_along(pair, assign):
    layer, dense, _, x = pair
    state = copy.deepcopy(layer.state_dict())
    expected = layer(x).detach()
    other = type(layer).from_dense(dense, torch.zeros_like(dense.weight) > 0)
    values = other.values
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(x).detach(), expected)
    assert other.pattern.indices is other.indices and (assign or other.values is values)
    other(x.requires_grad_()).sum().backward()
    other.set_pattern(torch.ones_like(dense.weight) > 0)
    assert all(torch.equal(part, state[name]) for name, part in layer.state_dict().items())


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("indices", lambda t: t + 1000, "indices in"),
        ("indices", lambda t: t.flip(0), "ascending"),
        ("indices", lambda t: t.long(), "torch.int32, got torch.int64"),
        ("offsets", lambda t: t[:-1], "18 offsets for 17 rows, got 17"),
        ("values", lambda t: t[:-1], "values, one an entry"),
        ("values", lambda t: t.half(), "float32 values, got torch.float16"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(key, change, message):
    layer, _, _ = linear_pair()
    x = torch.randn(3, 23)
    expected, state = layer(x).detach(), dict(layer.state_dict())
    state[key] = change(state[key])
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(layer(x).detach(), expected)


def test_a_state_without_the_pattern_is_refused():
    layer, dense, _ = linear_pair()
    with pytest.raises(RuntimeError, match=r"Missing key.*values.*offsets.*indices"):
        layer.load_state_dict(dense.state_dict())


def test_set_pattern_keeps_survivors_and_zeroes_the_new(pair):
    layer, dense, mask, x = pair
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    trained, parameter = layer.weight.to_dense().detach(), layer.values
    state = {name: part.clone() for name, part in optimizer.state[parameter].items()}
    moved = random_mask(tuple(dense.weight.shape), density=0.4, seed=7)
    kept = layer.set_pattern(moved)
    assert layer.values is parameter and parameter.grad is None
    assert torch.equal(layer.pattern.to_mask(), moved.flatten(1))
    expected = trained * mask.flatten(1) * moved.flatten(1)
    assert torch.equal(layer.weight.to_dense().detach(), expected)
    spread = torch.zeros(mask.flatten(1).shape)
    spread[mask.flatten(1)] = state["exp_avg"]
    carried = torch.where(kept >= 0, state["exp_avg"][kept], 0.0)
    assert torch.equal(carried, spread[moved.flatten(1)])
    for name in ("exp_avg", "exp_avg_sq"):
        old = optimizer.state[parameter][name]
        optimizer.state[parameter][name] = torch.where(kept >= 0, old[kept], 0.0)
    layer(x).square().sum().backward()
    optimizer.step()
    assert bool((layer.values != 0).any())


def test_set_pattern_takes_a_pattern_and_an_empty_one():
    layer, _, mask = linear_pair()
    assert torch.equal(layer.set_pattern(layer.pattern), torch.arange(layer.pattern.nnz))
    assert layer.set_pattern(torch.zeros_like(mask)).shape == (0,)
    assert layer.set_pattern(SparsePattern.from_mask(mask)).eq(-1).all()
    assert torch.equal(layer(torch.ones(1, 23)), layer.bias[None])


@pytest.mark.parametrize("bad", [torch.ones(3, 23) > 0, torch.ones(17, 23)])
def test_a_refused_pattern_changes_nothing(bad):
    layer, _, _ = linear_pair()
    before = {name: part.clone() for name, part in layer.state_dict().items()}
    with pytest.raises((TypeError, ValueError), match="got"):
        layer.set_pattern(bad)
    assert all(torch.equal(part, before[name]) for name, part in layer.state_dict().items())


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_other_precisions_are_refused_before_anything_changes(pair, convert):
    layer, _, _, x = pair
    expected = layer(x).detach()
    with pytest.raises(TypeError, match=rf"{type(layer).__name__} trains in float32, got"):
        convert(layer)
    assert torch.equal(layer(x).detach(), expected)


def test_double_precision_runs_the_reference(pair):
    layer, dense, _, x = pair
    layer, dense = layer.double(), dense.double()
    torch.testing.assert_close(layer(x.double()), dense(x.double()), rtol=1e-12, atol=1e-12)
    assert layer.float().values.dtype == torch.float32


def test_moving_devices_keeps_pattern_and_buffers_together(pair):
    layer = pair[0].to("meta")
    assert layer.pattern.indices is layer.indices and layer.indices.device.type == "meta"


def test_training_reaches_what_the_masked_dense_layer_reaches():
    layer, dense, mask = linear_pair(8, 12)
    x, target = torch.randn(64, 12), torch.randn(64, 8)
    for model in (layer, dense):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            if isinstance(model, nn.Linear):
                assert model.weight.grad is not None
                model.weight.grad *= mask
            optimizer.step()
    torch.testing.assert_close(layer.to_dense().weight, dense.weight, rtol=1e-3, atol=1e-4)


def test_compiled_training_step_is_the_eager_one(pair):
    layer, _, _, x = pair
    x.requires_grad_()
    layer(x).square().sum().backward()
    expected = layer.values.grad.clone()
    layer.values.grad = None
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2)), "one group, got 2"),
        (lambda: SparseConv2d.from_dense(nn.Conv2d(4, 4, 3, padding="same")), "got 'same'"),
        (
            lambda: SparseConv2d.from_dense(nn.Conv2d(4, 4, 3, padding_mode="reflect")),
            "mode 'reflect'",
        ),
        (
            lambda: SparseConv2d.from_dense(nn.Conv2d(4, 2, 3), torch.ones(2, 36) > 0),
            r"mask of shape \[2, 4, 3, 3\], got \[2, 36\]",
        ),
        (lambda: SparseConv2d(_weight(2, 10), kernel_size=(3, 3)), r"columns .* got 10"),
        (lambda: SparseLinear(_weight(2, 3), torch.ones(3)), r"bias of \[2\], got \[3\]"),
        (lambda: SparseLinear(_weight(2, 3))(torch.ones(1, 2)), r"input of \[..., 3\], got"),
        (
            lambda: SparseConv2d(_weight(2, 3), kernel_size=(1, 1))(torch.ones(3, 4, 4)),
            r"\[batch, 3, height, width\], got \[3, 4, 4\]",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _weight(rows: int, columns: int) -> SparseWeight:
    return SparseWeight.from_dense(torch.ones(rows, columns))


def test_layers_say_what_they_are():
    layer, _, _ = conv_pair("3x3 strided")
    text = repr(layer)
    assert "5, 7, kernel_size=(3, 3), stride=(2, 2)" in text and "density=" in text
    assert "23, 17, density=" in repr(linear_pair()[0])
