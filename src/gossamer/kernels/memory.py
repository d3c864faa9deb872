"""Memory for CPU buffers that stay: on huge pages, large ones each, small ones side by side.

Reading a few thousand scattered rows of a long cache misses the address-translation cache at
every row; on 2 MiB pages it does not, and plain streaming gets faster too.
"""

import ctypes
import math
import mmap
import sys
import threading
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # bytes, on every 64-bit Linux machine with 4 KiB base pages
ARENA = 32 << 20  # bytes of address space that small buffers share; pages come as they are filled
_LINE = 128  # bytes: two cache lines, as the hardware fetches them
_MADV_HUGEPAGE = 14
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def empty_aligned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; a large one on CPU starts at a huge page's border.

    Parameters
    ----------
    shape : tuple of int
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    Tensor of `shape`, contiguous
        Untouched pages take no memory: the up to 2 MiB of alignment are address space only.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE:
        return torch.empty(shape, dtype=dtype, device=device)
    room = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
    skip = -room.data_ptr() % HUGE_PAGE
    return room[skip : skip + size].view(dtype).view(shape)


def use_huge_pages(tensor: Tensor) -> bool:
    """Ask Linux to back pages of `tensor` that are not touched yet with huge pages.

    Best done before the first write. Memory is then handed out 2 MiB at a time, so ask only for
    buffers that will be filled. Elsewhere than on Linux CPUs this does nothing.

    Returns
    -------
    bool
        Whether the system took the advice; it may still have no huge page free.
    """
    if _libc is None or tensor.device.type != "cpu":
        return False
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-begin // HUGE_PAGE) * HUGE_PAGE
    length = (begin + size - first) // HUGE_PAGE * HUGE_PAGE
    if length <= 0:
        return False
    address = ctypes.c_void_p(first)
    return _libc.madvise(address, ctypes.c_size_t(length), _MADV_HUGEPAGE) == 0


class _Arena:
    """Hands out what is left of one mapping, and makes another when that is too little.

    A mapping lives as long as any buffer in it: its buffers hold it, the arena only the rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """Return `size` zeroed bytes."""
        if size > ARENA:
            return _mapped(size)[:size]
        with self._lock:
            if size > len(self._rest):
                self._rest = _mapped(ARENA)
            taken, self._rest = self._rest[:size], self._rest[-(-size // _LINE) * _LINE :]
        return taken


_arena = _Arena()


def empty_streamed(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor for data that is filled once and then read in order, again and again.

    Weights of one model lie side by side on huge pages, however small each is. Each has a
    storage of its own, so copies and files hold no more than the tensor.

    Parameters
    ----------
    shape : tuple of int
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    Tensor of `shape`, contiguous
        Its memory goes back to the system when its neighbours' does.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(_arena.take(size), dtype=dtype).view(shape)


def streamed(tensor: Tensor) -> Tensor:
    """Return a contiguous copy in memory for data that is read again and again."""
    return empty_streamed(tuple(tensor.shape), tensor.dtype, tensor.device).copy_(tensor)


def _mapped(size: int) -> memoryview:
    """Return at least `size` bytes from a huge page's border on."""
    if sys.platform != "linux":
        return memoryview(mmap.mmap(-1, size))
    room = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        room.madvise(mmap.MADV_HUGEPAGE)
    everything = memoryview(room)
    return everything[-torch.frombuffer(room, dtype=torch.uint8).data_ptr() % HUGE_PAGE :]
