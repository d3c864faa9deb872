"""Depth-wise convolution: bounds of every element, awkward shapes, untouched memory."""

import ctypes
import math
import mmap
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import backend, depthwise_conv, instruction_sets

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
ROUNDING = 2.0**-24
cases = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def operands(
    images: int, channels: int, height: int, width: int, kernel: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width + channels)
    image = torch.randn(images, channels, height, width, generator=generator)
    weight = torch.randn(channels, *kernel, generator=generator)
    return image, weight, torch.randn(channels, generator=generator)


def exact(image, weight, bias, stride, padding) -> Tensor:
    wide = F.pad(image.double(), padding)
    return F.conv2d(wide, weight.double()[:, None], bias.double(), stride, groups=len(weight))


def check(actual, image, weight, bias, stride, padding) -> None:
    """gamma_{k+2} of the sum of magnitudes, element by element."""
    wanted = exact(image, weight, bias, stride, padding)
    sizes = exact(image.abs(), weight.abs(), bias.abs(), stride, padding)
    terms = (weight[0].numel() + 3) * ROUNDING
    assert actual.shape == wanted.shape and actual.is_contiguous()
    assert bool(((actual.double() - wanted).abs() <= terms / (1 - terms) * sizes).all())


@cases
@given(
    st.sampled_from([(1, 1), (1, 5), (2, 3), (1, 40), (0, 3)]),
    st.sampled_from([1, 2, 7, 8, 9, 14, 15, 16, 17, 28, 33, 70]),
    st.sampled_from([1, 2, 7, 14, 15, 16, 17, 28, 31, 33, 70]),
    st.sampled_from([(3, 3), (5, 5), (1, 1), (7, 7), (2, 4), (4, 3)]),
    st.sampled_from([1, 2]),
    st.tuples(*[st.integers(0, 5)] * 4),
)
def test_results_are_exact_to_rounding(impl, batch, height, width, kernel, stride, padding):
    left, right, top, bottom = padding
    right = max(right, kernel[1] - width - left)
    bottom = max(bottom, kernel[0] - height - top)
    padding = (left, right, top, bottom)
    images, channels = batch
    image, weight, bias = operands(images, channels, height, width, kernel)
    found = depthwise_conv(image, weight, bias=bias, stride=stride, padding=padding, impl=impl)
    check(found, image, weight, bias, stride, padding)


