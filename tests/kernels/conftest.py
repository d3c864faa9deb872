import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gossamer.kernels import instruction_set, instruction_sets

MAP_NORESERVE = 0x4000  # Linux; the module names it on some versions only
PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """torch.empty returns NaN or the largest integer, so that what stays unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def forget_triton() -> Callable[[], None]:
    """Take Triton, and the modules of ours that import it, out of reach of import.

    Returns what puts them back, with the names that their packages know them by.
    """
    modules = {
        name: module
        for name, module in sys.modules.items()
        if (name.split(".")[0] == "triton" and not name.startswith("triton._C"))
        or (name.startswith("gossamer.kernels.") and "triton" in name)
    }
    known = []
    for name in modules:
        parent, _, child = name.rpartition(".")
        names = vars(sys.modules[parent]) if parent in sys.modules else {}
        if child in names:
            known.append((names, child, names.pop(child)))
    for name in modules:
        del sys.modules[name]

    def restore() -> None:
        sys.modules.update(modules)
        for names, child, value in known:
            names[child] = value

    return restore


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Without a GPU, use a Triton that interprets, which is settled when it is imported."""
    if torch.cuda.is_available():
        yield
        return
    restore = forget_triton()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
    forget_triton()
    restore()


@pytest.fixture(params=instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the native kernels."""
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(params=["behind", "before"])
def guarded(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """Copy a tensor, with its strides, to the edge of a page that nothing may touch.

    The page lies right behind the last element, or right before the first one: a kernel that
    reads or writes a byte there ends the process.
    """

    def copy(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in steps)
        pages = -(-span * tensor.element_size() // PAGE)
        room = mmap.mmap(-1, (pages + 1) * PAGE)
        behind = request.param == "behind"
        start = pages * PAGE - span * tensor.element_size() if behind else PAGE
        base = ctypes.addressof(ctypes.c_char.from_buffer(room))
        wall = ctypes.c_void_p(base + (pages * PAGE if behind else 0))
        assert _libc.mprotect(wall, ctypes.c_size_t(PAGE), 0) == 0
        flat = torch.frombuffer(room, dtype=tensor.dtype, count=span, offset=start)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    return copy


@pytest.fixture
def address_space() -> Callable[[int, torch.dtype], Tensor]:
    """Make vectors of zeros of any length, whose pages take no memory until they are written."""

    def reserve(count: int, dtype: torch.dtype) -> Tensor:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)

    return reserve
