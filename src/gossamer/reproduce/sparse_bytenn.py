"""Kernel groups: speed of their kernels, what rearrangement saves, accuracy, whole networks.

"SparseByteNN" (arXiv 2310.19509) reports MobileNet-v1 at 30 % sparsity 1.27 times faster than
dense and 1.29 times faster than another engine's unstructured kernels on a phone, at 0.224 points
of accuracy. Its code and its figures beyond the abstract are unpublished. Measured here is the same
class of patterns on a CPU, one thread: nothing is said of the authors' kernels or phone.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from gossamer import inference
from gossamer.bench.timing import Samples, interleaved, ratio
from gossamer.compression import GroupPruner, channel_rearrange, reestimate_batch_norm
from gossamer.compression.kernel_groups import kept_score, kernel_scores, prunable_layers
from gossamer.compression.row_order import best_order
from gossamer.data.photographs import photographs
from gossamer.kernels import Affine, int8_spmm, pack, pack_int8, spmm
from gossamer.measure import kl_divergence, top1_agreement
from gossamer.models.efficientnet import RESOLUTION, efficientnet_lite0, prepare
from gossamer.reproduce import Claim
from gossamer.reproduce._pruned_digits import EPOCHS, FINE_TUNING, prune_and_tune
from gossamer.reproduce._sparse_products import counted_products

ABSTRACT = "arXiv 2310.19509, abstract"
OURS = "not in the paper"
GROUP = 8
SHAPES = ((128, 128, 3136), (256, 256, 784), (512, 512, 196), (1024, 1024, 49))  # MobileNet-v1
QUICK_LAYERS = 3
SPARSITIES = (0.3, 0.5, 0.7)
CROPS = 32
REPEATS = 41
DENSITIES = (0.7, 0.5, 0.3)
SEEDS = 3  # of the training comparison


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims; "gpu" has none, since the kernels are for CPUs."""
    if scale == "gpu":
        return
    if scale == "quick":
        yield counted_products(_weights(seed), source=OURS, drawn=_drawn(), seed=seed)
        yield _integers(seed)
        yield _moved(seed)
        yield _more_kept(_kept_by_layer(QUICK_LAYERS, 0.5, seed))
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _speed(_time_kernels(SHAPES, seed, REPEATS), SHAPES)
    finally:
        torch.set_num_threads(threads)
    yield from _networks(seed)
    yield from _accuracy(seed)


def _weights(seed: int) -> Iterator[tuple[Tensor, int]]:
    """Draw the weight of every shape at every density, and say how many columns it multiplies."""
    generator = torch.Generator().manual_seed(seed)
    for rows, columns, width in SHAPES:
        for density in DENSITIES:
            units = torch.rand(rows // GROUP, columns, generator=generator) < density
            weight = torch.randn(rows, columns, generator=generator)
            yield weight * units.repeat_interleave(GROUP, 0), width


def _integers(seed: int) -> Claim:
    """Compare sums of bytes with integer sums."""
    generator, wrong, total = torch.Generator().manual_seed(seed), 0, 0
    for weight, width in _weights(seed):
        packed = pack_int8(weight, group=GROUP)
        codes = torch.randint(256, (weight.shape[1], width), generator=generator)
        found = int8_spmm(packed, codes.to(torch.uint8))
        # Sums stay below 2**53, so that float64 holds them exactly.
        exact = packed.to_dense().double() @ codes.double()
        wrong += int((found != exact).sum())
        total += found.numel()
    return Claim(
        claim="sums of bytes in groups are exact",
        paper="exact",
        source=OURS,
        baseline=0,
        ours=wrong,
        criterion="no sum that differs from the integers'",
        holds=wrong == 0,
        setting=f"{total} sums, {_drawn()}, weights int8, inputs uint8",
    )


def _drawn() -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in SHAPES)
    return f"groups of {GROUP} at densities {', '.join(map(str, DENSITIES))}, {shapes}"


@torch.no_grad()
def _moved(seed: int) -> Claim:
    """Sort the channels of the whole network, and compare its outputs."""
    images, model = _crops(2, seed), efficientnet_lite0()
    expected = model(images)
    channel_rearrange(model, images, group=GROUP, sparsity=SPARSITIES[0], method="l1", seed=seed)
    moved, largest = float((model(images) - expected).abs().max()), float(expected.abs().max())
    return _invariance(moved, largest, "2 crops of photographs, sorted by norm")


