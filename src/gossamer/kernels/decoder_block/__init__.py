"""A decoder block for a few tokens, in one call before keys are chosen and one call after.

A small model decodes a token in milliseconds, most of which goes into starting some twenty tiny
operations a layer; here a layer starts two, and with `steps` none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.lossless_gemv import LosslessWeight
from gossamer.kernels.packed import PackedWeight
from gossamer.kernels.sparse_gemv import MAX_VECTORS, taken_over
from gossamer.kernels.validation import (
    check_key_start,
    check_pattern,
    check_rotary,
    check_scale,
)
from gossamer.patterns import TokenPattern, Window

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
        self,
        x: Tensor,
        norm: Tensor,
        eps: float,
        cos: Tensor,
        sin: Tensor,
        *,
        into: tuple[Tensor, Tensor] | None = None,
        rotate_keys: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of tokens.

        Parameters
        ----------
        x : Tensor [n, width] or [n, 1, width] float32
            1 to 16 tokens, contiguous.
        norm : Tensor [width] float32
            Weight of the norm.
        eps : float
        cos, sin : Tensor [n or 1, head] or [n or 1, 1, head] float32
            Of each token's angles, or of all tokens'; contiguous.
        into : (keys, values), Tensor [n, kv_heads, k_len, head] float32, optional
            Caches whose last token is written, and which are returned in place of new tensors.
        rotate_keys : bool

        Returns
        -------
        (Tensor [n, heads, 1, head], Tensor [n, kv_heads, 1, head], Tensor like key)
        """
        vectors = self._check(x, norm)
        angle_stride = self._check_angles(vectors, cos, sin)
        query = torch.empty((vectors, self.heads, 1, self.head))
        if into is None:
            shape = vectors, self.kv_heads, 1, self.head
            into = torch.empty(shape), torch.empty(shape)
        key, value = into
        self._check_cache(vectors, key=key, value=value)
        self._held(vectors).before(
            x.data_ptr(),
            vectors,
            norm.data_ptr(),
            eps,
            cos.data_ptr(),
            sin.data_ptr(),
            angle_stride,
            query.data_ptr(),
            _cache(key),
            _cache(value),
            key.shape[2],
            rotate_keys,
            torch.get_num_threads(),
        )
        return query, key, value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        x: Tensor,
        norm: Tensor,
        eps: float,
        *,
        scale: float,
        pattern: TokenPattern | None = None,
        window: Window | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        key_start: Tensor | None = None,
    ) -> Tensor:
        """Attend, then do what `after` does.

        Parameters
        ----------
        query : Tensor [n, heads, 1, head] float32
        key, value : Tensor [n, kv_heads, k_len, head] float32
            The caches of n sequences, the tokens' own keys last.
        x, norm, eps
            As in `after`.
        scale : float
            Of the products.
        pattern : TokenPattern, optional
            The tokens attended to: one list a sequence, or one a key head; None for all.
        window : Window, optional
            Without a pattern: hides keys between its sink and its local part.
        rotary : (cosine, sine), Tensor [width, head / 2] float32 or longer, optional
            With a pattern: rotates each listed key by its place in the list.
        key_start : Tensor [n] int64, optional
            First real key of each sequence.

        Returns
        -------
        Tensor like `x`
        """
        vectors = self._check(x, norm)
        self._check_cache(vectors, key=key, value=value)
        if tuple(query.shape) != (vectors, self.heads, 1, self.head):
            raise ValueError(
                f"expected query of [{vectors}, {self.heads}, 1, {self.head}], got "
                f"{list(query.shape)}"
            )
        query = query.contiguous()  # a method may have made it anew
        _check_floats(query=query)
        choice, _kept = key_choice(query, key, value, scale, pattern, window, rotary, key_start)
        result = torch.empty(x.shape)
        self._held(vectors).attend(
            query.data_ptr(),
            choice,
            x.data_ptr(),
            vectors,
            norm.data_ptr(),
            eps,
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result

    def after(self, attended: Tensor, x: Tensor, norm: Tensor, eps: float) -> Tensor:
        """Return what the block puts out.

        Parameters
        ----------
        attended : Tensor [n, heads * head] float32
            What attention returned; contiguous.
        x : Tensor [n, width] or [n, 1, width] float32
            What entered the block.
        norm : Tensor [width] float32
            Weight of the second norm.
        eps : float

        Returns
        -------
        Tensor like `x`
        """
        vectors = self._check(x, norm)
        if tuple(attended.shape) != (vectors, self.heads * self.head):
            raise ValueError(
                f"expected attended of [{vectors}, {self.heads * self.head}], got "
                f"{list(attended.shape)}"
            )
        _check_floats(attended=attended)
        result = torch.empty(x.shape)
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
        self._check_norm(norm)
        return self._check_tokens(x)

    def _check_tokens(self, x: Tensor) -> int:
        vectors = x.shape[0] if x.ndim > 1 else 0
        if x.numel() != vectors * self.width:
            raise ValueError(f"expected x of [n, {self.width}], got {list(x.shape)}")
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"expected 1..{MAX_VECTORS} tokens, got {vectors}")
        _check_floats(x=x)
        return vectors

    def _check_norm(self, norm: Tensor) -> None:
        if norm.shape != (self.width,):
            raise ValueError(f"expected norm of [{self.width}], got {list(norm.shape)}")
        _check_floats(norm=norm)

    def _check_angles(self, vectors: int, cos: Tensor, sin: Tensor) -> int:
        """Return what lies between the angles of two tokens."""
        angles = cos.shape[0] if cos.ndim else 0
        if (
            cos.shape != sin.shape
            or angles not in (1, vectors)
            or cos.numel() != angles * self.head
        ):
            raise ValueError(
                f"expected cos and sin of [{vectors} or 1, {self.head}], got {list(cos.shape)} "
                f"and {list(sin.shape)}"
            )
        _check_floats(cos=cos, sin=sin)
        return self.head if angles > 1 else 0

    def _check_cache(self, vectors: int, **parts: Tensor) -> None:
        length = parts["key"].shape[2] if parts["key"].ndim == 4 else 0
        wanted = (vectors, self.kv_heads, max(1, length), self.head)
        for name, part in parts.items():
            if part.shape != wanted or part.stride(3) != 1:
                raise ValueError(
                    f"expected {name} of {list(wanted)} with contiguous heads, got "
                    f"{list(part.shape)}"
                )
            if part.dtype is not torch.float32 or not part.is_cpu:
                raise TypeError(
                    f"expected {name} to be float32 on the CPU, got {part.dtype} on {part.device}"
                )

    def _held(self, vectors: int) -> Any:
        held = self._native.get(vectors)
        if held is None:
            parts = [_native(self.weights[name], vectors) for name in LINEARS]
            held = self._native[vectors] = backend.native_module().DecoderBlock(*parts, self.head)
        return held


