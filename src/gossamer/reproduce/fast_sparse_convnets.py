"""Sparse 1x1 convolutions: their speed, that of whole networks, and accuracy at equal work.

"Fast Sparse ConvNets" (arXiv 1911.09723, CVPR 2020) reports that pruned MobileNets and
EfficientNets run 1.3 to 2.4 times as fast as their dense equivalents on a phone's CPU, and are more
accurate than dense networks as fast. Measured here on this CPU: layers, whole networks (with real
ImageNet weights of EfficientNet-Lite0 pruned at once, so that nothing is said about its accuracy),
and accuracy with a small MobileNet trained on scikit-learn's digits.
"""

import copy
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import inference
from gossamer.bench.timing import interleaved, ratio
from gossamer.budgets import Density
from gossamer.kernels import instruction_set, instruction_sets, pack
from gossamer.kernels.program import Program
from gossamer.models.efficientnet import efficientnet_lite0
from gossamer.models.mobilenet import mobilenet_v1, mobilenet_v2, small_mobilenet
from gossamer.reproduce import Claim
from gossamer.reproduce._cnn_rivals import engine_runners, torch_runners
from gossamer.reproduce._sparse_products import counted_products
from gossamer.schedules import Cubic, EverySteps
from gossamer.scores import magnitude

ABSTRACT = "abstract; Snapdragon 835, one core"
SHAPES = (  # rows, columns and positions of 1x1 layers of MobileNet v1 and EfficientNet-Lite0
    (64, 32, 12544),
    (128, 128, 3136),
    (256, 256, 784),
    (512, 512, 196),
    (144, 24, 3136),
    (672, 112, 196),
    (112, 672, 196),
)
BARS = {0.3: 1.6, 0.1: 3.9}  # speed-up over torch.mm, by density
DENSITIES = (0.3, 0.1, 0.05)  # of layers
NETWORK_DENSITY = 0.15
NETWORK_BAR = 1.3
ENGINES, COMPILED = "engines", "torch.compile"  # rivals beside eager PyTorch; slow to start
SETTLE = 0.05  # seconds before each run of a network: the threads of other runtimes spin
BATCH, LEARNING_RATE = 64, 3e-3
TRAINING_DIGITS = 1000


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims; the paper makes none about GPUs."""
    if scale == "gpu":
        return
    if scale == "quick":
        yield counted_products(
            _weights(seed),
            source="an exact method",
            drawn=f"random weights at densities {DENSITIES}, {len(SHAPES)} shapes {SHAPES}",
            seed=seed,
        )
        torch.manual_seed(seed)
        yield from _small_network(mobilenet_v2(0.35), 96, seed)
        return
    yield from _kernels(SHAPES, seed)
    torch.manual_seed(seed)
    yield from _network("EfficientNet-Lite0", efficientnet_lite0(), 224, seed, ENGINES, COMPILED)
    yield from _network("MobileNet v1", mobilenet_v1(), 224, seed, ENGINES)
    yield from _network("MobileNet v2", mobilenet_v2(), 224, seed, ENGINES)
    yield from _accuracy((0.2, 0.1), range(seed, seed + 3), steps=400)


def _weights(seed: int) -> Iterator[tuple[Tensor, int]]:
    """Draw the weight of every shape at every density, and say how many columns it multiplies."""
    generator = torch.Generator().manual_seed(seed)
    for rows, columns, width in SHAPES:
        for density in DENSITIES:
            weight = torch.randn(rows, columns, generator=generator)
            yield weight * (torch.rand(rows, columns, generator=generator) < density), width


def _small_network(model: nn.Sequential, size: int, seed: int) -> Iterator[Claim]:
    """Prune a whole network and take its sparse kernels, whatever they cost."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, size, size, generator=generator)
    prune(model, NETWORK_DENSITY)
    _settle(model, generator, size)
    sparse = inference.compile(model, image, kernel="sparse")
    claim = partial(
        Claim,
        paper="exact",
        source="an exact method",
        setting=f"MobileNet v2, width 0.35, {size}x{size}, 1x1 convolutions at density "
        f"{NETWORK_DENSITY} by magnitude",
    )
    error = _exact_output(sparse, model, image)[1]
    yield claim(
        claim="a network's outputs are those of the masked dense one",
        baseline="float64, every weight multiplied",
        ours=error,
        criterion="largest error <= 1e-4 of the largest output",
        holds=error <= 1e-4,
    )
    layers = [layer for layer in sparse.report() if layer.weight[2:] == (1, 1)]
    expected = sum(
        int(conv.weight.count_nonzero()) * math.prod(layer.output[2:])
        for conv, layer in zip(_pointwise(model), layers, strict=True)
    )
    ours = sum(layer.multiplications for layer in layers)
    yield claim(
        claim="every 1x1 convolution of it runs sparsely, on the weights that are left alone",
        baseline=expected,
        ours=ours,
        criterion="multiplications = baseline, in the sparse kernel",
        holds=ours == expected and all(layer.kernel == "spmm" for layer in layers),
    )


