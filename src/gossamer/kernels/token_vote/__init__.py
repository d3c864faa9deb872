"""TokenSelect's decode step: reuse the tokens that were voted for last, or vote anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import dispatched
from gossamer.kernels.memory import empty_aligned, use_huge_pages
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
    copies : bool
        Whether votes score a bfloat16 copy of float32 keys: half as much to read.
    copy : Tensor [B, H_kv, room, D] bfloat16 or None
        That copy.
    copied : int
        Tokens that it has.
    """

    tokens: Tensor
    sink: int
    local: int
    begin: Tensor
    place: Tables | None = field(default=None, repr=False)
    query: Tensor | None = field(default=None, repr=False)
    hits: int = 0
    asked: int = 0
    copies: bool = False
    copy: Tensor | None = field(default=None, repr=False)
    copied: int = 0

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
        copies: bool = False,
    ) -> Self:
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
        return cls(tokens, sink, local, first + sink, place, copies=copies)

    @property
    def nbytes(self) -> int:
        """Bytes of the copied keys."""
        return 0 if self.copy is None else self.copy[:, :, : self.copied].nbytes

    def make_room(self, key: Tensor) -> Tensor | None:
        """Return a copy with room for the keys [B, H_kv, k_len, D], if there is to be one."""
        if not self.copies or key.dtype is not torch.float32:
            return None
        if self.copy is None or self.copy.shape[2] < key.shape[2]:
            batch, heads, k_len, dim = key.shape  # pages that are not touched cost nothing
            room = empty_aligned((batch, heads, 2 * k_len, dim), torch.bfloat16, key.device)
            use_huge_pages(room)
            if self.copy is not None:
                room[:, :, : self.copied] = self.copy[:, :, : self.copied]
            self.copy = room
        return self.copy


@dataclass(frozen=True, eq=False)
class Vote:
    """How the tokens of a batch are brought up to date for one new query a sequence.

    A sequence whose query points where the one that voted last did (cosine over all heads at
    least `threshold`) keeps its voted tokens; the others vote: the k tokens with the largest sum
    over heads of softmax(scale q.k), out of those between the sinks and the recent ones.

    Parameters
    ----------
    memory : VoteMemory
        `vote_step` changes it in place.
    threshold : float
        Above 1: always vote.
    undo : (cosine, sine), Tensor [B or 1, 1, D / 2] float32, optional
        Take the query's encoding off.
    scale : float
    count : callable, optional
        ``count(scores [B, H, k_len]) -> votes [B, k_len]``, both -inf at tokens that are no
        candidates; instead of the sum of softmax.
    """

    memory: VoteMemory
    threshold: float
    undo: Tables | None = field(default=None, repr=False)
    scale: float = 1.0
    count: Callable[[Tensor], Tensor] | None = None


def vote_step(
    vote: Vote, query: Tensor, key: Tensor, *, impl: backend.Impl = "auto"
) -> tuple[Tensor, int]:
    """Bring a batch's tokens up to date for one new query a sequence, as `vote` says.

    Parameters
    ----------
    vote : Vote
    query : Tensor [B, H, 1, D]
        As the model encoded its position.
    key : Tensor [B, H_kv, k_len, D]
        The whole cache, of more than sink + k + local tokens a sequence.
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
    if query.shape[2] != 1:
        raise ValueError(f"expected one query a sequence, got {list(query.shape)}")
    check_vote(vote, tuple(key.shape))
    chosen = backend.choose(impl, query.device, backend.WITHOUT_TRITON)
    fits = query.dtype is torch.float32 and vote.count is None
    if impl == "cpu" and not fits:
        raise TypeError("expected float32, and votes by softmax, for impl='cpu'")
    if chosen != "cpu" or not fits or (impl == "auto" and dispatched()):
        return reference.vote_step(vote, query, key)
    return _native(vote, query.contiguous(), unit_stride(key))


def check_vote(vote: Vote, key_shape: tuple[int, ...]) -> None:
    """Refuse a vote that does not fit a cache [B, H_kv, k_len, D]."""
    (batch, _, k_len, dim), memory = key_shape, vote.memory
    sequences, width = memory.tokens.shape
    if sequences != batch or k_len < width:
        raise ValueError(
            f"expected {sequences} sequences and {width} keys or more, got {batch} and {k_len}"
        )
    if vote.undo is not None:
        _check_tables("undo", vote.undo, ((1, 1, dim // 2), (batch, 1, dim // 2)))
    if memory.place is not None:
        _check_tables("place", memory.place, ((2, dim // 2),))
    check_scale(vote.scale, dim)


def _check_tables(name: str, tables: Tables, shapes: tuple[tuple[int, ...], ...]) -> None:
    for table in tables:
        if table.dtype is not torch.float32 or table.shape not in shapes:
            raise ValueError(
                f"expected {name} to be float32 tables of {list(shapes[-1])}, got {table.dtype} "
                f"{list(table.shape)}"
            )


class NativeVote:
    """A vote that was checked, as native code casts it, and what its addresses name.

    Parameters
    ----------
    vote : Vote
    key : Tensor [B, H_kv, k_len, D] float32
    heads : int
        Of the queries.
    """

    def __init__(self, vote: Vote, key: Tensor, heads: int) -> None:
        memory, dim = vote.memory, key.shape[3]
        batch, width = memory.tokens.shape
        self.vote = vote
        self.last = torch.empty(batch, heads, 1, dim) if memory.query is None else memory.query
        pairs = vote.undo or (None, None), memory.place or (None, None)
        self.copy = memory.make_room(key)
        copy = (0, 0, 0, 0)
        if self.copy is not None:
            copy = (self.copy.data_ptr(), *self.copy.stride()[:3])
        self.tables = [None if t is None else t.contiguous() for pair in pairs for t in pair]
        undo_cosine, undo_sine, *place = (0 if t is None else t.data_ptr() for t in self.tables)
        self.record = backend.native_module().TokenVote(
            memory.begin.data_ptr(),
            undo_cosine,
            undo_sine,
            0 if vote.undo is None or len(vote.undo[0]) == 1 else dim // 2,
            *place,
            vote.scale,
            vote.threshold,
            memory.query is None,
            self.last.data_ptr(),
            memory.tokens.data_ptr(),
            width,
            memory.sink,
            memory.local,
            copy,
            memory.copied,
        )

    def serves(self, k_len: int) -> bool:
        """Whether the memory is where the vote looks for it, with room for so many keys."""
        memory = self.vote.memory
        roomy = self.copy is None or self.copy.shape[2] >= k_len
        same = memory.copy is self.copy and memory.copied == self.record.copied
        return memory.query is self.last and same and roomy

    def note(self, due: int, k_len: int) -> None:
        """Remember that the vote was cast, by `due` sequences that have so many keys."""
        memory = self.vote.memory
        if due and self.copy is not None:
            memory.copied = self.record.copied = k_len - memory.local
        if memory.query is None:
            memory.query, self.record.fresh = self.last, False
            return
        memory.asked += self.last.shape[0]
        memory.hits += self.last.shape[0] - due


def _native(vote: Vote, query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    heads, (sequence, head, row, _) = query.shape[1], key.stride()
    ballot, attends = NativeVote(vote, key, heads), torch.empty(query.shape)
    due, scored = backend.native_module().token_vote(
        ballot.record,
        query.data_ptr(),
        query.shape,
        (key.data_ptr(), sequence, head, row),
        key.shape[1],
        key.shape[2],
        attends.data_ptr(),
        torch.get_num_threads(),
    )
    ballot.note(due, key.shape[2])
    return attends, scored
