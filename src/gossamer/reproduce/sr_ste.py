"""SR-STE: N:M networks from scratch beside dense, STE and pruned ones, and how masks settle.

"Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch" (arXiv 2102.04010)
reports that ResNet-50 on ImageNet loses nothing at 2:4, that straight-through gradients alone make
masks flip, and that a pull on dropped weights settles them. Measured here with a small network
on handwritten digits, where 2:4 leaves plenty and 1:16 is what hurts.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.bench.counting import MacCounter
from gossamer.bench.timing import Samples, interleaved, ratio
from gossamer.data.digits import Digits, digits
from gossamer.layers import PackedLinear
from gossamer.measure import mask_divergence
from gossamer.patterns import NM
from gossamer.reproduce import Claim
from gossamer.training import (
    SRSTE,
    DenseTraining,
    StaticSparse,
    TrainingMethod,
    attach,
    nm_mask,
)

README = "official code, README"
EPOCHS, BATCH, LR = 40, 100, 0.05
LAST = "4"  # the classifier stays dense, as in the paper
HARD = (1, 16)
DECAYS = (-2e-2, 0.0, 2e-4, 2e-3, 2e-2)
SETTING = (
    f"scikit-learn digits, 1200 train and 597 test, MLP 64-256-256-10, last layer dense, SGD lr "
    f"{LR} momentum 0.9 weight decay 5e-5, batch {BATCH}, {EPOCHS} epochs"
)


@dataclass(frozen=True)
class _Trained:
    """One network: its test figures, and how far its masks went from the first ones."""

    accuracy: float
    loss: float
    flipped: float


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims; "gpu" times the 2:4 products of a CUDA device instead."""
    if scale == "gpu":
        yield from _semi_structured(seed)
        return
    data = digits()
    if scale == "quick":
        yield _kept(data, seed)
        yield _gradient(data, seed)
        yield _packed(seed, size=1024)
        return
    seeds = range(seed, seed + 5)
    yield _two_of_four(data, seeds)
    yield _fixed_mask(data, seeds)
    yield from _sweep({decay: _runs(data, SRSTE(*HARD, decay=decay), seeds) for decay in DECAYS})
    yield _speed(seed, size=4096)


def _kept(data: Digits, seed: int) -> Claim:
    """Train for a few steps and look at what each forward pass multiplies with."""
    wrong = seen = 0
    for n, m in ((2, 4), HARD):
        model = _network(seed)
        optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
        with attach(model, optimizer, SRSTE(n, m), skip=[LAST]) as attachment:
            for rows in torch.arange(len(data.train)).split(BATCH):
                for name in attachment.masks():
                    layer = model.get_submodule(name)
                    dense = layer.get_parameter("parametrizations.weight.original").detach()
                    used = layer.weight.detach().unflatten(1, (-1, m))  # pyright: ignore
                    groups = dense.unflatten(1, (-1, m))
                    least = groups.abs().topk(n).values[..., -1:]
                    exact = groups * (groups.abs() >= least)
                    wrong += int((used != exact).any(-1).sum())
                    seen += groups[..., 0].numel()
                optimizer.zero_grad()
                F.cross_entropy(model(data.train[rows]), data.train_labels[rows]).backward()
                optimizer.step()
    return Claim(
        claim="at every step a layer multiplies with the N largest weights of every M",
        paper="by construction",
        source="arXiv 2102.04010, N:M masks",
        baseline=0,
        ours=wrong,
        criterion="no group whose weights in use differ from its N largest",
        holds=wrong == 0 < seen,
        setting=f"{seen} groups of 2:4 and {HARD[0]}:{HARD[1]}, an epoch of digits each, MLP "
        "64-256-256-10, last layer dense",
    )