def _exact_output(sparse: nn.Module, model: nn.Module, image: Tensor) -> tuple[Tensor, float]:
    """Return the output with every weight multiplied in float64, and how far `sparse` is off."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(image.double())
    return exact, float((sparse(image) - exact).abs().max() / exact.abs().max())


def _kernels(shapes: tuple[tuple[int, int, int], ...], seed: int) -> Iterator[Claim]:
    """Time one layer's product against what else could do it, on one thread."""
    found = {}
    for kept in DENSITIES:
        with _threads(1):
            found[kept] = [_speedups(*shape, kept, seed) for shape in shapes]
    means = {
        kept: {name: _geometric_mean([one[name] for one in ones]) for name in ones[0]}
        for kept, ones in found.items()
    }
    setting = f"random weights, {len(shapes)} shapes {shapes}, one thread; " + "; ".join(
        f"density {kept}: " + ", ".join(f"{value:.2f} over {name}" for name, value in one.items())
        for kept, one in means.items()
    )
    rows = [
        (f"dense float32 at density {kept}", kept, "torch.mm", bar) for kept, bar in BARS.items()
    ]
    rows += [("torch's CSR at density 0.1", 0.1, "CSR", 2.0)]
    if "SSE" in means[0.1]:
        held = "the same kernel held to SSE, as XNNPACK's is on x86, at density 0.1"
        rows += [(held, 0.1, "SSE", 2.0)]
    rows += [("dense bfloat16 at density 0.1", 0.1, "bfloat16", 1.0)]
    for what, kept, name, bar in rows:
        yield Claim(
            claim=f"a sparse 1x1 layer is faster than {what}",
            paper="faster than MKL and TACO at densities of 0.05 to 0.3",
            source="introduction",
            baseline=1.0,
            ours=means[kept][name],
            criterion=f"geometric mean of speed-ups >= {bar}",
            holds=means[kept][name] >= bar,
            setting=setting,
        )


def _speedups(rows: int, columns: int, width: int, kept: float, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.rand(rows, columns, generator=generator) < kept
    dense = torch.randn(columns, width, generator=generator)
    packed = pack(weight)
    csr, half = packed.to_csr(), (weight.bfloat16(), dense.bfloat16())
    out, half_out = torch.empty(rows, width), torch.empty(rows, width, dtype=torch.bfloat16)
    program = Program(dense, out)  # as networks run it
    program.spmm(packed, dense[None], out[None], None, (-math.inf, math.inf))

    def on_sse() -> None:
        with instruction_set("portable"):
            program.run(dense, out)

    functions: dict[str, Callable[[], object]] = {
        "ours": lambda: program.run(dense, out),
        "torch.mm": lambda: torch.mm(weight, dense, out=out),
        "CSR": lambda: csr @ dense,
        "bfloat16": lambda: torch.mm(*half, out=half_out),
    }
    if len(instruction_sets()) > 1:
        functions["SSE"] = on_sse
    program.run(dense, out)
    torch.testing.assert_close(out, weight @ dense, rtol=1e-4, atol=1e-3)
    times = interleaved(functions, repeats=25, warmup=3)
    ours = times.pop("ours")
    return {name: ratio(other, ours).median for name, other in times.items()}


def _network(
    name: str, model: nn.Sequential, size: int, seed: int, *rivals: str
) -> Iterator[Claim]:
    """Prune the 1x1 convolutions and time one image through the whole network."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, size, size, generator=generator)
    prune(model, NETWORK_DENSITY)
    if not name.startswith("Eff"):
        _settle(model, generator, size)
    sparse = inference.compile(model, image)
    exact, error = _exact_output(sparse, model, image)
    functions = {"ours": lambda: sparse(image)}
    functions |= torch_runners(model, image, compiled=COMPILED in rivals)
    absent = ""
    if ENGINES in rivals:
        engines, absent = engine_runners(model, image, exact.float())
        functions |= engines
    times = interleaved(functions, repeats=15, warmup=3, settle=SETTLE)
    ms = {key: 1e3 * samples.median for key, samples in times.items()}
    kernels = Counter(layer.kernel for layer in sparse.report())
    setting = (
        f"1x1 convolutions at density {NETWORK_DENSITY} by magnitude, {size}x{size}, batch 1, "
        f"{torch.get_num_threads()} threads; milliseconds "
        + ", ".join(f"{key} {value:.2f}" for key, value in ms.items())
        + f"; kernels {dict(kernels)}{absent}"
    )
    yield Claim(
        claim=f"{name}: outputs are those of the masked dense network",
        paper="exact",
        source="an exact method",
        baseline="float64, every weight multiplied",
        ours=error,
        criterion="largest error <= 1e-4 of the largest output",
        holds=error <= 1e-4,
        setting=setting,
    )
    torch_ms = min(value for key, value in ms.items() if key.startswith("torch"))
    compared = [("PyTorch's best float32 layout or compiler", torch_ms, NETWORK_BAR)]
    if "onnxruntime" in ms:
        compared += [("ONNX Runtime, dense float32", ms["onnxruntime"], 1.0)]
    if litert := [value for key, value in ms.items() if key.startswith("litert")]:
        compared += [("LiteRT on XNNPACK, float32, its best setting", min(litert), 1.0)]
    compared += [("dense bfloat16", ms["bfloat16"], 1.0)]
    for rival, baseline, bar in compared:
        yield Claim(
            claim=f"{name}: one image takes less time than with {rival}",
            paper="1.3 to 2.4 times as fast as the dense equivalent",
            source=ABSTRACT,
            baseline=baseline,
            ours=ms["ours"],
            criterion=f"baseline / ours >= {bar} (milliseconds)",
            holds=baseline / ms["ours"] >= bar,
            setting=setting,
        )


def prune(model: nn.Module, density: float) -> None:
    """Keep the largest weights of every 1x1 convolution, `density` of them."""
    with torch.no_grad():
        for conv in _pointwise(model):
            conv.weight *= Density(density, dim=None).select(magnitude(conv.weight))


def _pointwise(model: nn.Module) -> list[nn.Conv2d]:
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [conv for conv in convs if conv.kernel_size == (1, 1)]


def _settle(model: nn.Module, generator: torch.Generator, size: int) -> None:
    """Give the batch norms of an untrained network the statistics of noise, so that it passes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, size, size, generator=generator))
    model.eval()


