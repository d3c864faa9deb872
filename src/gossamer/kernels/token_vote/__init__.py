"""TokenSelect's decode step: reuse the tokens that were voted for last, or vote anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import dispatched
from gossamer.kernels.token_vote import reference
from gossamer.kernels.validation import check_attention, check_scale, unit_stride

Tables = tuple[Tensor, Tensor]


@dataclass
class VoteMemory:
    """The last votes of each sequence of a running batch, and the queries that cast them.

    Parameters
    ----------
    tokens : Tensor [B, sink + k + local] int32
        Sinks, voted tokens and recent ones, ascending. `vote_step` writes to it.
    sink, local : int
        How many of them are sinks, and recent.
    begin : Tensor [B] int64
        The first token that may be voted for.
    place : (cosine, sine), Tensor [2, D / 2] float32, optional
        Of the places that a query has while it votes, and while it attends.
    query : Tensor [B, H, 1, D] or None
        The query that cast each sequence's votes; None before the first ones.
    hits, asked : int
        Sequences that reused their votes, and sequences that could have.
    """

    tokens: Tensor
    sink: int
    local: int
    begin: Tensor
    place: Tables | None = field(default=None, repr=False)
    query: Tensor | None = field(default=None, repr=False)
    hits: int = 0
    asked: int = 0

    @classmethod
    def empty(
        cls,
        starts: list[int],
        *,
        sink: int,
        k: int,
        local: int,
        device: torch.device,
        place: Tables | None = None,
    ) -> VoteMemory:
        """Make room for sequences whose first tokens are `starts`.

        Examples
        --------
        >>> cpu = torch.device("cpu")
        >>> VoteMemory.empty([0, 3], sink=2, k=4, local=8, device=cpu).begin.tolist()
        [2, 5]
        """
        first = torch.tensor(starts, device=device)
        tokens = torch.empty(len(starts), sink + k + local, dtype=torch.int32, device=device)
        tokens[:, :sink] = first[:, None] + torch.arange(sink, device=device)
        return cls(tokens, sink, local, first + sink, place)


def vote_step(
    memory: VoteMemory,
    query: Tensor,
    key: Tensor,
    *,
    threshold: float,
    undo: Tables | None = None,
    scale: float = 1.0,
    count: Callable[[Tensor], Tensor] | None = None,
    impl: backend.Impl = "auto",
) -> tuple[Tensor, int]:
    """Bring a batch's tokens up to date for one new query a sequence.

    A sequence whose query points where the one that voted last did (cosine over all heads at
    least `threshold`) keeps its voted tokens; the others vote: the k tokens with the largest sum
    over heads of softmax(scale q.k), out of those between the sinks and the recent ones.

    Parameters
    ----------
    memory : VoteMemory
        Changed in place.
    query : Tensor [B, H, 1, D]
        As the model encoded its position.
    key : Tensor [B, H_kv, k_len, D]
        The whole cache, of more than sink + k + local tokens a sequence.
    threshold : float
        Above 1: always vote.
    undo : (cosine, sine), Tensor [B or 1, 1, D / 2] float32, optional
        Take the query's encoding off.
    scale : float
    count : callable, optional
        ``count(scores [B, H, k_len]) -> votes [B, k_len]``, both -inf at tokens that are no
        candidates; instead of the sum of softmax.
    impl : {"auto", "reference", "cpu"}
        The C++ step takes float32 and counts by softmax; "auto" falls back for others.

    Returns
    -------
    query : Tensor [B, H, 1, D]
        As it attends.
    scored : int
        Keys that were scored, over the batch.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or tables do not fit.
    """
    check_attention(query, key, None, causal=False)
    (batch, _, q_len, dim), (sequences, width) = query.shape, memory.tokens.shape
    if q_len != 1 or sequences != batch or key.shape[2] < width:
        raise ValueError(
            f"expected one query of {sequences} sequences and {width} keys or more, got "
            f"{list(query.shape)} and {key.shape[2]} keys"
        )
    if undo is not None:
        _check_tables("undo", undo, ((1, 1, dim // 2), (batch, 1, dim // 2)))
    if memory.place is not None:
        _check_tables("place", memory.place, ((2, dim // 2),))
    scale = check_scale(scale, dim)
    chosen = backend.choose(impl, query.device, backend.WITHOUT_TRITON)
    fits = query.dtype is torch.float32 and count is None
    if impl == "cpu" and not fits:
        raise TypeError("expected float32, and votes by softmax, for impl='cpu'")
    if chosen != "cpu" or not fits or (impl == "auto" and dispatched()):
        return reference.vote_step(memory, query, key, threshold, undo, scale, count)
    return _native(memory, query, unit_stride(key), threshold, undo, scale)


def _check_tables(name: str, tables: Tables, shapes: tuple[tuple[int, ...], ...]) -> None:
    for table in tables:
        if table.dtype is not torch.float32 or table.shape not in shapes:
            raise ValueError(
                f"expected {name} to be float32 tables of {list(shapes[-1])}, got {table.dtype} "
                f"{list(table.shape)}"
            )


def _native(
    memory: VoteMemory,
    query: Tensor,
    key: Tensor,
    threshold: float,
    undo: Tables | None,
    scale: float,
) -> tuple[Tensor, int]:
    fresh = memory.query is None
    if memory.query is None:
        memory.query = torch.empty(query.shape)
    query, out = query.contiguous(), torch.empty(query.shape)
    sequence, head, row, _ = key.stride()
    none = (None, None)
    tables = [None if part is None else part.contiguous() for part in (undo or none)]
    places = [None if part is None else part.contiguous() for part in (memory.place or none)]
    due, scored = backend.native_module().token_vote(
        query.data_ptr(),
        query.shape,
        (key.data_ptr(), sequence, head, row),
        key.shape[1],
        key.shape[2],
        memory.begin.data_ptr(),
        *(0 if table is None else table.data_ptr() for table in (*tables, *places)),
        0 if undo is None or undo[0].shape[0] == 1 else query.shape[3] // 2,
        scale,
        threshold,
        fresh,
        memory.query.data_ptr(),
        memory.tokens.data_ptr(),
        memory.tokens.shape[1],
        memory.sink,
        memory.local,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if not fresh:
        memory.asked += query.shape[0]
        memory.hits += query.shape[0] - due
    return out, scored