def _gradient(data: Digits, seed: int) -> Claim:
    """Take one step and compare with the gradient by the sparse weights and the pull by hand."""
    decay, model = DECAYS[-1], _network(seed).double()
    x, labels = data.train[:BATCH].double(), data.train_labels[:BATCH]
    dense = {name: part.detach().clone() for name, part in model.named_parameters()}
    dropped = {
        name: ~nm_mask(part, *HARD)
        if part.ndim == 2 and not name.startswith(LAST)
        else torch.zeros_like(part, dtype=torch.bool)
        for name, part in dense.items()
    }
    sparse = {
        name: part.masked_fill(dropped[name], 0).requires_grad_() for name, part in dense.items()
    }
    loss = F.cross_entropy(torch.func.functional_call(model, sparse, (x,)), labels)
    slopes = torch.autograd.grad(loss, list(sparse.values()))
    optimizer = torch.optim.SGD(model.parameters(), LR)
    with attach(model, optimizer, SRSTE(*HARD, decay=decay), skip=[LAST]):
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        stepped = {name: part.detach().clone() for name, part in model.named_parameters()}
    error = 0.0
    for (name, part), slope in zip(dense.items(), slopes, strict=True):
        found = stepped.get(name)
        if found is None:
            found = stepped[name.replace("weight", "parametrizations.weight.original")]
        exact = part - LR * (slope + decay * part * dropped[name])
        error = max(error, float((found - exact).abs().max()))
    return Claim(
        claim="a step follows the gradient by the sparse weights, and pulls on the dropped ones",
        paper="exact",
        source="arXiv 2102.04010, SR-STE",
        baseline="dense weights after g + decay (1 - E) W by hand, float64",
        ours=error,
        criterion="largest difference of a weight <= 1e-12",
        holds=error <= 1e-12,
        setting=f"{HARD[0]}:{HARD[1]}, decay {decay:g}, one step of SGD on {BATCH} digits",
    )


@torch.no_grad()
def _packed(seed: int, size: int) -> Claim:
    """Count what a packed 2:4 layer multiplies, and compare its outputs."""
    generator, errors, shares = torch.Generator().manual_seed(seed), [], []
    layer, packed = _two_of_four_layer(generator, size)
    for rows in (1, 64):
        x = torch.randn(rows, size, generator=generator)
        with MacCounter() as counter:
            found = packed(x)
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
        errors.append(float((found - exact).abs().max() / exact.abs().max()))
        shares.append(counter.total / (rows * size**2))
    return Claim(
        claim="a packed 2:4 layer gives the masked layer's outputs for half of its multiply-adds",
        paper="half",
        source="abstract",
        baseline=0.5,
        ours=max(shares),
        criterion="share of multiply-adds executed = baseline, outputs within 1e-5 of the largest",
        holds=shares == [0.5, 0.5] and max(errors) <= 1e-5,
        setting=f"[1 and 64, {size}] x [{size}, {size}], float32, errors "
        + ", ".join(f"{error:.1e}" for error in errors),
    )


def _two_of_four_layer(generator: torch.Generator, size: int) -> tuple[nn.Linear, PackedLinear]:
    layer = nn.Linear(size, size).requires_grad_(False)
    layer.weight.copy_(torch.randn(size, size, generator=generator))
    layer.weight *= nm_mask(layer.weight, 2, 4)
    return layer, PackedLinear.from_dense(layer, NM(2, 4))


def _network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )


def _train(
    data: Digits, method: TrainingMethod, seed: int, model: nn.Module | None = None
) -> tuple[nn.Module, _Trained]:
    """Train a fresh network, or `model` again, and test it."""
    model = _network(seed) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-5)
    generator = torch.Generator().manual_seed(seed)
    with attach(model, optimizer, method, skip=[LAST]) as attachment:
        first = attachment.masks()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(data.train), generator=generator).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(data.train[rows]), data.train_labels[rows]).backward()
                optimizer.step()
        flipped = mask_divergence(first, attachment.masks()).share if first else 0.0
    accuracy, loss = _test(model, data)
    return model, _Trained(accuracy, loss, flipped)


