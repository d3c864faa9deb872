"""Triton's attention against dense float64 attention, interpreted where there is no GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gossamer.errors import BackendError
from gossamer.kernels import (
    AttentionOutput,
    AttentionState,
    balanced_sets,
    block_sparse_attention,
    block_sparse_state,
    gathered_attention,
    set_attention,
)
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window
from gossamer.testing import check_close

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("interpreter")
Result = Tensor | AttentionOutput
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch.empty returns with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Case:
    """Sizes of one call; heads are (query, key, list) heads."""

    heads: tuple[int, int, int]
    q_len: int
    k_len: int
    dim: int
    tile: int  # block, or queries a group
    batch: int = 1
    causal: bool = True
    window: Window | None = None
    padded: bool = False  # the first sequence starts late
    rotary: bool = False
    resumed: bool = False
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        q_heads, kv_heads, _ = self.heads
        query = torch.randn(self.batch, self.q_len, q_heads, self.dim).transpose(1, 2)
        key, value = torch.randn(2, self.batch, kv_heads, self.k_len, self.dim).to(DEVICE)
        return query.to(DEVICE, self.dtype), key.to(self.dtype), value.to(self.dtype)

    def mask(self, columns: int, density: float = 0.4) -> Tensor:
        """Random lists [batch, list heads, groups, columns]; the last list is empty."""
        groups = -(-self.q_len // self.tile)
        mask = torch.rand(self.batch, self.heads[2], groups, columns) < density
        mask[-1, -1, -1] = groups == 1
        return mask.to(DEVICE)

    def key_start(self) -> Tensor | None:
        if not self.padded:
            return None
        starts = torch.zeros(self.batch, dtype=torch.int64, device=DEVICE)
        starts[0] = self.k_len // 3
        return starts

    def visible(self, lists: Tensor) -> Tensor:
        """Pairs that `lists` [batch, list heads, q_len, k_len] and the options leave."""
        position = torch.arange(self.q_len, device=DEVICE)[:, None] + self.k_len - self.q_len
        token = torch.arange(self.k_len, device=DEVICE)
        seen = lists.repeat_interleave(self.heads[0] // lists.shape[1], dim=1)
        if self.causal:
            seen = seen & (token <= position)
        start = self.key_start()
        first = 0 if start is None else start[:, None, None, None]
        if self.window is not None:
            near = token > position - self.window.local
            seen = seen & (near | (token < first + self.window.sink))
        return seen & (token >= first)


def dense(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, dtype: torch.dtype = torch.float64
) -> AttentionOutput:
    """Attend to the pairs `seen`; key is [B, heads, k_len, D], or [B, heads, q_len, k_len, D]."""
    query, key, value = (x.to(dtype) for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.mT if key.ndim == 4 else (query[..., None, :] @ key.mT)[..., 0, :]
    scores = (scores * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return AttentionOutput(scores.softmax(-1).nan_to_num(0.0) @ value, scores.logsumexp(-1))


def check(found: Result, inputs: tuple[Tensor, Tensor, Tensor], seen: Tensor) -> None:
    """Hold the stated bounds; zeros and -inf where a row sees no key."""
    assert isinstance(found, AttentionOutput)
    exact, value = dense(*inputs, seen), inputs[2]
    if value.dtype == torch.float32:
        bound = 5e-6 * value.abs().max()
    else:
        plain = dense(*inputs, seen, dtype=value.dtype).output.double()
        eps = torch.finfo(value.dtype).eps
        bound = 2 * ((plain - exact.output).abs().max() + eps * exact.output.abs().max())
    assert found.output.dtype == value.dtype
    assert (found.output.double() - exact.output).abs().max() <= bound
    torch.testing.assert_close(found.lse.double(), exact.lse, atol=1e-5, rtol=0)
    assert not (found.output * ~seen.any(-1, keepdim=True)).any()


def run_blocks(case: Case) -> None:
    query, key, value = case.inputs()
    mask = case.mask(-(-case.k_len // case.tile))
    with poisoned():
        found = block_sparse_attention(
            query,
            key,
            value,
            BlockPattern.from_mask(mask, block=case.tile),
            causal=case.causal,
            window=case.window,
            key_start=case.key_start(),
            return_lse=True,
            impl="triton",
        )
    lists = mask.repeat_interleave(case.tile, -1).repeat_interleave(case.tile, -2)
    seen = case.visible(lists[..., : case.q_len, : case.k_len])
    check(found, (query, key, value), seen)


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 2, 2), 33, 65, 16, 16),
        Case((3, 1, 1), 63, 100, 33, 32, window=Window(3, 20)),
        Case((8, 1, 1), 33, 127, 64, 64, padded=True),
        Case((8, 1, 8), 5, 130, 80, 64, causal=False),
        Case((2, 1, 1), 65, 65, 128, 128, batch=2, padded=True),
        Case((2, 2, 1), 100, 100, 80, 48, window=Window(0, 1)),
        Case((2, 2, 1), 20, 250, 16, 16, batch=2, window=Window(1, 9), padded=True),
        Case((4, 2, 4), 70, 50, 16, 64, causal=False, window=Window(20, 9), padded=True),
        Case((2, 1, 2), 70, 128, 64, 64, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_blocks(case: Case) -> None:
    run_blocks(case)


def run_every_key(case: Case) -> None:
    query, key, value = case.inputs()
    with poisoned():
        found = block_sparse_attention(
            query,
            key,
            value,
            causal=case.causal,
            window=case.window,
            key_start=case.key_start(),
            return_lse=True,
            impl="triton",
        )
    every = torch.ones(case.batch, 1, case.q_len, case.k_len, dtype=torch.bool, device=DEVICE)
    check(found, (query, key, value), case.visible(every))


@pytest.mark.parametrize(
    "case",
    [
        Case((6, 2, 1), 1, 130, 33, 1),
        Case((3, 1, 1), 50, 65, 64, 64, batch=2, padded=True),
        Case((2, 2, 1), 40, 200, 16, 64, window=Window(4, 32)),
        Case((2, 1, 1), 9, 150, 128, 16, window=Window(40, 7), padded=True),
        Case((2, 1, 1), 9, 250, 16, 16, batch=2, window=Window(17, 7), padded=True),
        Case((2, 1, 1), 3, 2, 16, 16, causal=False),
        Case((3, 1, 1), 3, 80, 64, 16, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_every_key(case: Case) -> None:
    run_every_key(case)


def rotated(key: Tensor, lists: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn keys by their rank in the list of each row: [B, list heads, q_len, k_len, D]."""
    half = key.shape[-1] // 2
    rank = (lists.cumsum(-1) - 1).clamp(min=0)
    turn = torch.complex(*(part.double() for part in table))[rank]
    turned = torch.complex(key[..., :half].double(), key[..., half:].double())[:, :, None] * turn
    return torch.cat([turned.real, turned.imag], -1)