def _accuracy(densities: tuple[float, ...], seeds: range, *, steps: int) -> Iterator[Claim]:
    """Train dense, pruned and narrower networks for as many steps, and compare at equal work."""
    dense = [_train(1.0, 1.0, seed, steps) for seed in seeds]
    for density in densities:
        pruned = [_train(1.0, density, seed, steps) for seed in seeds]
        width = _equal_width(pruned[0][1])
        narrow = [_train(width, 1.0, seed, steps) for seed in seeds]
        accuracies = {
            name: [accuracy for accuracy, _ in runs]
            for name, runs in (("dense", dense), ("pruned", pruned), ("narrow", narrow))
        }
        ours, baseline = (statistics.mean(accuracies[name]) for name in ("pruned", "narrow"))
        listed = "; ".join(
            f"{name} {', '.join(f'{value:.4f}' for value in values)}"
            for name, values in accuracies.items()
        )
        yield Claim(
            claim=f"pruned to density {density}, it is more accurate than a narrower dense network "
            "of as many multiplications",
            paper="68.4 % top-1 with MobileNet v1 at density 0.1, in 31 ms",
            source="README of the released models",
            baseline=baseline,
            ours=ours,
            criterion=f"ours >= baseline, the mean accuracy of {len(seeds)} seeds",
            holds=ours >= baseline,
            setting=f"small MobileNet on scikit-learn's digits, {TRAINING_DIGITS} to train on, "
            f"shifted by up to a pixel, {steps} steps of {BATCH}, AdamW {LEARNING_RATE}, every 1x1 "
            f"convolution pruned along a cubic schedule; width {width:.3f}; multiplications dense "
            f"{dense[0][1]}, pruned {pruned[0][1]}, narrow {narrow[0][1]}; accuracy {listed}",
        )


def _train(width: float, density: float, seed: int, steps: int) -> tuple[float, int]:
    """Return test accuracy, of the compiled network, and its multiplications an image."""
    images, labels, test_images, test_labels = _digits(seed)
    torch.manual_seed(seed)
    model = small_mobilenet(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    begin, ramp, every = steps // 5, steps // 2, max(1, steps // 40)
    kept = Cubic(1.0, density, steps=ramp, begin=begin)
    again = EverySteps(every, until=begin + ramp + every)  # the last one is at the final density
    masks: dict[nn.Conv2d, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(_shifted(images[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            for conv in _pointwise(model) if density < 1 else []:
                if again.due(step) or conv not in masks:
                    budget = Density(kept(step), dim=None)
                    masks[conv] = budget.select(magnitude(conv.weight))
                conv.weight *= masks[conv]
    kernel = "sparse" if density < 1 else "dense"
    compiled = inference.compile(model.eval(), test_images[:1], kernel=kernel)
    right = compiled(test_images).argmax(1) == test_labels
    return float(right.float().mean()), sum(one.multiplications for one in compiled.report())


def _equal_width(multiplications: int) -> float:
    """The narrowest dense network that multiplies at least as often."""
    for channels in range(8, 257, 8):
        model = small_mobilenet(channels / 256).eval()
        report = inference.compile(model, torch.zeros(1, 1, 8, 8), kernel="dense").report()
        if sum(layer.multiplications for layer in report) >= multiplications:
            return channels / 256
    return 1.0


def _digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [0, 1] and labels, to train on and to test with."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = (torch.from_numpy(pixels).float() / 16).reshape(-1, 1, 8, 8)[order]
    found = torch.from_numpy(labels)[order]
    cut = TRAINING_DIGITS
    return images[:cut], found[:cut], images[cut:], found[cut:]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to one pixel, rows and columns alike for all of it."""
    top, left = torch.randint(3, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[..., top : top + 8, left : left + 8]


def _geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.mean(math.log(value) for value in values))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