@torch.no_grad()
def _test(model: nn.Module, data: Digits) -> tuple[float, float]:
    logits = model(data.test)
    accuracy = float((logits.argmax(-1) == data.test_labels).double().mean())
    return 100 * accuracy, float(F.cross_entropy(logits.double(), data.test_labels))


def _runs(data: Digits, method: TrainingMethod, seeds: range) -> list[_Trained]:
    return [_train(data, method, seed)[1] for seed in seeds]


def _mean(runs: list[_Trained], name: str) -> float:
    return statistics.fmean(getattr(run, name) for run in runs)


def _listed(runs: list[_Trained]) -> str:
    return (
        f"accuracy {', '.join(f'{run.accuracy:.2f}' for run in runs)}, loss "
        f"{', '.join(f'{run.loss:.4f}' for run in runs)}, masks flipped "
        f"{', '.join(f'{run.flipped:.4f}' for run in runs)}"
    )


def _two_of_four(data: Digits, seeds: range) -> Claim:
    found = {
        "dense": _runs(data, DenseTraining(), seeds),
        "STE": _runs(data, SRSTE(2, 4, decay=0.0), seeds),
        "SR-STE": _runs(data, SRSTE(2, 4), seeds),
    }
    dense, ours = (_mean(found[name], "accuracy") for name in ("dense", "SR-STE"))
    return Claim(
        claim="2:4 from scratch is as accurate as dense",
        paper="ResNet-50, ImageNet: 77.0, dense 77.3 to 77.7",
        source=f"{README}; dense runs from its issue 7",
        baseline=dense,
        ours=ours,
        criterion="ours >= baseline - 1.0 (mean accuracy in percent)",
        holds=ours >= dense - 1.0,
        setting=f"{SETTING}; "
        + "; ".join(f"{name}: {_listed(runs)}" for name, runs in found.items()),
    )


def _fixed_mask(data: Digits, seeds: range) -> Claim:
    """Compare with pruning the trained network once, with and without a second training."""
    fixed = StaticSparse(HARD[0] / HARD[1], "uniform", criterion="magnitude", pattern=NM(*HARD))
    one_shot, retrained = [], []
    for seed in seeds:
        model, _ = _train(data, DenseTraining(), seed)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        attach(model, optimizer, fixed, skip=[LAST]).detach()
        one_shot.append(_test(model, data)[0])
        retrained.append(_train(data, fixed, seed, model)[1])
    scratch = _runs(data, SRSTE(*HARD), seeds)
    again, ours = _mean(retrained, "accuracy"), _mean(scratch, "accuracy")
    return Claim(
        claim="1:16 from scratch is as accurate as training dense, pruning and training again",
        paper="better, at half the training",
        source="abstract and introduction",
        baseline=again,
        ours=ours,
        criterion="ours >= baseline - 0.5 (mean accuracy in percent)",
        holds=ours >= again - 0.5,
        setting=f"{SETTING}; pruned once without training again: "
        f"{statistics.fmean(one_shot):.2f}; retrained: {_listed(retrained)}; SR-STE: "
        f"{_listed(scratch)}",
    )


