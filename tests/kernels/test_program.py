"""Recorded kernel calls against the same calls made one by one."""

import gc
import math

import pytest
import torch

from gossamer.kernels import depthwise_conv, pack, spmm
from gossamer.kernels.program import Program
from gossamer.testing import random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")


def chain(source, target):
    """1x1, depth-wise, 1x1 and a residual sum; everything but source and target is its own."""
    torch.manual_seed(0)
    up = pack(torch.randn(40, 24) * random_mask((40, 24), density=0.2, seed=0))
    down = pack(torch.randn(24, 40) * random_mask((24, 40), density=0.2, seed=1))
    weight, bias = torch.randn(40, 3, 3), torch.randn(40)
    middle, filtered, projected = torch.empty(2, 40, 81), torch.empty(2, 40, 9, 9), target
    program = Program(source, target)
    program.spmm(up, source.flatten(2), middle, bias, (0.0, 6.0))
    geometry = (1, (1, 1, 1, 1), (0.0, math.inf))
    program.depthwise_conv(middle.view(2, 40, 9, 9), weight, filtered, None, *geometry)
    program.spmm(down, filtered.flatten(2), projected.flatten(2), None, (-math.inf, math.inf))
    program.add(source, target, target)

    def by_hand(x):
        y = spmm(up, x.flatten(2), bias=bias, clamp=(0.0, 6.0)).view(2, 40, 9, 9)
        y = depthwise_conv(y, weight, padding=(1, 1, 1, 1), clamp=(0.0, math.inf))
        return x + spmm(down, y.flatten(2)).view(2, 24, 9, 9)

    return program, by_hand


def test_a_program_equals_its_calls_for_every_input(isa):
    shape = (2, 24, 9, 9)
    program, by_hand = chain(torch.empty(shape), torch.empty(shape))
    gc.collect()  # the program keeps what it reads
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        same, out = x.clone(), torch.empty(shape)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            program.run(x, out)
            assert torch.equal(out, by_hand(x)) and torch.equal(x, same)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 4095, 4097, 9001])
def test_sums_of_any_length(isa, size):
    left, right = torch.randn(size), torch.randn(size)
    room = torch.full((size + 2,), 7.0)
    program = Program(torch.empty(1), room[1:-1])
    program.add(left, right, room[1:-1])
    program.run(torch.empty(1), room[1:-1])
    assert torch.equal(room[1:-1], left + right) and room[0] == room[-1] == 7.0
