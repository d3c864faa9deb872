"""Dense layers that decode from a lossless form: when they do, and when PyTorch must."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gossamer.kernels import instruction_sets
from gossamer.layers import LosslessLinear, lossless_linear

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="native kernels are not built")


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Forms of the weights that native products read."""
    calls: list[str] = []
    real = lossless_linear.lossless_gemv
    monkeypatch.setattr(
        lossless_linear, "lossless_gemv", lambda w, x: calls.append(w.form) or real(w, x)
    )
    return calls


def layer(*, bias: bool = True) -> LosslessLinear:
    made = LosslessLinear(64, 24, bias=bias).requires_grad_(False)
    made.weight.copy_(made.weight.bfloat16())
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 1, 64), (4, 4, 64)])
def test_few_rows_are_read_in_the_lossless_form(bias, shape, native_calls):
    made, x = layer(bias=bias), torch.randn(*shape)
    expected = nn.functional.linear(x.double(), *(p.double() for p in made.parameters()))
    torch.testing.assert_close(made(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert native_calls == ["bfloat16"]


@pytest.mark.parametrize(
    "case", ["17 rows", "no rows", "float64", "bfloat16", "autocast", "input", "weight", "bias"]
)
def test_everything_else_goes_through_pytorch(case, native_calls):
    made, x = layer(), torch.randn(2, 64)
    if case in ("17 rows", "no rows"):
        x = torch.randn(17 if case == "17 rows" else 0, 64)
    if case in ("float64", "bfloat16"):
        dtype = getattr(torch, case)
        made, x = made.to(dtype), x.to(dtype)
    if case == "input":
        x.requires_grad_()
    if case in ("weight", "bias"):
        getattr(made, case).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        found, expected = made(x), nn.functional.linear(x, made.weight, made.bias)
    assert torch.equal(found, expected)
    assert not native_calls
    if case in ("input", "weight", "bias"):
        found.sum().backward()
        with torch.no_grad():
            made(x.detach())
        assert native_calls


def test_a_changed_weight_is_read_anew(native_calls):
    made, x = layer(), torch.randn(1, 64)
    before = made(x)
    made.weight.mul_(2)
    made.bias.mul_(2)
    torch.testing.assert_close(made(x), 2 * before)
    made.weight = nn.Parameter(torch.zeros(24, 64), requires_grad=False)
    assert torch.equal(made(x), made.bias[None])
    made.load_state_dict(layer().state_dict())
    torch.testing.assert_close(made(x), nn.functional.linear(x, made.weight, made.bias))
    assert native_calls == ["bfloat16", "bfloat16", "nibbles", "bfloat16"]


def test_copies_and_files_hold_the_parameters_alone():
    made = layer()
    made(torch.ones(1, 64))
    assert "_taken" in made.__dict__
    assert "_taken" not in copy.deepcopy(made).__dict__
    assert list(made.state_dict()) == ["weight", "bias"]


def test_tracing_sees_the_parameters(native_calls):
    made = layer()
    traced = torch.compile(made, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(torch.ones(1, 64)), made(torch.ones(1, 64)))
    assert native_calls == ["bfloat16"]
