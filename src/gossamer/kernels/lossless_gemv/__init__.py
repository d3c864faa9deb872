"""Dense matrix times a few vectors, read in the narrowest form that gives each weight back.

A decode step reads every weight once, so its time is bytes over bandwidth. Weights that came from
fewer bits than they are stored in (a GGUF file, a bfloat16 checkpoint) can be read in as few.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import backend
from gossamer.kernels.library import dispatched, register
from gossamer.kernels.memory import empty_streamed
from gossamer.kernels.sparse_gemv import MAX_VECTORS, WAYS

FORMS = ("nibbles", "bytes", "bfloat16", "float32")  # from narrow to wide
BLOCK = 32  # weights that share a scale; GGUF's 4- and 8-bit blocks have as many
ROWS = 1024  # examined at a time, which bounds the memory that takes


@dataclass(frozen=True, eq=False)
class LosslessWeight:
    """A float32 weight [M, K] in a form that gives each number back; made by `pack_lossless`.

    Parameters
    ----------
    form : {"nibbles", "bytes", "bfloat16", "float32"}
        ``low + step * code`` with codes of 4 bits, ``step * code`` with codes of 8 bits (a step
        and a low for each 32 weights of a row), or the numbers themselves.
    columns : int
        K.
    codes : Tensor [M, blocks, 32] int8, bfloat16 or float32, or [M, blocks, 16] uint8
        Blocks of 32 columns, the last one filled up. Byte i of a block of nibbles: the codes of
        its weights i and i + 16, the first one in the low half.
    scales : Tensor [M, blocks, 2 or 1] float32, optional
        Step and low of nibbles, step of bytes.

    Examples
    --------
    >>> weight = pack_lossless(torch.tensor([[0.5, -0.25, 0.125]]))
    >>> weight.form, weight.to_dense().tolist()
    ('nibbles', [[0.5, -0.25, 0.125]])
    """

    form: str
    columns: int
    codes: Tensor = field(repr=False)
    scales: Tensor | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple:
        """Copy and pickle without what the native kernels hold."""
        return type(self), (self.form, self.columns, self.codes, self.scales)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        return len(self.codes), self.columns

    @property
    def device(self) -> torch.device:
        """Of the codes."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def to_dense(self) -> Tensor:
        """Return the weight [M, K] float32."""
        return _decoded(self.form, self.codes, self.scales)[:, : self.columns]

    @cached_property
    def native(self) -> Any:
        """The weight as the native kernels hold it."""
        return _vector_weight(self.form, self.codes, self.scales)


@torch.no_grad()
def pack_lossless(weight: Tensor) -> LosslessWeight:
    """Find the narrowest form that gives each weight back.

    Parameters
    ----------
    weight : Tensor [M, K] float32
        On the CPU. The form "float32" shares its memory where K is a multiple of 32.

    Returns
    -------
    LosslessWeight
        ``to_dense()`` equals `weight` in every place, NaN aside.

    Raises
    ------
    TypeError, ValueError
        If `weight` is of another type, shape or device.
    """
    if weight.ndim != 2 or not weight.is_cpu:
        raise ValueError(
            f"expected a matrix on the CPU, got {list(weight.shape)} on {weight.device}"
        )
    if weight.dtype is not torch.float32:
        raise TypeError(f"expected float32 weights, got {weight.dtype}")
    columns = weight.shape[1]
    blocks = _blocks(weight.detach(), "replicate")  # what is on a grid stays on it
    for form, encode in _ENCODERS.items():
        parts = _encoded(blocks, encode)
        if parts is not None:
            return LosslessWeight(form, columns, *parts)
    return LosslessWeight("float32", columns, _blocks(weight.detach(), "constant"))


def lossless_gemv(
    weight: LosslessWeight, vectors: Tensor, *, impl: backend.Impl = "auto"
) -> Tensor:
    """Return weight @ vector for each of a few vectors; weights and sums are float32.

    Parameters
    ----------
    weight : LosslessWeight [M, K]
    vectors : Tensor [..., K] float32
        1 to 16 of them.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [..., M] float32

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit, or a gradient would be needed.

    Examples
    --------
    >>> weight = pack_lossless(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> lossless_gemv(weight, torch.tensor([3.0, 4.0]))
    tensor([8., 3.])
    """
    if vectors.dtype is not torch.float32:
        raise TypeError(f"expected float32 vectors, got {vectors.dtype}")
    if not vectors.ndim or vectors.shape[-1] != weight.columns or vectors.device != weight.device:
        raise ValueError(
            f"expected vectors of [..., {weight.columns}] on {weight.device}, got "
            f"{list(vectors.shape)} on {vectors.device}"
        )
    if torch.is_grad_enabled() and vectors.requires_grad:
        raise ValueError("expected vectors without gradient; try torch.no_grad()")
    shape = vectors.shape[:-1]
    count = math.prod(shape)
    if not 1 <= count <= MAX_VECTORS:
        raise ValueError(f"expected 1..{MAX_VECTORS} vectors, got {count}; try to_dense()")
    chosen = backend.choose(impl, vectors.device, backend.WITHOUT_TRITON)
    if chosen == "cpu" and not dispatched():
        return _product(weight.native, vectors)
    flat = vectors.reshape(count, weight.columns)
    product = torch.ops.gossamer.lossless_gemv(
        weight.form, weight.codes, weight.scales, flat, chosen
    )
    return product.view(*shape, weight.shape[0])


