"""Speed of the sparse weight kernels against dense PyTorch, as ratios within one run.

SpMM: layers of convolutional and language networks times many columns, at random weights, against
torch.mm in float32; torch.mm in bfloat16 and torch's own CSR product stand beside, so that no
ratio hides a cheaper answer. GEMV: one token through weights that no cache holds. Training:
forward and both gradients of a linear layer, and what stays in memory between two steps.
Decode: one token with most activations zero. Every kernel is checked before it is timed.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gossamer.bench.figures import Figure, check, figure, mean_figure, name_of
from gossamer.bench.timing import Samples, interleaved, ratio
from gossamer.kernels import activation_sparse_matmul, pack, sparse_gemv, spmm
from gossamer.kernels.memory import empty_streamed
from gossamer.layers import SparseLinear

# [M, K] times [K, P]: MobileNet v1, EfficientNet-Lite0 and SmolLM2, with two awkward narrow ones.
PRODUCTS = (
    (64, 32, 12544),
    (128, 128, 3136),
    (256, 256, 784),
    (512, 512, 196),
    (1024, 1024, 49),
    (144, 24, 3136),
    (672, 112, 196),
    (112, 672, 196),
    (320, 1152, 49),
    (1536, 576, 256),
    (576, 1536, 256),
    (2048, 2048, 256),
)
WIDE = 196  # columns from which a product counts for the bars
PRODUCT_BARS = {0.3: 1.7, 0.2: 2.4, 0.1: 4.2, 0.05: 7.0}
CSR_BARS = {0.1: 2.0, 0.05: 2.0}
SAMPLE_FLOPS = 4e9  # of dense work, at least, in one timed call: some two milliseconds at .05

VECTORS = ((1536, 576), (576, 1536), (2048, 2048))
VECTOR_BARS = {0.5: 2.5, 0.3: 2.7, 0.2: 2.8, 0.1: 4.8, 0.05: 8.0}
STREAM = 192 << 20  # bytes of float32 weights that take turns, past the caches of a core

FEATURES, BATCH = 2048, 128
TRAINING_BARS = {0.1: 1.5, 0.05: 2.5}
PEER_BARS = {0.1: 1.5}
MEMORY_BARS = {0.1: 0.3}

TOKEN = (4096, 4096)
ACTIVE = (0.5, 0.2, 0.1)


def sparse(rows: int, columns: int, density: float, seed: int) -> Tensor:
    """A dense tensor with random zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) < density)


def products(device: str, repeats: int) -> Iterator[Figure]:
    """Time products with many columns."""
    for density, bar in PRODUCT_BARS.items():
        cases = []
        for rows, columns, width in PRODUCTS:
            times = _product(rows, columns, width, density, device, repeats)
            case = f"{rows}x{columns}x{width}"
            for other in ("dense float32", "dense bfloat16", "CSR"):
                yield figure(f"SpMM {case}, {other}", density, times[other], times["ours"])
            if width >= WIDE:
                cases.append(times)
        for other, wanted in (
            ("dense float32", bar),
            ("dense bfloat16", None),
            ("CSR", CSR_BARS.get(density)),
        ):
            ratios = [ratio(times[other], times["ours"]) for times in cases]
            yield mean_figure(f"SpMM, mean over P >= {WIDE}, {other}", density, ratios, wanted)


def _product(
    rows: int, columns: int, width: int, density: float, device: str, repeats: int
) -> dict[str, Samples]:
    weight = sparse(rows, columns, density, seed=0).to(device)
    dense = torch.randn(columns, width, generator=torch.Generator().manual_seed(1)).to(device)
    packed, csr = pack(weight), pack(weight).to_csr()
    weight_half, dense_half = weight.bfloat16(), dense.bfloat16()
    check(spmm(packed, dense), weight.double() @ dense.double(), 1e-5)
    calls = max(1, round(SAMPLE_FLOPS / (2 * rows * columns * width)))
    return interleaved(
        {
            "dense float32": _repeat(calls, lambda: torch.mm(weight, dense)),
            "dense bfloat16": _repeat(calls, lambda: torch.mm(weight_half, dense_half)),
            "CSR": _repeat(calls, lambda: torch.mm(csr, dense)),
            "ours": _repeat(calls, lambda: spmm(packed, dense)),
        },
        repeats=repeats,
        warmup=2,
        device=device,
    )


def _repeat(calls: int, call: Callable[[], Tensor]) -> Callable[[], None]:
    """Call again and again, each result's memory free for the next."""

    def run() -> None:
        for _ in range(calls):
            call()

    return run