def run_gathered(case: Case, kind: type[TokenPattern] | type[StripePattern]) -> None:
    query, key, value = case.inputs()
    mask = case.mask(case.k_len)
    state, table = None, None
    first = torch.zeros(1, 1, 1, case.k_len, dtype=torch.bool, device=DEVICE)
    if case.resumed:  # the keys 0, 3, 6, ... come as a state, their shift unlike a maximum
        first[..., ::3] = True
        before = dense(query, key, value, first)
        total = torch.full_like(before.lse, 2.5)
        parts = (before.lse - total.log(), total, before.output * total[..., None])
        state = AttentionState(*(part.float() for part in parts))
        saved = [part.clone() for part in (state.max, state.sum, state.acc)]
        mask = mask & ~first
    if case.rotary:
        angle = torch.rand(case.k_len, case.dim // 2, device=DEVICE) * 6
        table = (angle.cos(), angle.sin())
    with poisoned():
        found = gathered_attention(
            query,
            key,
            value,
            kind.from_mask(mask, group=case.tile),
            causal=case.causal,
            state=state,
            rotary=table,
            key_start=case.key_start(),
            return_lse=True,
            impl="triton",
        )
    lists = mask.repeat_interleave(case.tile, -2)[..., : case.q_len, :]
    if state is not None:
        assert all(map(torch.equal, saved, (state.max, state.sum, state.acc)))
    if table is not None:
        key = rotated(key, lists, table)
    check(found, (query, key, value), case.visible(lists) | first)


@pytest.mark.parametrize("kind", [TokenPattern, StripePattern])
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 1, 1), 1, 300, 64, 1),
        Case((3, 3, 1), 33, 65, 33, 32, padded=True),
        Case((4, 2, 4), 5, 127, 80, 4, resumed=True),
    ],
    ids=str,
)
def test_gathered(case: Case, kind: type[TokenPattern] | type[StripePattern]) -> None:
    run_gathered(case, kind)


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 1, 1), 20, 90, 16, 8, rotary=True),
        Case((3, 1, 1), 1, 150, 80, 1, rotary=True, padded=True),
        Case((4, 4, 2), 9, 40, 128, 16, batch=2, causal=False, padded=True),
        Case((2, 1, 1), 17, 90, 64, 16, dtype=torch.bfloat16, rotary=True),
    ],
    ids=str,
)
def test_gathered_options(case: Case) -> None:
    run_gathered(case, StripePattern)