@pytest.mark.parametrize("stride", [1, 2])
def test_wide_images_go_through_in_bands(impl, stride):
    image, weight, bias = operands(1, 2, 60, 700, (5, 5))
    found = depthwise_conv(image, weight, bias=bias, stride=stride, padding=(2, 2, 2, 2), impl=impl)
    check(found, image, weight, bias, stride, (2, 2, 2, 2))


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (3, 2)])
def test_clamp_is_relu6(impl, kernel):
    image, weight, bias = operands(2, 3, 20, 20, kernel)
    plain = depthwise_conv(image, weight, bias=bias, impl=impl)
    clamped = depthwise_conv(image, weight, bias=bias, clamp=(0.0, 6.0), impl=impl)
    assert torch.equal(clamped, F.relu6(plain)) and not torch.equal(clamped, plain)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_reaches_its_own_window_only(impl, kernel, stride):
    """Channels do not mix, and padding is zero even next to NaN."""
    image, weight, bias = operands(2, 30, 9, 9, (kernel, kernel))
    pad = (kernel // 2,) * 4
    expected = depthwise_conv(image, weight, bias=bias, stride=stride, padding=pad, impl=impl)
    image[1, 17, 0, 8] = torch.nan
    spread = torch.zeros_like(image)
    spread[1, 17, 0, 8] = 1.0
    reached = exact(spread, torch.ones_like(weight), torch.zeros(30), stride, pad) != 0
    found = depthwise_conv(
        image, weight, bias=bias, stride=stride, padding=pad, clamp=(-math.inf, 1e30), impl=impl
    )
    assert torch.equal(found.isnan(), reached)
    assert torch.equal(found[~reached], expected[~reached])


@pytest.mark.parametrize("size", [7, 15, 17, 33])
@pytest.mark.parametrize("kernel", [3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_neighbours_are_neither_read_nor_written(isa, size, kernel, stride):
    room = torch.full((3, 4, size, size), torch.nan)
    image = room[1:2].copy_(torch.randn(1, 4, size, size))
    weight, bias = torch.randn(4, kernel, kernel), torch.randn(4)
    side = (size + 2 - kernel) // stride + 1
    results = torch.full((3, 4, side, side), 7.0)
    arguments = (image, weight, results[1:2], bias, stride, 1, 1, -math.inf, math.inf, 1)
    backend.launch("depthwise_conv", *arguments)
    check(results[1:2], image, weight, bias, stride, (1, 1, 1, 1))
    assert bool((results[0] == 7.0).all() and (results[2] == 7.0).all())


@pytest.fixture
def guarded():
    """Copy a tensor to where the next byte belongs to nobody: a read beyond it ends the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    rooms = []

    def copy(tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        room = mmap.mmap(-1, pages + mmap.PAGESIZE)
        rooms.append(room)
        home = torch.frombuffer(room, dtype=tensor.dtype)
        start = home.data_ptr() + pages
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        end = pages // tensor.element_size()
        return home[end - tensor.numel() : end].view(tensor.shape).copy_(tensor)

    return copy


@pytest.mark.parametrize("size", [1, 7, 14, 17, 31])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_tensor_is_read_past_its_end(isa, guarded, size, kernel, stride):
    image, weight, bias = (guarded(part) for part in operands(1, 3, size, size, (kernel, kernel)))
    pad = (kernel // 2,) * 4
    found = depthwise_conv(image, weight, bias=bias, stride=stride, padding=pad, impl="cpu")
    check(found, image, weight, bias, stride, pad)


def test_thread_counts_agree_bitwise(isa):
    image, weight, bias = operands(2, 9, 15, 15, (5, 5))
    expected = depthwise_conv(image, weight, bias=bias, impl="cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(depthwise_conv(image, weight, bias=bias, impl="cpu"), expected)


def test_any_strides_give_the_same_bits(impl):
    image, weight, bias = operands(2, 8, 10, 10, (3, 3))
    expected = depthwise_conv(image, weight, bias=bias, impl=impl)
    mixed = image.contiguous(memory_format=torch.channels_last)
    found = depthwise_conv(mixed, weight.mT.contiguous().mT, bias=bias, impl=impl)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert impl != "cpu" or torch.equal(found, expected)


@pytest.mark.parametrize("impl_name", IMPLS)
def test_the_operator_is_registered_for_tracing(impl_name):
    image, weight, bias = operands(1, 4, 9, 9, (3, 3))
    arguments = (image, weight, bias, 2, [1, 0, 0, 1], -1.0, 1.0, impl_name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.depthwise_conv.default, arguments, test_utils=tests)


GOOD: dict[str, Any] = {"image": torch.ones(1, 4, 8, 8), "weight": torch.ones(4, 3, 3)}
BAD_INPUT = [
    ({"image": torch.ones(4, 8, 8)}, ValueError, r"image \[N, C, H, W\] .* got \[4, 8, 8\]"),
    ({"weight": torch.ones(4, 1, 3, 3)}, ValueError, r"try conv.weight\[:, 0\]"),
    ({"weight": torch.ones(5, 3, 3)}, ValueError, r"got \[1, 4, 8, 8\] and \[5, 3, 3\]"),
    ({"weight": torch.ones(4, 0, 3)}, ValueError, r"kernel of at least 1 x 1, got \[0, 3\]"),
    ({"bias": torch.ones(3)}, ValueError, r"bias \[4\], got \[3\]"),
    ({"image": torch.ones(1, 4, 8, 8).double()}, TypeError, r"image to be float32, got .*float64"),
    ({"bias": torch.ones(4).half()}, TypeError, r"bias to be float32, got torch.float16"),
    ({"weight": torch.ones(4, 3, 3, device="meta")}, ValueError, r"image on cpu, weight on meta"),
    ({"weight": torch.ones(4, 3, 3, requires_grad=True)}, ValueError, r"try torch.no_grad"),
    ({"stride": 3}, ValueError, r"stride 1 or 2, got 3"),
    ({"padding": (1, 1)}, ValueError, r"\(left, right, top, bottom\) of at least 0, got \(1, 1\)"),
    ({"padding": (0, 0, -1, 0)}, ValueError, r"at least 0, got \(0, 0, -1, 0\)"),
    ({"clamp": (1.0, 0.0)}, ValueError, r"low <= high, got \(1.0, 0.0\)"),
    ({"weight": torch.ones(4, 9, 3)}, ValueError, r"at least \[9, 3\], padding included"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    depthwise_conv(**GOOD)
    with pytest.raises(error, match=message):
        depthwise_conv(**(GOOD | changes))
