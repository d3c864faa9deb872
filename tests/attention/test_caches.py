import gc

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from gossamer.attention import KeyValueStore

HEADS, DIM = 2, 3


def tokens(numbers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Keys and values whose every element tells which token of which row it is."""
    number = torch.tensor(numbers, dtype=torch.float32)[:, None, :, None]
    key = number.expand(-1, HEADS, -1, DIM) + torch.arange(HEADS)[:, None, None] * 1e4
    return key, -key


class Model:
    """A store as a plain list of token numbers a row, with the buffer it should be writing to."""

    def __init__(self, store: KeyValueStore, batch: int) -> None:
        self.store = store
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.buffer: object | None = None
        self.capacity = 0
        self.copies = 0

    def __len__(self) -> int:
        return len(self.rows[0])


class StoreMachine(RuleBasedStateMachine):
    """Append, fork, roll back, reorder and drop stores; compare each with its plain model."""

    @initialize(batch=st.integers(1, 2), reserve=st.integers(0, 8))
    def begin(self, batch: int, reserve: int) -> None:
        self.reserve, self.next_token = reserve, 0
        self.models = [Model(KeyValueStore(reserve), batch)]

    def pick(self, data: st.DataObject) -> Model:
        return self.models[data.draw(st.integers(0, len(self.models) - 1))]

    @rule(data=st.data(), count=st.integers(1, 5))
    def append(self, data: st.DataObject, count: int) -> None:
        model = self.pick(data)
        first, end = self.next_token, len(model) + count
        self.next_token += count * len(model.rows)
        new = [
            list(range(first + row * count, first + (row + 1) * count))
            for row in range(len(model.rows))
        ]
        sharers = [m for m in self.models if m is not model and m.buffer is model.buffer]
        if model.buffer is None:
            model.buffer, model.capacity = object(), max(self.reserve, end)
        elif end > model.capacity:
            model.buffer, model.capacity = object(), max(2 * model.capacity, end)
            model.copies += 1
        elif any(len(other) > len(model) for other in sharers):
            model.buffer = object()
            model.copies += 1
        model.rows = [row + added for row, added in zip(model.rows, new, strict=True)]
        model.store.append(*tokens(new))

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        model = self.pick(data)
        branch = Model(model.store.fork(), len(model.rows))
        branch.rows = [list(row) for row in model.rows]
        branch.buffer, branch.capacity = model.buffer, model.capacity
        self.models.append(branch)

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        model = self.pick(data)
        mark = data.draw(st.integers(0, len(model)))
        model.store.rollback(mark)
        model.rows = [row[:mark] for row in model.rows]

    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        model = self.pick(data)
        if model.buffer is None:
            return
        chosen = data.draw(st.lists(st.integers(0, len(model.rows) - 1), min_size=1, max_size=3))
        model.store.select(torch.tensor(chosen))
        model.rows = [list(model.rows[row]) for row in chosen]
        model.buffer = object()

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if len(self.models) > 1:
            self.models.remove(self.pick(data))

    @invariant()
    def agrees(self) -> None:
        for model in getattr(self, "models", []):
            assert model.store.length == model.store.mark() == len(model)
            assert model.store.copies == model.copies
            if model.buffer is None:
                assert model.store.nbytes() == 0
                continue
            key, value = tokens(model.rows)
            found = model.store.view()
            assert torch.equal(found[0], key.expand(len(model.rows), -1, -1, -1))
            assert torch.equal(found[1], value)
            assert model.store.nbytes() == 2 * key.numel() * 4


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def step(number: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    return tokens([[number]] * batch)


def place(store: KeyValueStore) -> int:
    return store.view()[0].data_ptr()


def test_decode_within_the_reserve_never_copies() -> None:
    store = KeyValueStore(reserve=150)
    store.append(*tokens([list(range(50))]))
    before = place(store)
    for number in range(50, 150):
        key, _ = store.append(*step(number))
        assert key.shape[2] == number + 1
    assert (store.copies, place(store)) == (0, before)
    assert torch.equal(store.view()[0], tokens([list(range(150))])[0])


def test_growth_doubles() -> None:
    store = KeyValueStore(reserve=4)
    copies = []
    for number in range(100):
        store.append(*step(number))
        copies.append(store.copies)
    grown = [length for length in range(1, 100) if copies[length] > copies[length - 1]]
    assert grown == [4, 8, 16, 32, 64]  # the append that no longer fits
    assert torch.equal(store.view()[1], tokens([list(range(100))])[1])


def test_a_long_append_grows_at_once() -> None:
    store = KeyValueStore(reserve=4)
    store.append(*step(0))
    store.append(*tokens([list(range(1, 60))]))
    assert (store.length, store.copies) == (60, 1)


def test_forks_write_in_place_until_both_have_grown() -> None:
    parent = KeyValueStore(reserve=20)
    parent.append(*tokens([[0, 1, 2]]))
    branch = parent.fork()
    branch.append(*step(10))
    assert (place(branch), branch.copies) == (place(parent), 0)
    parent.append(*step(20))  # the place is taken: the parent moves, its fork does not
    assert (parent.copies, branch.copies) == (1, 0)
    assert parent.view()[0][0, 0, :, 0].tolist() == [0, 1, 2, 20]
    assert branch.view()[0][0, 0, :, 0].tolist() == [0, 1, 2, 10]


def test_a_dropped_fork_frees_its_place() -> None:
    parent = KeyValueStore(reserve=20)
    parent.append(*tokens([[0, 1, 2]]))
    branch = parent.fork()
    branch.append(*step(10))
    del branch
    gc.collect()
    parent.append(*step(20))
    assert parent.copies == 0


def test_a_fork_of_nothing_is_on_its_own() -> None:
    parent = KeyValueStore(reserve=4)
    branch = parent.fork()
    parent.append(*step(1))
    branch.append(*step(2))
    assert parent.view()[0].flatten()[0] == 1
    assert branch.view()[0].flatten()[0] == 2
    assert (parent.copies, branch.copies, branch.reserve) == (0, 0, 4)


def test_strided_input_and_bfloat16() -> None:
    key = torch.randn(1, 5, HEADS, DIM).bfloat16().transpose(1, 2)
    store = KeyValueStore()
    assert torch.equal(store.append(key, key)[0], key)
    assert store.nbytes() == 2 * 5 * HEADS * DIM * 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 3), r"key like .*\[1, 2, 1, 3\].*got \[2"),
        (torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), r"key .*got \[1, 1, 1, 3\]"),
        (torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), r"key .*got \[1, 2, 1, 4\]"),
        (torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 2, 3), r"value .*got \[1, 2, 2, 3\]"),
        (torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3).double(), "value .*got .*float64"),
        (torch.zeros(1, 2, 1, 3).bfloat16(), torch.zeros(1, 2, 1, 3), "key .*got .*bfloat16"),
    ],
)
def test_refuses_other_shapes(key: Tensor, value: Tensor, message: str) -> None:
    store = KeyValueStore()
    before = store.append(*step(7))[0].clone()
    with pytest.raises(ValueError, match=message):
        store.append(key, value)
    assert store.length == 1
    assert torch.equal(store.view()[0], before)


@pytest.mark.parametrize("mark", [-1, 3])
def test_refuses_marks_that_are_not(mark: int) -> None:
    store = KeyValueStore()
    store.append(*tokens([[0, 1]]))
    with pytest.raises(ValueError, match=rf"mark in 0\.\.2, got {mark}"):
        store.rollback(mark)
    assert store.length == 2


def test_an_empty_store_has_no_view() -> None:
    with pytest.raises(ValueError, match="append first"):
        KeyValueStore().view()
    KeyValueStore().select(torch.tensor([0]))  # nothing to reorder