def _time_kernels(
    shapes: tuple[tuple[int, int, int], ...], seed: int, repeats: int
) -> dict[float, dict[str, list[float]]]:
    """Return by density and kernel how often it is faster than a dense float32 product."""
    found: dict[float, dict[str, list[float]]] = {}
    for rows, columns, width in shapes:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator)
        dense = torch.randn(columns, width, generator=generator)
        read = Affine.over(-4.0, 4.0)
        codes, half = read.quantise(dense), (weight.bfloat16(), dense.bfloat16())
        integers = (torch.randint(-127, 128, x.shape).to(torch.int8) for x in (weight, dense.mT))
        left, right = integers
        for density in DENSITIES:
            units = torch.rand(rows // GROUP, columns, generator=generator) < density
            grouped = weight * units.repeat_interleave(GROUP, 0)
            scattered = weight * (torch.rand(weight.shape, generator=generator) < density)
            packed, int8 = pack(grouped), pack_int8(grouped, group=GROUP)
            functions = {
                "dense": partial(torch.mm, weight, dense),
                "dense bf16": partial(torch.mm, *half),
                "dense int8": partial(torch._int_mm, left, right.mT),  # pyright: ignore
                "groups": partial(spmm, packed, dense),
                "unstructured": partial(spmm, pack(scattered), dense),
                "groups int8": partial(int8_spmm, int8, codes, read=read, write=read),
            }
            _check(functions["groups"](), grouped @ dense)
            times = interleaved(functions, repeats=repeats, warmup=2)
            for name in functions:
                gain = ratio(times["dense"], times[name]).median
                found.setdefault(density, {}).setdefault(name, []).append(gain)
    return found


def _check(found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-3):
        raise RuntimeError("the sparse product is wrong: its time means nothing")


def _mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _speed(
    gains: Mapping[float, Mapping[str, list[float]]], shapes: tuple[tuple[int, int, int], ...]
) -> Iterator[Claim]:
    """Compare the kernels; gains are over torch.mm in float32, one thread."""
    listed = "; ".join(
        f"density {density}: "
        + ", ".join(f"{name} {_mean(values):.2f}" for name, values in by_name.items())
        for density, by_name in gains.items()
    )
    named = ", ".join("x".join(str(size) for size in shape) for shape in shapes)
    setting = (
        f"1x1 convolutions [out x in x positions] {named}; groups of {GROUP}; random weights; one "
        f"thread; times faster than torch.mm in float32, geometric mean: {listed}"
    )
    for density, least, paper in ((0.7, 1.3, 1.27), (0.3, 2.8, None)):
        ours = _mean(gains[density]["groups"])
        yield Claim(
            claim=f"groups at {round(100 * (1 - density))} % sparsity run faster than dense",
            paper=paper,
            source=f"{ABSTRACT} (a network, on a phone)" if paper else OURS,
            baseline=1.0,
            ours=ours,
            criterion=f"ours >= {least}, in float32",
            holds=ours >= least,
            setting=setting,
        )
    ours, baseline = (_mean(gains[0.3][name]) for name in ("groups", "unstructured"))
    yield Claim(
        claim="groups run faster than unstructured weights of the same density",
        paper=1.29,
        source=f"{ABSTRACT} (another engine, 30 % sparsity, on a phone)",
        baseline=baseline,
        ours=ours,
        criterion="ours >= 1.3 baseline, at density 0.3 in float32",
        holds=ours >= 1.3 * baseline,
        setting=setting,
    )
    ours, baseline = (_mean(gains[0.3][name]) for name in ("groups int8", "dense int8"))
    yield Claim(
        claim="groups in int8 at 70 % sparsity run faster than dense int8",
        paper=None,
        source=OURS,
        baseline=baseline,
        ours=ours,
        criterion="ours > baseline (torch._int_mm)",
        holds=ours > baseline,
        setting=setting,
    )


def _kept_by_layer(layers: int, sparsity: float, seed: int) -> dict[str, float]:
    """Return the L1 norm that stays in a few layers, each in the best order for itself."""
    found = dict.fromkeys(("unstructured", "identity", "l1", "swap"), 0.0)
    total = 0.0
    chosen = list(prunable_layers(efficientnet_lite0()).values())[4 : 4 + layers]
    for layer in chosen:
        scores = kernel_scores(layer.weight.detach().abs())
        total += float(scores.sum())
        found["unstructured"] += kept_score(scores, 1, sparsity)
        found["identity"] += kept_score(scores, GROUP, sparsity)
        for method in ("l1", "swap"):
            order = best_order([scores], GROUP, sparsity, method, seed)
            found[method] += kept_score(scores[order], GROUP, sparsity)
    return {name: kept / total for name, kept in found.items()}


def _kept_setting(kept: Mapping[str, float], where: str) -> str:
    return (
        f"EfficientNet-Lite0, ImageNet weights, groups of {GROUP}, {where}; share of the L1 norm "
        f"kept: " + ", ".join(f"{name} {share:.4f}" for name, share in kept.items())
    )


def _more_kept(
    kept: Mapping[str, float], where: str = f"{QUICK_LAYERS} layers, each in its own order, s = 0.5"
) -> Claim:
    return Claim(
        claim="rearrangement keeps more weight, and swaps more than sorting by norm",
        paper=None,
        source=OURS,
        baseline=kept["l1"],
        ours=kept["swap"],
        criterion="identity < baseline < ours",
        holds=kept["identity"] < kept["l1"] < kept["swap"],
        setting=_kept_setting(kept, where),
    )


def _gap_closed(kept: Mapping[str, float], where: str) -> Claim:
    gap = kept["unstructured"] - kept["identity"]
    ours = (kept["swap"] - kept["identity"]) / gap
    return Claim(
        claim="rearrangement makes good a third of what groups lose against single weights",
        paper=None,
        source=OURS,
        baseline=0.0,
        ours=ours,
        criterion="share of the gap >= 0.3",
        holds=ours >= 0.3,
        setting=_kept_setting(kept, where),
    )


def _crops(count: int, seed: int) -> Tensor:
    """Draw square crops [count, 3, 224, 224] of the photographs, grey in three equal channels."""
    generator = np.random.default_rng(seed)
    images = [photo.pixels for photo in photographs()]
    crops = []
    for i in range(count):
        image = images[i % len(images)]
        top, left = (int(generator.integers(size - RESOLUTION + 1)) for size in image.shape)
        crop = image[top : top + RESOLUTION, left : left + RESOLUTION]
        crops.append(torch.from_numpy(crop * 255).round().to(torch.uint8).expand(3, -1, -1))
    return prepare(torch.stack(crops))


def _networks(seed: int) -> Iterator[Claim]:
    """Rearrange, prune and run EfficientNet-Lite0."""
    images, calibration = _crops(CROPS, seed), _crops(CROPS, seed + 1)
    dense = efficientnet_lite0()
    with torch.no_grad():
        expected = dense(images)
    agreement: dict[float, dict[str, str]] = {}
    divergence: dict[float, dict[str, float]] = {}
    for sparsity in SPARSITIES:
        kept: dict[str, float] = {}
        networks = {"unstructured": (dense, 1), "identity": (dense, GROUP)}
        for method in ("l1", "swap"):
            model = efficientnet_lite0()
            report = channel_rearrange(
                model, images[:2], group=GROUP, sparsity=sparsity, method=method, seed=seed
            )
            kept |= {"identity": report.kept_before, method: report.kept_after}
            networks[method] = (model, GROUP)
        with torch.no_grad():
            moved = float((networks["swap"][0](images) - expected).abs().max())
        if sparsity == SPARSITIES[0]:
            largest = float(expected.abs().max())
            yield _invariance(moved, largest, f"{CROPS} crops of photographs, swaps")
        layers = prunable_layers(dense).values()
        scores = [kernel_scores(layer.weight.detach().abs()) for layer in layers]
        total = sum(float(score.sum()) for score in scores)
        kept["unstructured"] = sum(kept_score(score, 1, sparsity) for score in scores) / total
        where = f"the whole network, s = {sparsity}"
        yield _more_kept(kept, where)
        yield _gap_closed(kept, where)
        for name, (model, group) in networks.items():
            pruned = _pruned(model, sparsity, group)
            reestimate_batch_norm(pruned, calibration.split(8), like=model)
            with torch.no_grad():
                logits = pruned(images)
            divergence.setdefault(sparsity, {})[name] = kl_divergence(expected, logits)
            agreement.setdefault(sparsity, {})[name] = f"{top1_agreement(expected, logits):.2f}"
    yield _outputs(divergence, agreement)
    yield from _latency(dense, images, calibration)


def _pruned(model: nn.Module, sparsity: float, group: int = GROUP) -> nn.Module:
    pruned, pruner = copy.deepcopy(model), GroupPruner(sparsity, group)
    pruner.apply(pruned, pruner.decide(pruned))
    return pruned


def _invariance(moved: float, largest: float, how: str) -> Claim:
    return Claim(
        claim="the rearranged dense network computes what it did",
        paper=None,
        source=OURS,
        baseline=largest,
        ours=moved,
        criterion="greatest change of a logit <= 1e-5 of the largest (baseline)",
        holds=moved <= 1e-5 * largest,
        setting=f"EfficientNet-Lite0, {how}",
    )


def _outputs(
    divergence: Mapping[float, Mapping[str, float]], agreement: Mapping[float, Mapping[str, str]]
) -> Claim:
    listed = "; ".join(
        f"s = {sparsity}: "
        + ", ".join(f"{name} {kl:.3f} ({agreement[sparsity][name]})" for name, kl in row.items())
        for sparsity, row in divergence.items()
    )
    first = divergence[SPARSITIES[0]]
    return Claim(
        claim="without training, the rearranged network stays closer to the dense one when pruned",
        paper=None,
        source=OURS,
        baseline=first["identity"],
        ours=first["swap"],
        criterion=f"KL from the dense network: ours < baseline, at s = {SPARSITIES[0]}",
        holds=first["swap"] < first["identity"],
        setting=f"EfficientNet-Lite0, batch norms moved by what pruning does to their "
        f"statistics on {CROPS} crops, KL (top-1 "
        f"agreement) on {CROPS} other crops of 7 grey photographs; {listed}",
    )


def _latency(dense: nn.Module, images: Tensor, calibration: Tensor) -> Iterator[Claim]:
    """Time the network at batch 1 on one thread, and compare int8 with float32."""
    image = images[:1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        last = image.to(memory_format=torch.channels_last)
        eager = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # pyright: ignore
        functions = {
            "dense": partial(eager, last),
            "dense, compiled": partial(torch.compile(eager, dynamic=False), last),
        }
        agreement = {}
        for sparsity in (0.0, *SPARSITIES):
            pruned = _pruned(dense, sparsity)
            reestimate_batch_norm(pruned, calibration.split(8), like=dense)
            sparse = inference.compile(pruned, image, threshold=1.0)
            int8 = inference.compile_int8(pruned, calibration.split(8), group=GROUP)
            functions |= {
                f"sparse {sparsity}": partial(sparse, image),
                f"int8 {sparsity}": partial(int8, image),
            }
            with torch.no_grad():
                agreement[sparsity] = top1_agreement(pruned(images), int8(images))
        with torch.no_grad():
            times = interleaved(functions, repeats=REPEATS, warmup=3)
    finally:
        torch.set_num_threads(threads)
    listed = ", ".join(f"{name} {1e3 * each.median:.1f} ms" for name, each in times.items())
    agreed = ", ".join(f"{value:.2f} at s = {s}" for s, value in agreement.items())
    setting = (
        f"EfficientNet-Lite0, batch 1, one thread, PyTorch channels-last; {listed}; top-1 of int8 "
        f"as of float32, both pruned and batch norms moved: {agreed}"
    )
    for name, sparsity, least in (("sparse", 0.3, 1.27), ("sparse", 0.7, 1.27), ("int8", 0.3, 1.0)):
        ours = times[f"{name} {sparsity}"]
        best = min((times["dense"], times["dense, compiled"]), key=lambda each: each.median)
        yield _faster(name, sparsity, least, best, ours, setting)


def _faster(
    name: str, sparsity: float, least: float, dense: Samples, ours: Samples, setting: str
) -> Claim:
    gain = ratio(dense, ours).median
    return Claim(
        claim=f"{name}: the network at {round(100 * sparsity)} % sparsity is faster than dense",
        paper=1.27 if (name, sparsity) == ("sparse", 0.3) else None,
        source=f"{ABSTRACT} (MobileNet-v1, on a phone)" if sparsity == 0.3 else OURS,
        baseline=dense.median,
        ours=ours.median,
        criterion=f"baseline / ours >= {least} (seconds; the faster of eager and compiled)",
        holds=gain >= least,
        setting=setting,
    )


def _accuracy(seed: int) -> Iterator[Claim]:
    """Train a small MobileNet on digits, prune half of it and fine-tune."""
    found: dict[str, list[float]] = {}
    for each in range(seed, seed + SEEDS):
        for name, accuracy in prune_and_tune(each).items():
            found.setdefault(name, []).append(100 * accuracy)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    listed = ", ".join(
        f"{name} {means[name]:.2f} ({', '.join(f'{value:.2f}' for value in values)})"
        for name, values in found.items()
    )
    setting = (
        f"depthwise-separable network on scikit-learn's digits, {EPOCHS} epochs, half of the units "
        f"removed at once, {FINE_TUNING} more epochs; percent right over {SEEDS} seeds: {listed}"
    )
    order = ("unstructured", "groups, rearranged", "groups", "filters")
    values = [means[name] for name in order]
    yield Claim(
        claim="single weights, rearranged groups, groups and filters lose ever more accuracy",
        paper="70.76, -, 70.05 (1x4), 65.35",
        source="1xN pruning (arXiv 2105.14713), MobileNet-v1 on ImageNet at 50 %",
        baseline=means["filters"],
        ours=means["groups, rearranged"],
        criterion="each at least the next",
        holds=all(a >= b for a, b in pairwise(values)),
        setting=setting,
    )
    yield Claim(
        claim="rearranged groups lose little against single weights",
        paper="0.224 points at 30 % against dense",
        source=ABSTRACT,
        baseline=means["unstructured"],
        ours=means["groups, rearranged"],
        criterion="ours >= baseline - 1.5 points",
        holds=means["groups, rearranged"] >= means["unstructured"] - 1.5,
        setting=setting,
    )
