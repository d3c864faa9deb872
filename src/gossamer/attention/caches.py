"""Key-value memory of one layer: preallocated, growing, forked without a copy."""

from __future__ import annotations

from weakref import WeakSet

from torch import Tensor

from gossamer.kernels.memory import HUGE_PAGE, empty_aligned, use_huge_pages


class _Buffer:
    """Room for keys and values [B, H, capacity, D], shared by the stores that were forked."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value
        self.users: WeakSet[KeyValueStore] = WeakSet()
        self._advised = False

    def expect(self, tokens: int) -> None:
        """Move to huge pages once `tokens` fill half of one a head: no more than twice the need."""
        if self._advised:
            return
        if tokens * self.key.shape[3] * self.key.element_size() >= HUGE_PAGE // 2:
            self._advised = True
            for part in (self.key, self.value):
                use_huge_pages(part)


class KeyValueStore:
    """The keys and values a layer has seen, in one buffer that decode steps never copy.

    A fork shares its parent's buffer. Whoever appends first writes behind the shared part in
    place; a store copies only when another living one still reads the place it would write to.

    Parameters
    ----------
    reserve : int
        Tokens to allocate at least. On CPU untouched pages cost no memory, so reserving a
        model's full context is free; past it the buffer doubles.

    Examples
    --------
    >>> import torch
    >>> store = KeyValueStore(reserve=8)
    >>> keys, values = store.append(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    >>> branch = store.fork()
    >>> branch.append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))[0].shape
    torch.Size([1, 2, 4, 4])
    >>> store.length, branch.copies
    (3, 0)
    """

    def __init__(self, reserve: int = 0) -> None:
        self.reserve = reserve
        self.length = 0
        self.copies = 0  # times the past was copied
        self._buffer: _Buffer | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens and return views of everything stored.

        Parameters
        ----------
        key, value : Tensor [B, H, n, D]

        Returns
        -------
        (key, value), Tensor [B, H, length, D]

        Raises
        ------
        ValueError
            If the shape or dtype differs from what is stored.
        """
        start, count = self.length, key.shape[2]
        if self._buffer is None:
            self._move(key, value, max(self.reserve, count))
        self._check(key, value)
        keys, values = self.extend(count)
        keys.narrow(2, start, count).copy_(key)
        values.narrow(2, start, count).copy_(value)
        return keys, values

    def extend(self, count: int) -> tuple[Tensor, Tensor]:
        """Add tokens that the caller writes; return views of everything stored, them included.

        Parameters
        ----------
        count : int

        Returns
        -------
        (key, value), Tensor [B, H, length, D]
        """
        end = self.length + count
        self._room(end).expect(end)
        self.length = end
        return self.view()

    def view(self) -> tuple[Tensor, Tensor]:
        """Return the stored keys and values [B, H, length, D] without a copy."""
        buffer, length = self._held(), self.length
        return buffer.key.narrow(2, 0, length), buffer.value.narrow(2, 0, length)

    def mark(self) -> int:
        """Return a point to roll back to."""
        return self.length

    def rollback(self, mark: int) -> None:
        """Forget every token after `mark`."""
        if not 0 <= mark <= self.length:
            raise ValueError(f"expected a mark in 0..{self.length}, got {mark}")
        self.length = mark

    def fork(self) -> KeyValueStore:
        """Return a store with the same tokens; the two grow apart from here."""
        branch = KeyValueStore(self.reserve)
        branch.length = self.length
        branch._buffer = self._buffer
        if self._buffer is not None:
            self._buffer.users.add(branch)
        return branch

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows `rows` [n] int64, in that order (beam search)."""
        if self._buffer is None:
            return
        key, value = (part.index_select(0, rows.to(part.device)) for part in self.view())
        self._move(key, value, self._buffer.key.shape[2])

    def nbytes(self) -> int:
        """Return the bytes of the tokens stored, keys and values."""
        if self._buffer is None:
            return 0
        return sum(part.numel() * part.element_size() for part in self.view())

    def _check(self, key: Tensor, value: Tensor) -> None:
        """Refuse tokens unlike the stored ones."""
        stored = self._held()
        for name, new, old in (("key", key, stored.key), ("value", value, stored.value)):
            batch, heads, _, dim = old.shape
            shape = batch, heads, key.shape[2], dim
            if new.shape != shape or new.dtype != old.dtype:
                raise ValueError(
                    f"expected {name} like the stored, {list(shape)} {old.dtype}, got "
                    f"{list(new.shape)} {new.dtype}"
                )

    def _held(self) -> _Buffer:
        if self._buffer is None:
            raise ValueError("expected a store with tokens, got an empty one; append first")
        return self._buffer

    def _room(self, end: int) -> _Buffer:
        """The buffer to write tokens length .. end - 1 to, moved first if need be."""
        buffer = self._held()
        capacity = buffer.key.shape[2]
        free = end <= capacity
        if len(buffer.users) > 1:  # besides this store
            free &= all(user.length <= self.length for user in buffer.users if user is not self)
        if free:
            return buffer
        self.copies += 1
        return self._move(*self.view(), capacity if end <= capacity else max(2 * capacity, end))

    def _move(self, key: Tensor, value: Tensor, capacity: int) -> _Buffer:
        """Copy the first `length` tokens of key and value into a buffer of this store's own."""
        if self._buffer is not None:
            self._buffer.users.discard(self)
        room = [
            empty_aligned((*part.shape[:2], capacity, part.shape[3]), part.dtype, part.device)
            for part in (key, value)
        ]
        self._buffer = _Buffer(*room)
        self._buffer.expect(self.length)
        for fresh, part in zip(room, (key, value), strict=True):
            fresh[:, :, : self.length] = part[:, :, : self.length]
        self._buffer.users.add(self)
        return self._buffer