def _sweep(found: dict[float, list[_Trained]]) -> Iterator[Claim]:
    """Compare pulls on dropped weights at 1:16; 0 is STE, 2e-4 the paper's."""
    setting = f"{SETTING}, 1:16; " + "; ".join(
        f"decay {decay:g}: {_listed(runs)}" for decay, runs in found.items()
    )
    plain, ours, pushed = found[0.0], found[2e-4], found[-2e-2]
    losses = _mean(plain, "loss"), _mean(ours, "loss")
    yield Claim(
        claim="the pull on dropped weights does not hurt: test loss against STE",
        paper="SR-STE above STE, more so the sparser",
        source="the paper's argument",
        baseline=losses[0],
        ours=losses[1],
        criterion="ours <= 1.02 x baseline (means)",
        holds=losses[1] <= 1.02 * losses[0],
        setting=setting,
    )
    flipped = {decay: _mean(runs, "flipped") for decay, runs in found.items()}
    yield Claim(
        claim="it settles the masks: share of mask bits that differ from the first masks (SAD)",
        paper="lower than STE",
        source="the paper's argument",
        baseline=flipped[0.0],
        ours=flipped[2e-4],
        criterion="ours < baseline (means)",
        holds=flipped[2e-4] < flipped[0.0],
        setting=setting,
    )
    falling = [flipped[decay] for decay in sorted(flipped)]
    yield Claim(
        claim="the stronger the pull, the fewer flips, from pushing to pulling",
        paper="a negative decay flips more, a larger one less",
        source="the paper's argument",
        baseline=falling[0],
        ours=falling[-1],
        criterion="SAD strictly falls over decay -2e-2, 0, 2e-4, 2e-3, 2e-2",
        holds=all(a > b for a, b in pairwise(falling)),
        setting=f"SAD {', '.join(f'{share:.4f}' for share in falling)}; otherwise {setting}",
    )
    accuracies = _mean(ours, "accuracy"), _mean(pushed, "accuracy")
    yield Claim(
        claim="pushing dropped weights away is disastrous",
        paper="a negative decay hurts",
        source="the paper's argument",
        baseline=accuracies[0],
        ours=accuracies[1],
        criterion="ours, decay -2e-2, at least 5 percentage points below baseline, 2e-4",
        holds=accuracies[1] <= accuracies[0] - 5,
        setting=setting,
    )


@torch.no_grad()
def _speed(seed: int, size: int) -> Claim:
    """Time one row and 64 rows through a packed 2:4 layer and through torch's, in float32."""
    generator = torch.Generator().manual_seed(seed)
    layer, packed = _two_of_four_layer(generator, size)
    gains: dict[int, Samples] = {}
    for rows in (1, 64):
        x = torch.randn(rows, size, generator=generator)
        error = float((packed(x) - layer(x)).abs().max() / layer(x).abs().max())
        if error > 1e-4:
            raise ValueError(f"expected the packed layer to equal the dense one, off by {error:g}")
        times = interleaved({"dense": partial(layer, x), "ours": partial(packed, x)}, repeats=21)
        gains[rows] = ratio(times["dense"], times["ours"])
    return Claim(
        claim="what was trained decodes faster: one row through a packed 2:4 layer",
        paper="up to 2 on an A100",
        source="abstract",
        baseline=1.0,
        ours=gains[1].median,
        criterion="speed-up over torch.nn.Linear >= 1.3 (median of 21 rounds)",
        holds=gains[1].median >= 1.3,
        setting=f"[1, {size}] x [{size}, {size}], float32, {torch.get_num_threads()} threads, "
        f"spread {gains[1].spread:.2f}; with 64 rows the speed-up is {gains[64].median:.2f}",
    )


@torch.no_grad()
def _semi_structured(seed: int) -> Iterator[Claim]:
    """Time torch's own 2:4 product on the device, and what mask and packing cost a step."""
    from torch.sparse import to_sparse_semi_structured

    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    for size in (4096, 8192, 14336):
        x, weight = draw(8192, size), draw(size, size)
        weight *= nm_mask(weight, 2, 4)
        packed = to_sparse_semi_structured(weight)
        times = interleaved(
            {
                "dense": partial(F.linear, x, weight),
                "ours": partial(F.linear, x, packed),
                "packing": lambda w=weight: to_sparse_semi_structured(w * nm_mask(w, 2, 4)),
            },
            repeats=20,
            warmup=5,
            device="cuda",
        )
        gain = ratio(times["dense"], times["ours"])
        yield Claim(
            claim=f"a 2:4 product of {size} x {size} beats the dense one",
            paper="up to 2 on an A100",
            source="abstract",
            baseline=1.0,
            ours=gain.median,
            criterion="speed-up >= 1.2 (median of 20 rounds)",
            holds=gain.median >= 1.2,
            setting=f"bf16, M = 8192, {1e3 * times['dense'].median:.2f} ms dense; mask and packing "
            f"cost {1e3 * times['packing'].median:.2f} ms a training step",
        )
