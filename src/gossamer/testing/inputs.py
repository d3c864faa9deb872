"""Inputs that find bugs: shapes off the powers of two, awkward values, awkward strides."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Values = Literal[
    "normal", "integers", "equal", "huge logit", "large value", "denormal", "negative zero"
]
VALUES: tuple[Values, ...] = (
    "normal",
    "integers",
    "equal",
    "huge logit",
    "large value",
    "denormal",
    "negative zero",
)
HUGE_LOGIT = 1e4


class AttentionShape(NamedTuple):
    """Sizes of one attention problem.

    Examples
    --------
    >>> AttentionShape(1, 6, 2, 100, 130, 64).tiles(64, 64)
    (1, 6, 2, 3)
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    k_len: int
    dim: int

    def tiles(self, height: int, width: int, heads: int | None = None) -> tuple[int, int, int, int]:
        """Return the mask shape of a pattern whose entries are `height` queries by `width` keys."""
        lists = self.heads if heads is None else heads
        return (self.batch, lists, -(-self.q_len // height), -(-self.k_len // width))


SHAPES: tuple[AttentionShape, ...] = (
    AttentionShape(1, 1, 1, 0, 0, 64),
    AttentionShape(0, 2, 1, 65, 65, 64),
    AttentionShape(1, 1, 1, 1, 1, 1),
    AttentionShape(1, 3, 1, 2, 2, 8),
    AttentionShape(2, 8, 1, 63, 63, 33),
    AttentionShape(1, 3, 3, 64, 64, 64),
    AttentionShape(3, 3, 1, 65, 65, 80),
    AttentionShape(2, 6, 2, 127, 127, 128),
    AttentionShape(1, 2, 1, 1000, 1000, 64),
    AttentionShape(1, 1, 1, 1025, 1025, 8),
    AttentionShape(2, 8, 1, 1, 1000, 64),  # decode
    AttentionShape(1, 6, 2, 1, 1025, 80),
    AttentionShape(1, 3, 1, 5, 127, 33),  # a short chunk: few rows, several positions
    AttentionShape(1, 2, 2, 17, 64, 1),  # one row more than few
    AttentionShape(2, 3, 1, 63, 127, 64),  # a chunk of a prefill
    AttentionShape(1, 1, 1, 65, 1000, 128),
)


def attention_inputs(
    shape: AttentionShape,
    *,
    dtype: torch.dtype = torch.float32,
    values: Values = "normal",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw query, key and value.

    Parameters
    ----------
    shape : AttentionShape
    dtype : torch.dtype
    values : str
        "normal" is the standard normal; "integers" are -2..2, so that products and their sums
        are exact in any order; "huge logit" is normal but for one key, whose scaled logit is 1e4
        for every query; the others are what they say.
    seed : int

    Returns
    -------
    query : Tensor [B, H, q_len, D]
    key, value : Tensor [B, H_kv, k_len, D]

    Raises
    ------
    ValueError
        If `values` is unknown.

    Examples
    --------
    >>> query, key, value = attention_inputs(AttentionShape(1, 6, 2, 10, 12, 4))
    >>> query.shape, key.shape
    (torch.Size([1, 6, 10, 4]), torch.Size([1, 2, 12, 4]))
    """
    if values not in VALUES:
        raise ValueError(f"expected values to be one of {', '.join(VALUES)}, got {values!r}")
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, tokens: int) -> Tensor:
        size = (shape.batch, heads, tokens, shape.dim)
        if values == "integers":
            return torch.randint(-2, 3, size, generator=generator).float()
        return torch.randn(size, generator=generator)

    query = draw(shape.heads, shape.q_len)
    key, value = draw(shape.kv_heads, shape.k_len), draw(shape.kv_heads, shape.k_len)
    for tensor in (query, key, value):
        if values == "equal":
            tensor.fill_(1.0)
        elif values == "negative zero":
            tensor.fill_(-0.0)
        elif values == "denormal":
            tensor.mul_(1e-39)
    if values == "large value":
        value.mul_(1e30)
    elif values == "huge logit" and shape.k_len:
        query[..., 0] = 1.0
        key[:, :, shape.k_len // 2] = 0.0
        key[:, :, shape.k_len // 2, 0] = HUGE_LOGIT * shape.dim**0.5
    return query.to(dtype), key.to(dtype), value.to(dtype)


def random_mask(shape: tuple[int, ...], *, density: float = 0.5, seed: int = 0) -> Tensor:
    """Draw a bool mask that keeps each element with probability `density`.

    Examples
    --------
    >>> from gossamer.patterns import BlockPattern
    >>> tiles = AttentionShape(1, 2, 1, 100, 100, 8).tiles(64, 64)
    >>> BlockPattern.from_mask(random_mask(tiles), block=64).shape
    (1, 2, 2, 2)
    """
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def rotary_tables(ranks: int, dim: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, float32 [ranks, dim / 2], of rotary embedding by rank.

    Examples
    --------
    >>> cosine, sine = rotary_tables(3, 4)
    >>> cosine[0].tolist(), sine[0].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(ranks, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def _tokens_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _sliced(tensor: Tensor) -> Tensor:
    batch, heads, tokens, dim = tensor.shape
    shape = (batch + 1, heads + 1, 2 * tokens + 1, dim + 3)
    view = tensor.new_full(shape, torch.nan)[1:, 1:, 1::2, 2:-1]
    return view.copy_(tensor)


def _dim_strided(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens first": _tokens_first,  # [B, T, H, D] in memory, as models make it
    "sliced": _sliced,  # every second token of a larger buffer, NaN in between
    "dim strided": _dim_strided,
}
"""Ways to lay a [B, H, T, D] tensor out in memory; each returns the same values."""
