"""DSnoT: expected errors, perplexity, time, and what a pruned model gains when it decodes.

"Dynamic Sparse No Training" (arXiv 2310.08915) prunes LLaMA-7B to 30 % density and reports the
perplexity of WikiText-2, which two users could not reach with the released command. Measured here
with SmolLM2-135M on the language reference of Python, calibration and held-out windows disjoint,
with the library's defaults: fewer swaps than the paper's 50, for layers are narrower. With swaps,
SparseGPT gives its mask alone: they start from the weights as they were, not from its updates.
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer import models
from gossamer.bench.perplexity import perplexity, token_windows
from gossamer.bench.timing import Samples, interleaved, ratio
from gossamer.compression import (
    DSnoT,
    Layer,
    Magnitude,
    PruningMethod,
    SparseGPT,
    Wanda,
    dsnot_refine,
    pack_linears,
    prune,
)
from gossamer.compression.block_walker import calibrated_blocks, calibration_sequences
from gossamer.data import documents
from gossamer.kernels import PackedWeight
from gossamer.layers import PackedLinear
from gossamer.reproduce import Claim

ABSTRACT = "abstract"
NOT_REPORTED = "not reported"
ISSUES = "abstract; issue 6 of the code reports 11 to 13 points more than the paper's 62.05"
TOKENS = 512
DECODED, PROMPT = 16, 8
SETTLE = 0.1  # seconds; threads of one model should sleep before the next is timed
READ_BYTES = 2**29
GATE = 1e-3  # largest difference of logits over the largest logit


@dataclass(frozen=True)
class _Size:
    blocks: int | None  # of the model; None: all
    sequences: int  # of calibration
    held_out: int
    draws: int  # of calibration text, all disjoint from what is held out


SIZES = {"quick": _Size(6, 4, 0, 1), "full": _Size(None, 16, 16, 3)}
START = {"Magnitude": Magnitude, "Wanda": Wanda, "SparseGPT": SparseGPT}
DENSITIES = (0.5, 0.4, 0.3)
BARS = {("Wanda", 0.3): 0.85, ("Wanda", 0.4): 1.0, ("Magnitude", 0.5): 0.4}  # ratios, at most


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims with SmolLM2-135M; "gpu" times the refinement of a wide layer."""
    if scale == "gpu":
        yield refinement_time(seed, rows=4096, width=11008, device="cuda")
        return
    size = SIZES[scale]
    loaded = models.load("smollm2", dtype=torch.bfloat16)
    text, calibrating = documents.default_text().text, size.draws * size.sequences
    windows = token_windows(
        loaded.tokenizer, text, count=calibrating + size.held_out, tokens=TOKENS, seed=seed
    )
    draws = windows[:calibrating].split(size.sequences)
    yield from layer_claims(loaded.model, draws[0], size.blocks)
    if scale == "full":
        yield swap_time_claim(loaded.model, draws[0])
        yield from perplexity_claims(loaded.model, draws, windows[calibrating:])
        yield decode_claim(loaded.model, draws[0])


def layer_claims(model: Any, calibration: Tensor, blocks: int | None) -> Iterator[Claim]:
    """Compare expected errors before and after swaps, layer by layer, nothing pruned."""
    starts = {"wanda": Wanda(0.5), "magnitude": Magnitude(0.5)}
    gains: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in starts}
    swapped: dict[str, list[float]] = defaultdict(list)
    sequences = calibration_sequences([calibration])
    for block in calibrated_blocks(first_blocks(model, blocks), sequences):
        for name, linear in block.linears.items():
            layer = Layer(name, linear.weight.detach().float(), block.inputs[name])
            for label, method in starts.items():
                refined = DSnoT().refine(layer, method.decide(layer))
                errors = [float(error.abs().mean()) for error in (refined.before, refined.after)]
                gains[label][name.rpartition(".")[2]].append(errors[0] / max(errors[1], 1e-12))
                swapped[label].append(float((refined.swaps > 0).double().mean()))
    setting = _layer_setting(blocks, calibration)
    for label, least in (("wanda", 3.0), ("magnitude", 2.0)):
        medians = {kind: statistics.median(found) for kind, found in gains[label].items()}
        listed = ", ".join(f"{kind} {value:.1f}" for kind, value in medians.items())
        yield Claim(
            claim=f"swaps shrink the expected output error of a {label} mask",
            paper="what the method minimises",
            source=NOT_REPORTED,
            baseline=1.0,
            ours=min(medians.values()),
            criterion=f"mean |error| before over after, median of each kind >= {least:g}",
            holds=min(medians.values()) >= least,
            setting=f"{setting}; {listed}; {statistics.mean(swapped[label]):.0%} of rows swapped",
        )


