"""A decoder block's linear layers for a few tokens, in one call on each side of attention.

A small model decodes a token in milliseconds, most of which goes into starting some twenty tiny
operations a layer; here a layer starts two.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.lossless_gemv import LosslessWeight
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.sparse_gemv import MAX_VECTORS, taken_over

LINEARS = ("query", "key", "value", "out", "gate", "up", "down")


class DecoderBlock:
    """The linear layers of a Llama block, packed or in a lossless form.

    With ``n = rms_norm(x)``: query, key and value are products with n, the first two rotated. What
    attention makes of them goes on as ``y = x + out(attended)``, and, with ``n = rms_norm(y)``,
    ``y + down(silu(gate(n)) * up(n))``.

    Parameters
    ----------
    weights : mapping of str to PackedWeight or LosslessWeight
        By the names in `LINEARS`; query [heads * head, width], key and value [kv_heads * head,
        width], out [width, heads * head], gate and up [inner, width], down [width, inner].
    head : int
        Features of one head; even.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.

    Examples
    --------
    >>> from gossamer.kernels import pack
    >>> shapes = {"query": (8, 6), "key": (4, 6), "value": (4, 6), "out": (6, 8)}
    >>> shapes |= {"gate": (10, 6), "up": (10, 6), "down": (6, 10)}
    >>> block = DecoderBlock({name: pack(torch.ones(*s)) for name, s in shapes.items()}, head=4)
    >>> angles = torch.ones(1, 4), torch.zeros(1, 4)
    >>> query, key, value = block.before(torch.ones(1, 6), torch.ones(6), 0.0, *angles)
    >>> query.shape, key.shape
    (torch.Size([1, 2, 1, 4]), torch.Size([1, 1, 1, 4]))
    >>> block.after(query.view(1, 8), torch.ones(1, 6), torch.ones(6), 0.0).shape
    torch.Size([1, 6])
    """

    def __init__(self, weights: Mapping[str, PackedWeight | LosslessWeight], head: int) -> None:
        width, attended = weights["out"].shape
        narrow, inner = weights["key"].shape[0], weights["up"].shape[0]
        wanted = ((attended, width), (narrow, width), (narrow, width), (width, attended))
        wanted += ((inner, width), (inner, width), (width, inner))
        for name, shape in zip(LINEARS, wanted, strict=True):
            if weights[name].shape != shape:
                raise ValueError(f"{name}: expected {shape}, got {weights[name].shape}")
        if head < 2 or head % 2 or attended % head or narrow % head:
            raise ValueError(
                f"expected an even head that divides {attended} and {narrow}, got {head}"
            )
        self.weights, self.head, self.width = weights, head, width
        self.heads, self.kv_heads = attended // head, narrow // head
        self._native: dict[int, Any] = {}  # by vectors

    def __reduce__(self) -> tuple:
        """Copy and pickle without what the native kernels hold."""
        return type(self), (self.weights, self.head)

    def before(
        self, x: Tensor, norm: Tensor, eps: float, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens.

        Parameters
        ----------
        x : Tensor [n, width] float32
            1 to 16 tokens, contiguous.
        norm : Tensor [width] float32
            Weight of the norm.
        eps : float
        cos, sin : Tensor [n or 1, head] float32
            Of each token's angles, or of all tokens'; contiguous.

        Returns
        -------
        (Tensor [n, heads, 1, head], Tensor [n, kv_heads, 1, head], Tensor like key)
        """
        vectors = self._check(x, norm)
        if cos.shape != sin.shape or cos.shape not in ((vectors, self.head), (1, self.head)):
            raise ValueError(
                f"expected cos and sin of [{vectors} or 1, {self.head}], got {list(cos.shape)} "
                f"and {list(sin.shape)}"
            )
        _check_floats(cos=cos, sin=sin)
        query = x.new_empty((vectors, self.heads, 1, self.head))
        key = x.new_empty((vectors, self.kv_heads, 1, self.head))
        value = x.new_empty((vectors, self.kv_heads, 1, self.head))
        self._held(vectors).before(
            x.data_ptr(),
            vectors,
            norm.data_ptr(),
            eps,
            cos.data_ptr(),
            sin.data_ptr(),
            self.head if len(cos) > 1 else 0,
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            torch.get_num_threads(),
        )
        return query, key, value

    def after(self, attended: Tensor, x: Tensor, norm: Tensor, eps: float) -> Tensor:
        """Return what the block puts out.

        Parameters
        ----------
        attended : Tensor [n, heads * head] float32
            What attention returned; contiguous.
        x : Tensor [n, width] float32
            What entered the block.
        norm : Tensor [width] float32
            Weight of the second norm.
        eps : float

        Returns
        -------
        Tensor [n, width] float32
        """
        vectors = self._check(x, norm)
        if tuple(attended.shape) != (vectors, self.heads * self.head):
            raise ValueError(
                f"expected attended of [{vectors}, {self.heads * self.head}], got "
                f"{list(attended.shape)}"
            )
        _check_floats(attended=attended)
        result = torch.empty_like(x)
        self._held(vectors).after(
            attended.data_ptr(),
            x.data_ptr(),
            vectors,
            norm.data_ptr(),
            eps,
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def _check(self, x: Tensor, norm: Tensor) -> int:
        if x.ndim != 2 or x.shape[1] != self.width or norm.shape != (self.width,):
            raise ValueError(
                f"expected x of [n, {self.width}] and norm of [{self.width}], got "
                f"{list(x.shape)} and {list(norm.shape)}"
            )
        if not 1 <= len(x) <= MAX_VECTORS:
            raise ValueError(f"expected 1..{MAX_VECTORS} tokens, got {len(x)}")
        _check_floats(x=x, norm=norm)
        return len(x)

    def _held(self, vectors: int) -> Any:
        held = self._native.get(vectors)
        if held is None:
            parts = [_native(self.weights[name], vectors) for name in LINEARS]
            held = self._native[vectors] = backend.native_module().DecoderBlock(*parts, self.head)
        return held


def _native(weight: PackedWeight | LosslessWeight, vectors: int) -> Any:
    return taken_over(weight, vectors) if isinstance(weight, PackedWeight) else weight.native


def _check_floats(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            raise TypeError(
                f"expected {name} to be contiguous float32 on the CPU, got {tensor.dtype} on "
                f"{tensor.device}"
            )
