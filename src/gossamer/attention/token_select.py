"""TokenSelect: all heads vote on which cached tokens a query, or a chunk of them, attends to."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from gossamer.attention.base import AttentionMethod, LayerState, Selection
from gossamer.kernels import Vote, VoteMemory, paged_dot, rotate, soft_votes, top_indices, vote_step
from gossamer.patterns import TokenPattern


@dataclass
class _Votes(VoteMemory):
    """The last votes, and what decode steps in native code say of them, time after time."""

    ahead: Selection | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TokenSelect(AttentionMethod):
    """Attend to sinks, recent tokens and the `top_k` cached tokens that the heads vote for.

    Scores q.k of every head with every cached key become votes softmax(q.k) summed over heads
    (unscaled on purpose, so that votes are sharp); the top_k tokens serve all heads of the
    layer. A prompt is processed in chunks whose queries are averaged for the vote; in decode, a
    query close to the last one (cosine >= cache_threshold) reuses its selection. Keys are cached
    without position encoding: scoring places every key at 0 and the query just past the local
    window, and attention numbers the selected tokens 0, 1, 2 ..., so that no position exceeds
    the budget and a model runs past its trained context.

    Based on "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via
    Dynamic Token-Level KV Cache Selection" (arXiv 2411.02886). A reused selection misses tokens
    that left the local window since it was made.

    Parameters
    ----------
    n_init, n_local, top_k : int
        First, recent and voted tokens kept (paper defaults 128, 512, 2048).
    chunk : int
        Queries of a prompt that share a vote (paper default 512); at most n_local.
    vote : {"soft", "head", "sum"}
        Sum of softmax (paper default), count of each head's own top_k, or sum of raw products.
    cache_threshold : float
        Cosine above which a selection is reused (paper default 0.9); above 1 never.
    reindex_positions : bool
        False keeps true positions, for scores and attention: comparable, no extrapolation.
    smooth_kernel : int
        Odd width of a max-pool over the votes; 0 for none (paper default).
    scale : {None, "rsqrt"}
        "rsqrt" divides products by sqrt(D) before the vote.
    score_dtype : {None, "bfloat16"}
        "bfloat16" keeps a second copy of float32 keys, rounded, for decode steps to score: half
        the bytes to read, a quarter more to keep. Attention itself reads the float32 keys.

    Examples
    --------
    >>> TokenSelect(top_k=512).budget
    1152
    """

    n_init: int = 128
    n_local: int = 512
    top_k: int = 2048
    chunk: int = 512
    vote: Literal["soft", "head", "sum"] = "soft"
    cache_threshold: float = 0.9
    reindex_positions: bool = True
    smooth_kernel: int = 0
    scale: Literal["rsqrt"] | None = None
    score_dtype: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.n_init < 0 or min(self.n_local, self.top_k, self.chunk) < 1:
            raise ValueError(
                "expected n_init >= 0 and n_local, top_k, chunk >= 1, got "
                f"{self.n_init}, {self.n_local}, {self.top_k} and {self.chunk}"
            )
        if self.chunk > self.n_local:
            raise ValueError(
                f"expected chunk <= n_local (a chunk must see itself), got {self.chunk} > "
                f"{self.n_local}"
            )
        if self.vote not in ("soft", "head", "sum") or self.scale not in (None, "rsqrt"):
            raise ValueError(
                "expected vote 'soft', 'head' or 'sum' and scale None or 'rsqrt', got "
                f"{self.vote!r} and {self.scale!r}"
            )
        if self.smooth_kernel < 0 or (self.smooth_kernel and self.smooth_kernel % 2 == 0):
            raise ValueError(f"expected smooth_kernel to be 0 or odd, got {self.smooth_kernel}")
        if self.score_dtype not in (None, "bfloat16"):
            raise ValueError(f"expected score_dtype None or 'bfloat16', got {self.score_dtype!r}")
        if not -1 <= self.cache_threshold < float("inf"):
            raise ValueError(f"expected cache_threshold >= -1, got {self.cache_threshold}")

    @property
    def budget(self) -> int:
        """Tokens a query attends to at most."""
        return self.n_init + self.top_k + self.n_local

    @property
    def rotated_keys(self) -> bool:
        return not self.reindex_positions

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        (batch, _, q_len, _), k_len = query.shape, key.shape[2]
        starts = [0] * batch if state.key_start is None else state.key_start.tolist()
        if q_len == 1 and k_len - max(starts) > self.budget:
            undo = None if self.rotated_keys else state.undo_positions()
            vote = self._decode_vote(starts, key, state, undo)
            compact, scored = vote_step(vote, query, key)
            found = self._voted_for(vote, k_len, state).voted(scored, query.shape[1], key)
            return found if found.rotary is None else replace(found, query=compact)
        state.memory = None
        raw = query if self.rotated_keys else state.without_positions(query)
        group = 1 if q_len == 1 else self.chunk
        lists: list[Tensor] = []  # of each sequence, then each group
        scored = 0
        for first in range(0, q_len, group):
            end = k_len - q_len + min(q_len, first + group)
            voted = torch.empty(0)
            if any(end - start > self.budget for start in starts):
                voter = self._voter(raw[:, :, first : first + group], state)
                begin = torch.tensor(starts, device=key.device) + self.n_init
                voted = self._vote(voter, key[:, :, :end], begin)
                scored += self._candidates(starts, end)
            for b, start in enumerate(starts):
                if end - start <= self.budget:
                    lists.append(_run(min(start, end), end, key))
                    continue
                near = _run(start, start + self.n_init, key), _run(end - self.n_local, end, key)
                lists.append(torch.cat([near[0], voted[b], near[1]]))
        if len(lists) == 1:  # nothing to pad
            indices = lists[0][None, None, None]
        else:
            indices = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)
            indices = indices.unflatten(0, (-1, batch)).transpose(0, 1)[:, None].contiguous()
        found = self._found(indices, group, query, key, scored)
        if self.rotated_keys or state.rank_rotary is None:
            return found
        longest = max(map(len, lists))
        tables = state.rank_rotary(max(1, longest))
        if len(lists) == 1 and longest >= q_len:  # its own tokens end the list
            compact = rotate(raw, *(table[longest - q_len : longest] for table in tables))
            return replace(found, query=compact, rotary=tables)
        ranks = [_own_ranks(lists[b::batch], q_len, group) for b in range(batch)]
        rank = torch.stack(ranks).to(key.device)
        compact = rotate(raw, *(table[rank][:, None] for table in tables))
        return replace(found, query=compact, rotary=tables)

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection | None:
        memory: _Votes | None = state.memory
        if memory is not None and memory.ahead is not None:
            return memory.ahead
        starts = [0] * len(key) if state.key_start is None else state.key_start.tolist()
        k_len = key.shape[2] + 1
        if self._own_count is not None or k_len - max(starts) <= self.budget:
            return None
        vote = self._decode_vote(starts, key, state)
        state.memory.ahead = self._voted_for(vote, k_len, state)
        return state.memory.ahead

    def _decode_vote(
        self,
        starts: list[int],
        key: Tensor,
        state: LayerState,
        undo: tuple[Tensor, Tensor] | None = None,
    ) -> Vote:
        """The vote of one query a sequence, all of them past the budget."""
        if state.memory is None:
            ranks, tables = [self.n_local, self.budget - 1], self._tables(state)
            state.memory = _Votes.empty(
                starts,
                sink=self.n_init,
                k=self.top_k,
                local=self.n_local,
                place=None if tables is None else (tables[0][ranks], tables[1][ranks]),
                device=key.device,
                copies=self.score_dtype is not None,
            )
        return Vote(state.memory, self.cache_threshold, undo, self._scale(key), self._own_count)

    def _voted_for(self, vote: Vote, k_len: int, state: LayerState) -> Selection:
        tokens = vote.memory.tokens[:, None, None]
        pattern = TokenPattern(tokens, group=1, k_len=k_len)
        return Selection(pattern, rotary=self._tables(state), vote=vote)

    def _tables(self, state: LayerState) -> tuple[Tensor, Tensor] | None:
        """The encoding of ranks in a full list, and of the place that a query votes from."""
        if self.rotated_keys or state.rank_rotary is None:
            return None
        return state.rank_rotary(max(self.budget, self.n_local + 1))

    def _scale(self, key: Tensor) -> float:
        return key.shape[3] ** -0.5 if self.scale == "rsqrt" else 1.0

    def _found(
        self, indices: Tensor, group: int, query: Tensor, key: Tensor, scored: int
    ) -> Selection:
        return Selection(
            TokenPattern(indices, group=group, k_len=key.shape[2]),
            searched=scored * query.shape[1],
            bytes_read=scored * key.shape[1] * key.shape[3] * key.element_size(),
        )

    def _voter(self, raw: Tensor, state: LayerState) -> Tensor:
        """Return the query [B, H, 1, D] that votes for queries [B, H, n, D] without positions."""
        query, n = raw, raw.shape[2]
        if not self.rotated_keys and state.rank_rotary is not None:
            cosine, sine = state.rank_rotary(self.n_local + n)
            query = rotate(raw, cosine[self.n_local :], sine[self.n_local :])
        return query if n == 1 else query.float().mean(2, keepdim=True).to(raw.dtype)

    def _candidates(self, starts: list[int], end: int) -> int:
        """Count the keys that are scored when the last key of a vote is `end` - 1."""
        return sum(max(0, end - self.n_local - start - self.n_init) for start in starts)

    def _vote(self, query: Tensor, key: Tensor, begin: Tensor) -> Tensor:
        """Return the voted tokens int32 [B, top_k or less], ascending, from `begin` on.

        Of a sequence with fewer candidates they mean nothing.
        """
        end = key.shape[2] - self.n_local
        scores = paged_dot(query, key, begin=begin, end=end, scale=self._scale(key))
        return top_indices(self._count(scores), min(self.top_k, key.shape[2]))

    @property
    def _own_count(self) -> Callable[[Tensor], Tensor] | None:
        """How scores become votes; None where that is what `vote_step` does by itself."""
        return None if self.vote == "soft" and not self.smooth_kernel else self._count

    def _count(self, scores: Tensor) -> Tensor:
        """Votes [B, k_len] from scores [B, H, k_len], -inf where there is no candidate."""
        barred = scores[:, 0] == -torch.inf
        if self.vote == "soft":
            votes = soft_votes(scores)
        elif self.vote == "sum":
            votes = scores.sum(1)
        else:
            own = top_indices(scores.flatten(0, 1), min(self.top_k, scores.shape[2]))
            ballots = torch.zeros_like(scores[:, 0])
            votes = ballots.scatter_add(
                1,
                own.reshape(len(scores), -1).long(),
                torch.ones_like(own, dtype=scores.dtype).reshape(len(scores), -1),
            ).masked_fill(barred, -torch.inf)
        if self.smooth_kernel > 1:
            pooled = torch.nn.functional.max_pool1d(
                votes[:, None], self.smooth_kernel, stride=1, padding=self.smooth_kernel // 2
            )
            votes = pooled[:, 0].masked_fill(barred, -torch.inf)
        return votes


def _run(first: int, end: int, like: Tensor) -> Tensor:
    """Return the tokens first .. end - 1 as int32 on the device of `like`."""
    return torch.arange(first, end, dtype=torch.int32, device=like.device)


def _own_ranks(lists: list[Tensor], q_len: int, group: int) -> Tensor:
    """Place [q_len] of each query in the list of its group; a group's own tokens end its list."""
    sizes = [min(group, q_len - first) for first in range(0, q_len, group)]
    ranks = [
        torch.arange(len(tokens) - size, len(tokens))
        for tokens, size in zip(lists, sizes, strict=True)
    ]
    return (ranks[0] if len(ranks) == 1 else torch.cat(ranks)).clamp_(min=0)