def _native(weight: PackedWeight | LosslessWeight, vectors: int) -> Any:
    return taken_over(weight, vectors) if isinstance(weight, PackedWeight) else weight.native


def key_choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    pattern: TokenPattern | None,
    window: Window | None,
    rotary: tuple[Tensor, Tensor] | None,
    key_start: Tensor | None,
) -> tuple[Any, tuple[Tensor | None, ...]]:
    """Return what native code attends to, and the tensors that it names by their addresses."""
    ids = cosine = sine = None
    if pattern is not None:
        check_pattern(pattern, (TokenPattern,), query, key)
        ids = pattern.indices.contiguous()
    lists, width = (0, 0) if ids is None else ids.shape[1::2]
    if rotary is not None:
        check_rotary(rotary, width, query)
        cosine, sine = (table.contiguous() for table in rotary)
    start = check_key_start(key_start, key)
    choice = backend.native_module().KeyChoice(
        _cache(key),
        _cache(value),
        key.shape[2],
        check_scale(scale, key.shape[3]),
        0 if window is None else window.sink,
        0 if window is None else window.local,
        _address(start),
        _address(ids),
        lists,
        width,
        _address(cosine),
        _address(sine),
    )
    return choice, (ids, cosine, sine, start)


def _cache(rows: Tensor) -> tuple[int, int, int, int]:
    """Where [n, heads, k_len, head] float32 begin, and what lies between its rows."""
    sequence, head, row, _ = rows.stride()
    return rows.data_ptr(), sequence, head, row


def _address(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()


def _check_floats(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            raise TypeError(
                f"expected {name} to be contiguous float32 on the CPU, got {tensor.dtype} on "
                f"{tensor.device}"
            )