def swap_time_claim(model: Any, calibration: Tensor) -> Claim:
    """Time swaps and SparseGPT on the same layers, nothing pruned."""
    seconds = {"swaps": 0.0, "sparsegpt": 0.0}
    for block in calibrated_blocks(model, calibration_sequences([calibration]), gram=True):
        for name, linear in block.linears.items():
            layer = Layer(name, linear.weight.detach().float(), block.inputs[name])
            seconds["swaps"] += _timed(DSnoT().refine, layer, Wanda(0.5).decide(layer))
            seconds["sparsegpt"] += _timed(SparseGPT(0.5).decide, layer)
    return Claim(
        claim="swapping takes a fraction of SparseGPT's time",
        paper="no update of weights, no gradients",
        source=ABSTRACT,
        baseline=seconds["sparsegpt"],
        ours=seconds["swaps"],
        criterion="ours < 0.2 x baseline (seconds on the same layers)",
        holds=seconds["swaps"] < 0.2 * seconds["sparsegpt"],
        setting=f"{_layer_setting(None, calibration)}; SparseGPT's factor and C++ sweep, without "
        "its Gram matrices",
    )


def _layer_setting(blocks: int | None, calibration: Tensor) -> str:
    return (
        f"SmolLM2-135M, {blocks or 'all'} blocks, {len(calibration)} x {TOKENS} tokens, "
        "bfloat16, density 0.5, library defaults"
    )


def perplexity_claims(model: Any, draws: Sequence[Tensor], held_out: Tensor) -> Iterator[Claim]:
    """Compare held-out perplexity with and without swaps, the median ratio of all draws.

    All starts and densities are compared with the first draw, those with a bar with all. Swaps
    behind SparseGPT refine its mask and keep the dense values, as the released code does: they
    lose its repairs.
    """
    found = {
        (name, density): perplexities(
            model, START[name](density), draws if (name, density) in BARS else draws[:1], held_out
        )
        for density in DENSITIES
        for name in START
    }
    setting = (
        f"SmolLM2-135M, bfloat16, {len(draws[0])} x {TOKENS} calibration and {len(held_out)} x "
        f"{TOKENS} held-out tokens, {len(draws)} draws of calibration; dense "
        f"{perplexity(model, held_out):.1f}"
    )
    table = ", ".join(
        f"{name} {density} {pairs[0][0]:.1f} -> {pairs[0][1]:.1f}"
        for (name, density), pairs in found.items()
    )
    for (name, density), bar in BARS.items():
        before, after = zip(*found[name, density], strict=True)
        ratios = [ours / start for start, ours in found[name, density]]
        published = (name, density) == ("Wanda", 0.3)
        yield Claim(
            claim=f"swaps lower the perplexity of {name} at density {density}",
            paper="26.79 lower than Wanda (LLaMA-7B, WikiText-2)" if published else None,
            source=ISSUES if published else NOT_REPORTED,
            baseline=statistics.median(before),
            ours=statistics.median(after),
            criterion=f"median ratio <= {bar:g}",
            holds=statistics.median(ratios) <= bar,
            setting=f"{setting}; ratios {', '.join(f'{each:.2f}' for each in ratios)}"
            + (f"; all starts without -> with swaps, first draw: {table}" if published else ""),
        )


def perplexities(
    model: Any, start: PruningMethod, draws: Sequence[Tensor], held_out: Tensor
) -> list[tuple[float, float]]:
    """Return held-out perplexity without and with swaps for every draw of calibration."""
    found: list[tuple[float, float]] = []
    for calibration in draws:
        if found and start.collect == "nothing":  # every draw gives the same weights
            before = found[0][0]
        else:
            before = pruned_perplexity(model, [start], calibration, held_out)
        after = pruned_perplexity(model, [start, DSnoT()], calibration, held_out)
        found.append((before, after))
    return found


def pruned_perplexity(
    model: Any, methods: Sequence[PruningMethod], calibration: Tensor, held_out: Tensor
) -> float:
    """Return the held-out perplexity of a pruned copy."""
    pruned = copy.deepcopy(model)
    prune(pruned, methods, [calibration])
    return perplexity(pruned, held_out)