def vectors(device: str, repeats: int) -> Iterator[Figure]:
    """Time one token through weights that come from memory; our values are bfloat16."""
    ratios: dict[tuple[float, str], list[Samples]] = {}
    for rows, columns in VECTORS:
        copies = range(-(-STREAM // (4 * rows * columns)))
        weights = [sparse(rows, columns, 1.0, seed).to(device) for seed in copies]
        halves = [weight.bfloat16() for weight in weights]
        paged = [empty_streamed(weight.shape, weight.dtype, weight.device) for weight in weights]
        for page, weight in zip(paged, weights, strict=True):
            page.copy_(weight)
        token = torch.randn(columns, generator=torch.Generator().manual_seed(1)).to(device)
        half = token.bfloat16()
        for density in VECTOR_BARS:
            mask = sparse(rows, columns, density, seed=0).to(device) != 0
            packed = [pack(weight * mask, dtype=torch.bfloat16) for weight in weights]
            exact = (halves[0] * mask).double() @ token.double()
            check(sparse_gemv(packed[0], token[None])[0], exact, 1e-5)
            times = interleaved(
                {
                    "dense float32": lambda weights=weights, token=token: [
                        torch.mv(weight, token) for weight in weights
                    ],
                    "dense float32 on huge pages": lambda paged=paged, token=token: [
                        torch.mv(weight, token) for weight in paged
                    ],
                    "dense bfloat16": lambda halves=halves, half=half: [
                        torch.mv(weight, half) for weight in halves
                    ],
                    "ours": lambda packed=packed, token=token[None]: [
                        sparse_gemv(weight, token) for weight in packed
                    ],
                },
                repeats=repeats,
                device=device,
            )
            for other in ("dense float32", "dense float32 on huge pages", "dense bfloat16"):
                name = f"GEMV {rows}x{columns}, {other}"
                yield figure(name, density, times[other], times["ours"])
                paired = ratio(times[other], times["ours"])
                ratios.setdefault((density, other), []).append(paired)
    for (density, other), series in ratios.items():
        bar = VECTOR_BARS[density] if other == "dense float32" else None
        yield mean_figure(f"GEMV, mean, {other}", density, series, bar)


def training(device: str, repeats: int) -> Iterator[Figure]:
    """Time forward and both gradients of one layer, and count what stays between two steps."""
    for density, bar in TRAINING_BARS.items():
        dense = nn.Linear(FEATURES, FEATURES, device=device)
        mask = sparse(FEATURES, FEATURES, density, seed=0).to(device) != 0
        with torch.no_grad():
            dense.weight *= mask
        ours = SparseLinear.from_dense(dense, mask)
        steps = {"dense float32": _step(dense, device), "ours": _step(ours, device)}
        found, exact = steps["ours"](), steps["dense float32"]()
        check(found[0], exact[0], 1e-5)
        check(found[1], exact[1][mask], 1e-5)
        half = nn.Linear(FEATURES, FEATURES, dtype=torch.bfloat16, device=device)
        steps["dense bfloat16"] = _step(half, device)
        if importlib.util.find_spec("sparselab") is not None:
            peer = importlib.import_module("sparselab")  # found at run time: no extra brings it
            layer = peer.SparseLinear(FEATURES, FEATURES, sparsity=1.0 - density)
            steps["sparselab"] = _step(layer, device)
        times = interleaved(steps, repeats=repeats, warmup=3, device=device)
        bars = {"dense float32": bar, "sparselab": PEER_BARS.get(density)}
        for other in times:
            if other != "ours":
                name = f"training step, {other}"
                yield figure(name, density, times[other], times["ours"], bars.get(other))
        yield _memory(dense, ours, density)


def _step(layer: nn.Module, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, and the gradients of input and parameters, of one batch."""
    dtype = next(layer.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(BATCH, FEATURES, generator=generator).to(device, dtype) for _ in "xg")
    x.requires_grad_()
    parameters = list(layer.parameters())
    return lambda: torch.autograd.grad(layer(x), (x, *parameters), grad)


def _memory(dense: nn.Linear, ours: SparseLinear, density: float) -> Figure:
    """Bytes that stay between two steps of Adam, ours over dense."""
    held = []
    for layer in (ours, dense):
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(1, FEATURES, device=dense.weight.device)).sum().backward()
        optimizer.step()
        tensors = [*layer.parameters(), *layer.buffers()]
        tensors += [part.grad for part in layer.parameters() if part.grad is not None]
        states = (state.values() for state in optimizer.state.values())
        tensors += [part for state in states for part in state if part.numel() > 1]
        held.append(sum(part.numel() * part.element_size() for part in tensors))
    held[0] += sum(part.numel() * part.element_size() for part in ours.pattern.columns)
    share, bar = held[0] / held[1], MEMORY_BARS.get(density)
    holds = None if bar is None else share <= bar
    name = "memory of weight, gradient and Adam (at most)"
    return Figure(name, density, None, None, share, 0.0, bar, holds)


def decode(device: str, repeats: int) -> Iterator[Figure]:
    """Time one token with most activations zero, through weights that come from memory."""
    inputs, outputs = TOKEN
    for dtype in (torch.float32, torch.bfloat16):
        copies = range(-(-STREAM // (inputs * outputs * dtype.itemsize)))
        weights = [sparse(outputs, inputs, 1.0, seed).to(device, dtype) for seed in copies]
        turned = [weight.T.contiguous() for weight in weights]
        generator = torch.Generator().manual_seed(1)
        token = torch.randn(1, inputs, generator=generator).to(device)
        rank = torch.rand(inputs, generator=generator).argsort().argsort().to(device)
        full = token.to(dtype)
        tokens = {density: token * (rank < round(density * inputs)) for density in ACTIVE}
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda full=full, weights=weights: [full @ weight.T for weight in weights]
        }
        for density, active in tokens.items():
            check(activation_sparse_matmul(active, turned[0]), active @ weights[0].T.float(), 1e-4)
            runs[str(density)] = lambda active=active, turned=turned: [
                activation_sparse_matmul(active, weight) for weight in turned
            ]
        times = interleaved(runs, repeats=repeats, device=device)
        for density in ACTIVE:
            name = f"zero activations, dense {name_of(dtype)}"
            yield figure(name, density, times["dense"], times[str(density)])


PARTS = {"spmm": products, "gemv": vectors, "training": training, "decode": decode}
SHAPE = {"features": FEATURES, "batch": BATCH, "token": list(TOKEN), "stream_bytes": STREAM}
