"""The fixtures that other tests rely on to notice a wrong access."""

import ctypes
import os

import pytest
import torch

LIBC = ctypes.CDLL(None, use_errno=True)


def readable(address: int) -> bool:
    """Whether the system can read a byte there; its own reads do not end the process."""
    ends = os.pipe()
    try:
        return LIBC.write(ends[1], ctypes.c_void_p(address), ctypes.c_size_t(1)) == 1
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (4096,), (1025, 4)])
def test_a_guarded_tensor_ends_where_nothing_is_readable(request, guarded, dtype, shape):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    for source in (tensor, tensor.mT if tensor.ndim > 1 else tensor[::2]):
        copy = guarded(source)
        assert torch.equal(copy, source) and copy.stride() == source.stride()
        assert copy.dtype == dtype
        last = copy[(-1,) * copy.ndim].data_ptr() + copy.element_size() - 1
        behind = "behind" in request.node.callspec.params.values()
        assert readable(copy.data_ptr()) and readable(last)
        assert not readable(last + 1 if behind else copy.data_ptr() - 1)


def test_address_space_is_not_memory(address_space):
    zeros = address_space(2**33, torch.float32)
    zeros[2**32] = 1.0
    assert zeros[2**32 - 1 : 2**32 + 2].tolist() == [0.0, 1.0, 0.0]
