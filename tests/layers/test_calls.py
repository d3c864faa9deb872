"""Clamps and zero padding, in every way that code writes them."""

import math

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from gossamer.layers.calls import clamp_bounds, zero_padding

inf = math.inf


def last_call(function) -> tuple[fx.Node, nn.Module | None]:
    root = function if isinstance(function, nn.Module) else nn.Module()
    if isinstance(function, nn.Module):
        traced = fx.symbolic_trace(nn.Sequential(root))
    else:
        traced = fx.GraphModule(root, fx.Tracer().trace(function))
    node = list(traced.graph.nodes)[-2]
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return node, module


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (nn.ReLU(), (0, inf)),
        (nn.ReLU6(), (0, 6)),
        (nn.Hardtanh(-2, 3), (-2, 3)),
        (lambda x: torch.relu(x), (0, inf)),
        (lambda x: F.relu6(x), (0, 6)),
        (lambda x: x.relu(), (0, inf)),
        (lambda x: x.clamp(1, max=2), (1, 2)),
        (lambda x: torch.clamp(x, max=2), (-inf, 2)),
        (lambda x: x.clamp(2, 1), None),
        (lambda x: torch.clamp(x, x), None),
        (nn.SiLU(), None),
        (lambda x: x + 1, None),
    ],
)
def test_clamps(function, bounds):
    assert clamp_bounds(*last_call(function)) == bounds


@pytest.mark.parametrize(
    ("function", "zeros"),
    [
        (nn.ZeroPad2d((1, 2, 3, 4)), (1, 2, 3, 4)),
        (lambda x: F.pad(x, (0, 1, 2, 3)), (0, 1, 2, 3)),
        (lambda x: F.pad(x, (0, 1, 2, 3), "constant", 0.0), (0, 1, 2, 3)),
        (lambda x: F.pad(x, (0, 1, 2, 3), mode="replicate"), None),
        (lambda x: F.pad(x, (1, 1)), None),
        (lambda x: F.pad(x, (-1, 1, 1, 1)), None),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=2.0), None),
        (nn.ReflectionPad2d(1), None),
    ],
)
def test_zero_padding(function, zeros):
    assert zero_padding(*last_call(function)) == zeros
