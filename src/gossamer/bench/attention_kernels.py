"""Speed of the attention kernels against PyTorch's, as ratios within one run.

Prefill: causal, random block patterns with the diagonal, against scaled_dot_product_attention in
the same dtype. Decode: one query a head against the long caches of a few layers, as bytes a second
next to what a plain copy moves here and a plain sum reads, and gathered tokens against the dense
call. Every kernel is checked against the reference before it is timed. Inputs are random; which
blocks are kept is random too, so that nothing depends on a method.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gossamer.attention.caches import KeyValueStore
from gossamer.bench.figures import Figure, check, figure, name_of
from gossamer.bench.timing import interleaved
from gossamer.kernels import block_sparse_attention, gathered_attention
from gossamer.patterns import BlockPattern, TokenPattern

HEADS, TOKENS, DIM, BLOCK = 9, 8192, 64, 64
DENSITIES = (1.0, 0.25, 0.1, 0.05)
BARS = {"float32": {1.0: 1.1, 0.25: 3.8, 0.1: 8.0, 0.05: 13.0}}
BF16_EFFICIENCY = 0.7  # of SDPA's rate, at every density
CACHE, GATHERED, LAYERS = 32768, 2048, 8
BANDWIDTH_BAR, GATHER_BAR = 0.8, 8.0


def block_pattern(density: float, device: str, seed: int) -> BlockPattern:
    """Random causal blocks, the diagonal among them, `density` of the causal ones."""
    blocks = TOKENS // BLOCK
    causal = blocks * (blocks + 1) // 2
    chance = 1.0 if density == 1.0 else (density * causal - blocks) / (causal - blocks)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, HEADS, blocks, blocks, generator=generator) < chance
    mask = (mask | torch.eye(blocks, dtype=torch.bool)).tril()
    return BlockPattern.from_mask(mask, block=BLOCK).to(device)


def prefill(device: str, repeats: int) -> Iterator[Figure]:
    """Time a long prompt in both dtypes."""
    for dtype in (torch.float32, torch.bfloat16):
        yield from _prefill(dtype, device, repeats)


def _prefill(dtype: torch.dtype, device: str, repeats: int) -> Iterator[Figure]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, HEADS, TOKENS, DIM, generator=generator).to(device, dtype) for _ in range(3)
    )
    patterns = {density: block_pattern(density, device, seed=1) for density in DENSITIES}
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    full = sdpa(query, key, value, is_causal=True)
    check(block_sparse_attention(query, key, value, patterns[1.0]), full, tolerance)
    tail = slice(TOKENS - 256, TOKENS)  # the last rows see the most blocks
    mask = patterns[0.1].to_mask().repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=device).tril()
    mask = mask[:, :, tail] & causal[tail]
    sparse = block_sparse_attention(query, key, value, patterns[0.1])[:, :, tail]
    check(sparse, sdpa(query[:, :, tail], key, value, attn_mask=mask), tolerance)
    runs = {"sdpa": lambda: sdpa(query, key, value, is_causal=True)}
    for density, pattern in patterns.items():
        runs[str(density)] = lambda pattern=pattern: block_sparse_attention(
            query, key, value, pattern
        )
    samples = interleaved(runs, repeats=repeats, warmup=1, device=device)
    name = name_of(dtype)
    for wanted, pattern in patterns.items():
        causal = HEADS * TOKENS // BLOCK * (TOKENS // BLOCK + 1) / 2
        density = int(pattern.counts.sum()) / causal
        bar = BARS.get(name, {}).get(wanted, BF16_EFFICIENCY / density)
        yield figure(f"prefill {name}", density, samples["sdpa"], samples[str(wanted)], bar)


def decode(device: str, repeats: int) -> Iterator[Figure]:
    """Time one token through several layers, as a model reads them: no cache line is met twice."""
    generator = torch.Generator().manual_seed(0)

    def cache(tokens: int) -> tuple[Tensor, Tensor]:
        shape = (1, HEADS, tokens, DIM)
        key, value = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        return KeyValueStore().append(key, value)

    def pattern() -> TokenPattern:
        kept = (torch.randperm(CACHE, generator=generator)[:GATHERED] for _ in range(HEADS))
        tokens = torch.stack([tokens.sort().values for tokens in kept]).int()
        return TokenPattern(tokens[None, :, None].to(device), group=1, k_len=CACHE)

    query = torch.randn(1, HEADS, 1, DIM, generator=generator).to(device)
    layers = [(*cache(CACHE), pattern()) for _ in range(LAYERS)]
    for key, value, tokens in layers:
        check(block_sparse_attention(query, key, value), sdpa(query, key, value), 1e-5)
        listed = tokens.to_mask()[:, :, -1:]
        oracle = sdpa(query, key, value, attn_mask=listed)
        check(gathered_attention(query, key, value, tokens), oracle, 1e-5)
    source, target = ([cache(CACHE // 2) for _ in layers] for _ in range(2))
    samples = interleaved(
        {
            "copy": lambda: [
                into.copy_(part)
                for pair in zip(target, source, strict=True)
                for into, part in zip(*pair, strict=True)
            ],
            "sum": lambda: [part.sum() for key, value, _ in layers for part in (key, value)],
            "dense": lambda: [block_sparse_attention(query, *layer[:2]) for layer in layers],
            "gathered": lambda: [gathered_attention(query, *layer) for layer in layers],
            "sdpa": lambda: [sdpa(query, *layer[:2]) for layer in layers],
        },
        repeats=4 * repeats,
        warmup=2,
        device=device,
    )
    # A copy of half the cache reads and writes as many bytes as attention reads.
    copy, dense = samples["copy"], samples["dense"]
    yield figure("decode dense, bandwidth of a copy", 1.0, copy, dense, BANDWIDTH_BAR)
    # Where writes have lanes of their own, even this falls short of a copy: it is what reads allow.
    yield figure("decode dense, bandwidth of a plain sum", 1.0, samples["sum"], dense)
    yield figure("decode dense, against SDPA", 1.0, samples["sdpa"], dense, 1.0)
    kept = GATHERED / CACHE
    yield figure("decode 2k gathered, against dense", kept, dense, samples["gathered"], GATHER_BAR)


PARTS = {"prefill": prefill, "decode": decode}
SHAPE = {
    "heads": HEADS,
    "tokens": TOKENS,
    "dim": DIM,
    "block": BLOCK,
    "cache": CACHE,
    "layers": LAYERS,
}