def test_splits_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "SPLIT_KEYS", 8)
    assert triton_launch.splits(4, 100, 132) == 12
    run_every_key(Case((3, 1, 1), 1, 100, 33, 1, padded=True))
    run_every_key(Case((2, 1, 1), 3, 2, 16, 16, causal=False))
    run_blocks(Case((2, 1, 2), 20, 130, 16, 16, window=Window(3, 70)))
    run_gathered(Case((2, 2, 1), 2, 100, 64, 1, resumed=True), TokenPattern)


def test_states_compose() -> None:
    case = Case((2, 1, 1), 30, 100, 33, 16)
    query, key, value = case.inputs()
    window = Window(2, 10)
    with poisoned():
        state = block_sparse_state(query, key, value, window=window, impl="triton")
    near = window.to_mask(30, 100).to(DEVICE)
    exact = dense(query, key, value, near)
    torch.testing.assert_close(state.output().double(), exact.output, atol=2e-5, rtol=0)
    torch.testing.assert_close(state.lse().double(), exact.lse, atol=1e-5, rtol=0)
    assert (state.sum >= 1).all()  # the largest score counts 1
    stripes = case.mask(100, density=0.2)
    stripes[..., :2] = False
    stripes[..., 60:] = False  # before any local window
    found = gathered_attention(
        query,
        key,
        value,
        StripePattern.from_mask(stripes, group=16),
        state=state,
        return_lse=True,
        impl="triton",
    )
    check(found, (query, key, value), near | stripes.repeat_interleave(16, -2)[..., :30, :])


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=str)
def test_empty(sizes: tuple[int, int, int]) -> None:
    batch, q_len, k_len = sizes
    query = torch.randn(batch, 2, q_len, 16, device=DEVICE)
    key = torch.randn(batch, 1, k_len, 16, device=DEVICE)
    with poisoned():
        found = block_sparse_attention(
            query, key, key, causal=False, return_lse=True, impl="triton"
        )
    assert isinstance(found, AttentionOutput)
    assert torch.equal(found.output, torch.zeros_like(query))
    assert torch.equal(found.lse, torch.full((batch, 2, q_len), -torch.inf, device=DEVICE))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, on NaN, under the interpreter
def test_nan_stays_in_its_row_and_a_huge_score_wins() -> None:
    query, key, value = Case((1, 1, 1), 3, 80, 16, 1).inputs()
    query[0, 0, 0] = torch.nan
    query[0, 0, 2] = 1e3 * key[0, 0, 7]
    key[0, 0, 7] *= 10
    output, lse = block_sparse_attention(
        query, key, value, causal=False, return_lse=True, impl="triton"
    )
    assert output[0, 0, 0].isnan().all() and lse[0, 0, 0].isnan()
    assert output[0, 0, 1].isfinite().all()
    torch.testing.assert_close(output[0, 0, 2], value[0, 0, 7])


