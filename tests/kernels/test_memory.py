"""Buffers aligned to huge pages: what they are on Linux CPUs, and nothing anywhere else."""

import copy
import ctypes
import gc
import io
import mmap
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from gossamer.kernels import memory
from gossamer.kernels.memory import (
    ARENA,
    HUGE_PAGE,
    empty_aligned,
    empty_streamed,
    use_huge_pages,
)

CPU = torch.device("cpu")


class RecordingLibc:
    """Takes the place of the C library; keeps the arguments of `madvise` in plain integers."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.calls: list[tuple[int, int, int]] = []

    def madvise(self, address: ctypes.c_void_p, length: ctypes.c_size_t, advice: int) -> int:
        self.calls.append((address.value or 0, length.value, advice))
        return self.answer


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> RecordingLibc:
    recording = RecordingLibc()
    monkeypatch.setattr(memory, "_libc", recording)
    return recording


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
@pytest.mark.parametrize("size", [HUGE_PAGE, HUGE_PAGE + 24, 3 * HUGE_PAGE])
def test_a_large_buffer_starts_at_a_border(dtype: torch.dtype, size: int) -> None:
    shape = (2, 2, size // dtype.itemsize // 4)
    found = empty_aligned(shape, dtype, CPU)
    assert found.data_ptr() % HUGE_PAGE == 0
    assert (tuple(found.shape), found.dtype, found.device) == (shape, dtype, CPU)
    assert found.is_contiguous()


def test_a_large_buffer_holds_every_element_it_was_given() -> None:
    expected = torch.arange(HUGE_PAGE // 2, dtype=torch.int32).reshape(2, -1)
    found = empty_aligned(tuple(expected.shape), torch.int32, CPU)
    other = empty_aligned(tuple(expected.shape), torch.int32, CPU)
    found.copy_(expected)
    other.fill_(-1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(), (0, 5), (3, 4), (HUGE_PAGE // 4 - 1,)])
def test_a_small_buffer_is_an_ordinary_tensor(shape: tuple[int, ...]) -> None:
    found = empty_aligned(shape, torch.float32, CPU)
    assert (tuple(found.shape), found.dtype) == (shape, torch.float32)
    assert found.untyped_storage().nbytes() == found.numel() * 4  # no room for alignment


def test_another_device_gets_an_ordinary_tensor(libc: RecordingLibc) -> None:
    found = empty_aligned((HUGE_PAGE,), torch.float32, torch.device("meta"))
    assert (found.device.type, found.storage_offset()) == ("meta", 0)
    assert not use_huge_pages(found)
    assert not libc.calls


@pytest.mark.parametrize(
    ("skip", "size", "pages"),
    [
        (0, 2 * HUGE_PAGE, (0, 2)),
        (0, 2 * HUGE_PAGE + 24, (0, 2)),  # the page that ends past the tensor is left out
        (8, 2 * HUGE_PAGE, (1, 1)),  # and the one that begins before it
        (8, HUGE_PAGE, None),
        (0, HUGE_PAGE - 8, None),
        (0, 0, None),
    ],
)
def test_only_whole_pages_of_the_tensor_are_advised(
    libc: RecordingLibc, skip: int, size: int, pages: tuple[int, int] | None
) -> None:
    buffer = empty_aligned((4 * HUGE_PAGE,), torch.uint8, CPU)
    assert use_huge_pages(buffer[skip : skip + size]) == (pages is not None)
    expected = []
    if pages is not None:
        first, count = pages
        expected = [(buffer.data_ptr() + first * HUGE_PAGE, count * HUGE_PAGE, 14)]
    assert libc.calls == expected


def test_advice_that_is_refused_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = empty_aligned((HUGE_PAGE,), torch.uint8, CPU)
    monkeypatch.setattr(memory, "_libc", RecordingLibc(answer=-1))
    assert not use_huge_pages(buffer)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_libc", None)
    buffer = empty_aligned((2 * HUGE_PAGE,), torch.uint8, CPU)
    buffer.fill_(7)
    assert not use_huge_pages(buffer)
    assert bool((buffer == 7).all())


def test_advice_keeps_what_was_written() -> None:
    buffer = empty_aligned((2 * HUGE_PAGE,), torch.uint8, CPU)
    expected = torch.arange(2 * HUGE_PAGE, dtype=torch.int32).to(torch.uint8)
    buffer.copy_(expected)
    use_huge_pages(buffer)
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (), (HUGE_PAGE,), (ARENA // 8 + 1,)])
def test_streamed_memory_is_the_tensors_alone(shape, dtype):
    found = empty_streamed(shape, dtype, CPU)
    assert (tuple(found.shape), found.dtype, found.device) == (shape, dtype, CPU)
    assert found.is_contiguous() and found.data_ptr() % 64 == 0
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()


def test_streamed_tensors_never_share_a_byte_and_outlive_each_other():
    sizes = [1, 63, 129, 5000, HUGE_PAGE + 7, ARENA - 5, 17, ARENA + 1, 3]
    tensors = [empty_streamed((size,), torch.uint8, CPU).fill_(n) for n, size in enumerate(sizes)]
    for n in (1, 4, 6):
        tensors[n] = torch.empty(0)
    gc.collect()
    for n, tensor in enumerate(tensors):
        assert bool((tensor == n).all())
    starts = sorted((tensor.data_ptr(), tensor.numel()) for tensor in tensors if tensor.numel())
    assert all(a + size <= b for (a, size), (b, _) in pairwise(starts))


def test_small_streamed_tensors_lie_side_by_side():
    first, second = (empty_streamed((100,), torch.uint8, CPU) for _ in range(2))
    third = empty_streamed((100,), torch.uint8, CPU)  # a mapping may end between two of three
    steps = [second.data_ptr() - first.data_ptr(), third.data_ptr() - second.data_ptr()]
    assert 128 in steps


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are Linux's own")
def test_streamed_memory_is_advised_and_goes_back(monkeypatch):
    made, advised = [], []

    class Mapping(mmap.mmap):
        def madvise(self, *advice):
            advised.append(advice)
            raise OSError("no huge pages in this kernel")

    def mapped(*arguments, **options):
        made.append(Mapping(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(memory.mmap, "mmap", mapped)
    tensor = empty_streamed((ARENA + 1,), torch.uint8, CPU).fill_(1)
    assert advised == [(mmap.MADV_HUGEPAGE,)] and bool((tensor == 1).all())
    alive = weakref.ref(made.pop())
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None


def test_streamed_memory_can_be_taken_from_many_threads():
    with ThreadPoolExecutor(8) as pool:
        tensors = list(
            pool.map(lambda n: empty_streamed((1000,), torch.int64, CPU).fill_(n), range(400))
        )
    assert all(bool((tensor == n).all()) for n, tensor in enumerate(tensors))


def test_streamed_memory_of_other_devices_is_torchs_own():
    assert empty_streamed((4,), torch.float32, torch.device("meta")).device.type == "meta"


def test_a_streamed_tensor_is_saved_and_copied_without_its_neighbours():
    empty_streamed((ARENA // 2,), torch.uint8, CPU)
    tensor = empty_streamed((10,), torch.float32, CPU).fill_(2.0)
    file = io.BytesIO()
    torch.save(tensor, file)
    assert file.tell() < 10_000
    assert copy.deepcopy(tensor).untyped_storage().nbytes() == 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_memory_is_torchs_own() -> None:
    found = empty_aligned((HUGE_PAGE,), torch.float32, torch.device("cuda"))
    assert found.is_cuda and found.is_contiguous()
    assert not use_huge_pages(found)
