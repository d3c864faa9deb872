"""Many decoder blocks in one call, for tokens whose keys are known beforehand or voted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.decoder_block import DecoderBlock, key_choice
from gossamer.kernels.token_vote import NativeVote, Vote, check_vote
from gossamer.patterns import TokenPattern, Window


@dataclass(eq=False)
class BlockStep:
    """One new token a sequence, about to go through a block; made by `block_step`.

    Attributes
    ----------
    key, value : Tensor [n, kv_heads, k_len, head] float32
        The caches, with room for the token at last.
    """

    block: DecoderBlock
    key: Tensor = field(repr=False)
    value: Tensor = field(repr=False)
    _record: Any = field(repr=False)
    _ballot: NativeVote | None = field(repr=False)
    _kept: tuple[Tensor | None, ...] = field(repr=False)  # what the record names by address

    def follow(self, key: Tensor, value: Tensor) -> bool:
        """Move on to the next token of the same caches; False where they are others.

        All else has to be as it was when the step was made.
        """
        here = self.key.data_ptr() == key.data_ptr() and self.value.data_ptr() == value.data_ptr()
        if not here or not (self._ballot is None or self._ballot.serves(key.shape[2])):
            return False
        self.key, self.value = key, value
        self._record.k_len = key.shape[2]
        return True


def block_step(
    block: DecoderBlock,
    key: Tensor,
    value: Tensor,
    norms: tuple[Tensor, Tensor],
    eps: tuple[float, float],
    *,
    scale: float,
    rotate_keys: bool = True,
    pattern: TokenPattern | None = None,
    window: Window | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    key_start: Tensor | None = None,
    vote: Vote | None = None,
) -> BlockStep:
    """Prepare what a block does to one new token a sequence, for `run_steps`.

    Parameters
    ----------
    block : DecoderBlock
    key, value : Tensor [n, kv_heads, k_len, head] float32
        The caches of n sequences, with room for the new tokens' own keys and values at last.
    norms, eps
        Of the two norms.
    scale, rotate_keys, pattern, window, rotary, key_start
        As in `DecoderBlock.attend` and `before`.
    vote : Vote, optional
        Brings `pattern`, which is of its memory's tokens, and the query up to date. It meets
        queries as keys are kept: rotated, or not.
    """
    vectors = key.shape[0]
    block._check_cache(vectors, key=key, value=value)
    for norm in norms:
        block._check_norm(norm)
    query = torch.empty((vectors, block.heads, 1, block.head))  # of the shape that it will have
    choice, kept = key_choice(query, key, value, scale, pattern, window, rotary, key_start)
    ballot = None
    if vote is not None:
        check_vote(vote, tuple(key.shape))
        tokens = vote.memory.tokens
        if vote.count is not None or kept[0] is None or kept[0].data_ptr() != tokens.data_ptr():
            raise ValueError("expected a vote by softmax on the tokens of the pattern")
        ballot = NativeVote(vote, key, block.heads)
    record = backend.native_module().BlockStep(
        block._held(vectors),
        norms[0].data_ptr(),
        eps[0],
        norms[1].data_ptr(),
        eps[1],
        rotate_keys,
        choice,
        None if ballot is None else ballot.record,
    )
    return BlockStep(block, key, value, record, ballot, (*norms, *kept))


def run_steps(
    steps: Sequence[BlockStep], x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, list[int]]:
    """Take tokens through block after block, in one call.

    Parameters
    ----------
    steps : sequence of BlockStep
        At least one, each run once. Their caches, and memories of votes, change in place.
    x : Tensor [n, width] or [n, 1, width] float32
        What enters the first block, contiguous.
    cos, sin : Tensor [n or 1, head] or [n or 1, 1, head] float32
        Of each token's angles, or of all tokens'; contiguous.

    Returns
    -------
    (Tensor like `x`, list of int)
        What the last block puts out, and how many keys each block's vote scored.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit each other; nothing has changed then.
    """
    first = steps[0].block
    vectors = first._check_tokens(x)
    angle_stride = first._check_angles(vectors, cos, sin)
    for step in steps:
        block = step.block
        found = step.key.shape[0], block.width, block.head
        if found != (vectors, first.width, first.head):
            raise ValueError(
                f"expected blocks for {vectors} tokens of width {first.width} and heads of "
                f"{first.head}, got {found}"
            )
    result = torch.empty(x.shape)
    voted = backend.native_module().run_steps(
        [step._record for step in steps],
        x.data_ptr(),
        vectors,
        cos.data_ptr(),
        sin.data_ptr(),
        angle_stride,
        result.data_ptr(),
        torch.get_num_threads(),
    )
    for step, (due, _) in zip(steps, voted, strict=True):
        if step._ballot is not None:
            step._ballot.note(due, step.key.shape[2])
    return result, [scored for _, scored in voted]