@pytest.mark.parametrize("width", [16, 64, 128, 256, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotary", [False, True])
def test_tiles_fit(width: int, dtype: torch.dtype, rotary: bool) -> None:
    from gossamer.kernels.triton_launch import tiling

    for shared_memory in (101376, 166912, 232448):
        for rows in (1, 16, 17, 65, 512):
            tile = tiling(rows, width, dtype, shared_memory, rotary)
            key_bytes = width * (2 * dtype.itemsize + 4 * rotary)
            held = tile.rows * width * dtype.itemsize + tile.stages * tile.keys * key_bytes
            assert held <= shared_memory or tile.stages == 1
            assert tile.rows >= 16 and tile.keys >= 16
            assert tile.rows < 2 * max(16, rows)


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
def test_needs_cuda_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    query = torch.zeros(1, 1, 2, 16)
    with pytest.raises(BackendError, match="needs CUDA tensors, got cpu"):
        block_sparse_attention(query, query, query, impl="triton")


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_long(dim: int, dtype: torch.dtype) -> None:
    run_blocks(Case((8, 2, 8), 1000, 1025, dim, 64, batch=2, padded=True, dtype=dtype))
    run_blocks(Case((6, 2, 2), 777, 1000, dim, 128, window=Window(64, 300), dtype=dtype))
    run_every_key(Case((8, 1, 1), 1, 4097, dim, 1, dtype=dtype))
    run_every_key(Case((4, 2, 2), 1000, 1000, dim, 1, batch=2, padded=True, dtype=dtype))
    run_gathered(Case((8, 2, 2), 1000, 1000, dim, 128, resumed=True, dtype=dtype), StripePattern)
    run_gathered(Case((8, 2, 1), 1, 4096, dim, 1, dtype=dtype), TokenPattern)
    run_gathered(Case((4, 2, 2), 64, 500, dim, 32, rotary=True, dtype=dtype), TokenPattern)


@on_gpu
@pytest.mark.gpu
def test_addresses_beyond_32_bits() -> None:
    stride = 1 << 17
    memory = torch.empty(20_000 * stride, dtype=torch.bfloat16, device=DEVICE)
    key = memory.as_strided((1, 1, 20_000, 64), (0, 0, stride, 1)).normal_()
    query = torch.randn(1, 2, 1, 64, device=DEVICE).bfloat16()
    seen = torch.ones(1, 1, 1, 20_000, dtype=torch.bool, device=DEVICE)
    found = block_sparse_attention(query, key, key, return_lse=True, impl="triton")
    check(found, (query, key, key), seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size", "dim"), [(30, 9, 12), (1, 1, 1), (90, 36, 24)])
def test_set_attention_and_its_gradients(dtype, tokens, size, dim):
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(2, (tokens,), generator=generator)
    keys = torch.randperm(tokens, generator=generator)[None]
    (sets,) = balanced_sets(groups.to(DEVICE), keys.to(DEVICE), size=size)
    drawn = torch.randn(4, tokens, 2, dim + 3, generator=generator).to(DEVICE, dtype)
    *parts, weight = drawn[..., :dim].transpose(1, 2)
    parts = [part.detach().requires_grad_() for part in parts]
    with poisoned():
        output = set_attention(*parts, sets, impl="triton")
        grads = torch.autograd.grad((output * weight).sum(), parts)
    q, k, v = (part.detach().double().requires_grad_() for part in parts)
    scores = (q @ k.mT / dim**0.5).masked_fill(~sets.to_mask(), -torch.inf)
    exact = scores.softmax(-1) @ v
    expected = torch.autograd.grad((exact * weight.double()).sum(), (q, k, v))
    loose = 1e-5 if dtype == torch.float32 else 0.05
    for mine, right in zip((output, *grads), (exact, *expected), strict=True):
        assert mine.dtype == dtype
        right = right.detach()
        check_close(mine.detach(), right, loose * max(1.0, float(right.abs().max())))