def decode_claim(model: Any, calibration: Tensor) -> Claim:
    """Time batch-1 decoding: stock in both types, and packed, after the same logits.

    Packed blocks start fewer operations, too: a packed model that is not pruned tells how much.
    """
    pruned = copy.deepcopy(model)
    prune(pruned, [Wanda(0.3), DSnoT()], [calibration])
    pruned = pruned.float()  # bfloat16 values, so that packing rounds nothing
    packed = pack_linears(pruned, dtype=torch.bfloat16, head=True)
    stock = copy.deepcopy(model).float()
    candidates = {
        "float32": stock,
        "bfloat16": model,
        "nothing pruned, packed": pack_linears(stock, dtype=torch.bfloat16, head=True),
        "packed": packed,
    }
    prompt = calibration[:1, :PROMPT]
    with torch.inference_mode():
        expected = pruned(calibration[:1, :64]).logits
        wrong = float((packed(calibration[:1, :64]).logits - expected).abs().max())
        wrong /= float(expected.abs().max())
        loops = {name: decoding(each, prompt) for name, each in candidates.items()}
        times = interleaved(loops, repeats=5, settle=SETTLE)
    faster = min(("float32", "bfloat16"), key=lambda name: times[name].median)
    gain = ratio(times[faster], times["packed"])
    layers = [each for each in packed.modules() if isinstance(each, PackedLinear)]
    stored = sum(stored_bytes(layer.weight) for layer in layers)
    listed = ", ".join(
        f"{name} {1e3 * samples.median / DECODED:.1f}" for name, samples in times.items()
    )
    bandwidth = read_bandwidth()
    return Claim(
        claim="a model pruned to density 0.3 decodes faster when packed",
        paper=None,
        source=NOT_REPORTED,
        baseline=1e3 * times[faster].median / DECODED,
        ours=1e3 * times["packed"].median / DECODED,
        criterion="ms a token, batch 1: baseline (faster stock) / ours >= 1.5, logits within 1e-3",
        holds=gain.median >= 1.5 and wrong <= GATE,
        setting=f"SmolLM2-135M, Wanda + DSnoT, float32 activations, bfloat16 values, head packed "
        f"dense; ms a token: {listed}; gain {gain.median:.2f} ({_spread(gain)}); logits differ by "
        f"{wrong:.1e}; floor {1e3 * stored / bandwidth:.1f} ms: {stored / 2**20:.0f} MiB of "
        f"weights at {bandwidth / 1e9:.1f} GB/s",
    )


def decoding(model: Any, prompt: Tensor) -> Callable[[], list[int]]:
    """Return a function that decodes `DECODED` tokens after a prompt that is already read."""
    cache = model(prompt, use_cache=True).past_key_values

    def decode() -> list[int]:
        token, found = prompt[:, -1:], []
        for _ in range(DECODED):
            logits = model(token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(-1)
            found.append(int(token))
        cache.crop(-DECODED)
        return found

    return decode


def stored_bytes(weight: PackedWeight) -> int:
    """Return what one product with one vector reads: values, and a bit for every weight."""
    return weight.values.numel() * weight.values.element_size() + weight.shape[0] * (
        -(-weight.shape[1] // 64) * 8
    )


def read_bandwidth() -> float:
    """Return bytes a second of summing a tensor that no nearer cache holds."""
    tensor = torch.ones(READ_BYTES // 4)
    return READ_BYTES / interleaved({"sum": tensor.sum}, repeats=5)["sum"].median


def refinement_time(seed: int, *, rows: int, width: int, device: str) -> Claim:
    """Time the swap loop of one wide layer."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    x = torch.randn(2048, width, generator=generator) + 0.1
    total, norm = x.sum(0).to(device), x.square().sum(0).sqrt().to(device)
    variance = x.var(0).to(device)
    weight = weight.to(device)
    scores = weight.abs() * norm
    mask = scores >= scores.median(1, keepdim=True).values
    cycles = DSnoT().cycles(width)

    def refine() -> object:
        return dsnot_refine(
            weight, mask, total=total, norm=norm, variance=variance, max_cycles=cycles
        )

    seconds = interleaved({"refine": refine}, repeats=5, device=device)["refine"].median
    return Claim(
        claim=f"a {rows} x {width} layer is refined at once",
        paper=None,
        source=NOT_REPORTED,
        baseline=None,
        ours=seconds,
        criterion="ours < 0.2 (seconds)",
        holds=seconds < 0.2,
        setting=f"random weights and inputs, density 0.5, {cycles} cycles, {device}",
    )


def first_blocks(model: Any, blocks: int | None) -> Any:
    """Return a model that ends behind the first blocks and shares their weights."""
    if blocks is None:
        return model
    known: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    shorter = copy.deepcopy(model, known)
    shorter.model.layers = shorter.model.layers[:blocks]
    shorter.config.num_hidden_layers = blocks
    return shorter


def _timed(function: Callable[..., Any], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _spread(samples: Samples) -> str:
    return f"{samples.minimum:.2f} to {samples.maximum:.2f}"
