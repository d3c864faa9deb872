"""Attention inside sets: every token reads the tokens of its own set and no other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.patterns.key_lists import check_least, check_tensor


@dataclass(frozen=True, eq=False)
class TokenSets:
    """Tokens dealt out to sets of one size, with repeats where a set has fewer tokens.

    Parameters
    ----------
    indices : Tensor [sets, size] int64
        The token in each slot.
    repeated : Tensor [sets, size] bool
        Slots that hold the token of the slot before again: hidden as keys, never written. Every
        token is in exactly one slot that is not repeated.
    tokens : int
        Tokens there are.

    Examples
    --------
    >>> sets = TokenSets.from_lists([[2, 0, 1], [3, 4]], size=4)
    >>> sets.indices.tolist()
    [[2, 2, 0, 1], [3, 3, 4, 4]]
    >>> sets.pairs(), sets.density(), sets.slot_efficiency()
    (13, 0.52, 0.625)
    """

    indices: Tensor = field(repr=False)
    repeated: Tensor = field(repr=False)
    tokens: int

    def __post_init__(self) -> None:
        check_tensor("indices", self.indices, torch.int64, 2)
        check_tensor("repeated", self.repeated, torch.bool, 2)
        if self.repeated.shape != self.indices.shape:
            raise ValueError(
                f"expected repeated of indices' shape {list(self.indices.shape)}, got "
                f"{list(self.repeated.shape)}"
            )
        check_least("size", self.indices.shape[1], 1)

    @classmethod
    def from_lists(cls, lists: list[list[int]], *, size: int) -> TokenSets:
        """Spread the tokens of each list evenly over a set's slots."""
        indices = torch.tensor(
            [[tokens[slot * len(tokens) // size] for slot in range(size)] for tokens in lists],
            dtype=torch.int64,
        ).reshape(len(lists), size)
        repeated = torch.zeros_like(indices, dtype=torch.bool)
        repeated[:, 1:] = indices[:, 1:] == indices[:, :-1]
        return cls(indices, repeated, sum(map(len, lists))).validate()

    def validate(self) -> TokenSets:
        """Check what the constructor does not look at: the tokens themselves.

        Raises
        ------
        ValueError
            If a token is out of range, or not in exactly one slot that is not repeated, or a
            repeated slot does not repeat the one before.
        """
        kept = self.indices[~self.repeated]
        if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < self.tokens:
            raise ValueError(
                f"expected tokens in 0..{self.tokens - 1}, got {int(kept.min())}..{int(kept.max())}"
            )
        counts = torch.bincount(kept, minlength=self.tokens)
        if bool((counts != 1).any()):
            token = int((counts != 1).nonzero()[0])
            raise ValueError(
                f"expected each token in one slot, got token {token} in {int(counts[token])}"
            )
        before = self.indices.roll(1, 1)
        if bool(self.repeated[:, 0].any()) or bool((before != self.indices)[self.repeated].any()):
            raise ValueError("expected a repeated slot to hold the token of the slot before")
        return self

    def to_mask(self) -> Tensor:
        """Return the bool mask [tokens, tokens] of the keys that each query reads."""
        owner = torch.empty(self.tokens, dtype=torch.int64, device=self.indices.device)
        rows = torch.arange(len(self.indices), device=owner.device)[:, None]
        owner[self.indices[~self.repeated]] = rows.expand_as(self.indices)[~self.repeated]
        return owner[:, None] == owner

    def pairs(self) -> int:
        """Count the (query, key) pairs computed, of one head."""
        return int((~self.repeated).sum(1).square().sum())

    def density(self) -> float:
        """Return the share of all (query, key) pairs that is computed."""
        return self.pairs() / max(1, self.tokens**2)

    def slot_efficiency(self) -> float:
        """Return the share of slots that are not repeated."""
        return self.tokens / max(1, self.indices.numel())