def _blocks(weight: Tensor, filling: str) -> Tensor:
    """Return [M, blocks, 32], the last block filled up; the weight's own memory if it is full."""
    rows, columns = weight.shape
    if missing := -columns % BLOCK:
        weight = F.pad(weight[None], (0, missing), mode=filling if rows else "constant")[0]
    return weight.reshape(rows, weight.shape[1] // BLOCK, BLOCK).contiguous()


Parts = tuple[Tensor, ...]  # codes, and scales where the form has them


def _nibbles(blocks: Tensor) -> Parts | None:
    """Count steps from the smallest weight up, or from the farthest one to beyond zero."""
    lowest, highest = blocks.aminmax(dim=-1, keepdim=True)
    farthest = torch.where(highest > -lowest, highest, lowest)
    codes, scales, found = _steps(blocks, lowest, (highest - lowest) / 15)
    if not bool(found.all()):
        others = _steps(blocks, farthest, farthest / -8)
        codes = torch.where(found, codes, others[0])
        scales = torch.where(found, scales, others[1])
        if not bool((found | others[2]).all()):
            return None
    first, second = codes.to(torch.uint8).chunk(2, -1)
    return first | second << 4, scales


def _steps(blocks: Tensor, low: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales, and whether they give a block back."""
    step = step.half().float()
    codes = ((blocks - low) / step).round().nan_to_num(0, 0, 0).clamp(0, 15)
    return codes, torch.cat([step, low], -1), (codes * step + low == blocks).all(-1, keepdim=True)


def _bytes(blocks: Tensor) -> Parts | None:
    step = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    codes = (blocks / step).round().nan_to_num(0, 0, 0).clamp(-128, 127)
    return (codes.to(torch.int8), step) if torch.equal(codes * step, blocks) else None


def _bfloat16(blocks: Tensor) -> Parts | None:
    codes = blocks.bfloat16()
    return (codes,) if torch.equal(codes.float(), blocks) else None


_ENCODERS = {"nibbles": _nibbles, "bytes": _bytes, "bfloat16": _bfloat16}


def _encoded(blocks: Tensor, encode: Callable[[Tensor], Parts | None]) -> Parts | None:
    """Encode blocks [M, blocks, 32] some rows at a time; None as soon as that loses something."""
    whole: list[Tensor] = []
    for first in range(0, max(1, len(blocks)), ROWS):
        parts = encode(blocks[first : first + ROWS])
        if parts is None:
            return None
        whole = whole or [
            empty_streamed((len(blocks), *part.shape[1:]), part.dtype, part.device)
            for part in parts
        ]
        for room, part in zip(whole, parts, strict=True):
            room[first : first + ROWS] = part
    return tuple(whole)


def _decoded(form: str, codes: Tensor, scales: Tensor | None) -> Tensor:
    """Return the weight with its padding, float32 [M, blocks * 32]."""
    if form == "nibbles":
        codes = torch.cat([codes & 15, codes >> 4], -1)
    numbers = codes.float()
    if scales is not None:
        numbers = numbers * scales[..., :1]
        if form == "nibbles":
            numbers = numbers + scales[..., 1:]
    return numbers.flatten(1)


def _vector_weight(form: str, codes: Tensor, scales: Tensor | None) -> Any:
    way = len(WAYS) + min(FORMS.index(form), FORMS.index("bfloat16"))  # it tells dtypes apart
    return backend.launch("VectorWeight", way, len(codes), codes, scales)


def _product(native: Any, vectors: Tensor) -> Tensor:
    x = vectors.contiguous()
    out = x.new_empty((*x.shape[:-1], native.rows))
    count = math.prod(x.shape[:-1])
    threads = torch.get_num_threads()
    native.times(x.data_ptr(), count, x.shape[-1], out.data_ptr(), threads)
    return out


def _lossless_gemv(
    form: str, codes: Tensor, scales: Tensor | None, vectors: Tensor, impl: str
) -> Tensor:
    if impl == "cpu":
        return _product(_vector_weight(form, codes, scales), vectors)
    return (vectors @ _decoded(form, codes, scales)[:, : vectors.shape[-1]].mT).contiguous()


register(
    "lossless_gemv(str form, Tensor codes, Tensor? scales, Tensor vectors, str impl) -> Tensor",
    _lossless_gemv,
    lambda form, codes, scales, vectors, impl: vectors.new_empty(len(vectors), len(codes)),
)
