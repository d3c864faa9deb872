"""Speed and memory of truly sparse training against dense PyTorch, as ratios within one run.

    python benchmarks/sparse_training.py [--out FILE] [--repeats N] [--only training|decode]

Training: forward and both gradients of one linear layer at random patterns, against the dense
layer in float32; the dense bfloat16 layer stands beside, so that no ratio hides a cheaper dense
answer. With the package `sparselab` installed, its layer is timed in the same rounds. Memory is
counted, not timed: all tensors that stay, of weight, gradient and Adam state. Decode: one token
times a weight read from memory, with most activations zero. Every kernel is checked against the
dense product before it is timed.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gossamer.bench import Samples, describe, interleaved, ratio, save_json
from gossamer.kernels import activation_sparse_matmul, instruction_sets
from gossamer.layers import SparseLinear

FEATURES, BATCH = 2048, 128
BARS = {0.1: 1.5, 0.05: 2.5}  # over dense float32
SPARSELAB_BAR = 1.5  # at density 0.1
MEMORY_BAR = 0.3  # at density 0.1, of dense
DECODE_SHAPE, DECODE_BYTES = (4096, 4096), 192 << 20  # bytes of weights, past the caches
DECODE_DENSITIES = (0.5, 0.2, 0.1)


@dataclass(frozen=True)
class Figure:
    """One measured ratio and the bar it is held against, if it has one."""

    name: str
    density: float
    milliseconds: float | None
    baseline_milliseconds: float | None
    ratio: float
    spread: float
    bar: float | None
    holds: bool | None


def check(ours: Tensor, oracle: Tensor, tolerance: float) -> None:
    """Refuse to time a kernel that is wrong."""
    error = float((ours.double() - oracle.double()).abs().max())
    if not error <= tolerance:
        raise SystemExit(f"a kernel is off by {error:.2e}, more than {tolerance:.0e}: not timed")


def figure(
    name: str, density: float, base: Samples, ours: Samples, bar: float | None = None
) -> Figure:
    paired = ratio(base, ours)
    holds = None if bar is None else paired.median >= bar
    return Figure(
        name,
        density,
        1e3 * ours.median,
        1e3 * base.median,
        paired.median,
        paired.spread,
        bar,
        holds,
    )


def training_step(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Forward, and the gradients of input and parameters, of one batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, FEATURES, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(BATCH, FEATURES, generator=generator).to(dtype)
    parameters = list(layer.parameters())
    return lambda: torch.autograd.grad(layer(x), (x, *parameters), grad)


def training(repeats: int) -> list[Figure]:
    figures = []
    for density, bar in BARS.items():
        torch.manual_seed(0)
        dense = nn.Linear(FEATURES, FEATURES)
        mask = torch.rand(FEATURES, FEATURES) < density
        with torch.no_grad():
            dense.weight *= mask
        sparse = SparseLinear.from_dense(dense, mask)
        steps = {"dense": training_step(dense), "sparse": training_step(sparse)}
        ours, exact = steps["sparse"](), steps["dense"]()
        check(ours[0], exact[0], 1e-4)
        check(ours[1], exact[1][mask], 1e-3)
        check(sparse(exact[0]), dense(exact[0]), 1e-4)
        half = nn.Linear(FEATURES, FEATURES, dtype=torch.bfloat16)
        steps["dense bfloat16"] = training_step(half, torch.bfloat16)
        if importlib.util.find_spec("sparselab") is not None:
            from sparselab import SparseLinear as PeerLinear

            steps["sparselab"] = training_step(
                PeerLinear(FEATURES, FEATURES, sparsity=1.0 - density)
            )
        times = interleaved(steps, repeats=repeats, warmup=3)
        ours = times["sparse"]
        figures.append(figure("training step, dense float32", density, times["dense"], ours, bar))
        figures.append(
            figure("training step, dense bfloat16", density, times["dense bfloat16"], ours)
        )
        if "sparselab" in times:
            peer_bar = SPARSELAB_BAR if density == 0.1 else None
            peer = figure("training step, sparselab", density, times["sparselab"], ours, peer_bar)
            figures.append(peer)
        figures.append(memory(dense, sparse, density))
    return figures


def memory(dense: nn.Linear, sparse: SparseLinear, density: float) -> Figure:
    """Bytes that stay between two steps of Adam, sparse over dense."""
    held = []
    for layer in (sparse, dense):
        optimizer = torch.optim.Adam(layer.parameters())
        x = torch.ones(1, FEATURES, requires_grad=True)
        layer(x).sum().backward()
        optimizer.step()
        tensors = [*layer.parameters(), *layer.buffers()]
        tensors += [p.grad for p in layer.parameters() if p.grad is not None]
        tensors += [
            t for state in optimizer.state.values() for t in state.values() if t.numel() > 1
        ]
        if isinstance(layer, SparseLinear):
            tensors += layer.pattern.columns
        held.append(sum(t.numel() * t.element_size() for t in tensors))
    share = held[0] / held[1]
    bar = MEMORY_BAR if density == 0.1 else None
    holds = None if bar is None else share <= bar
    name = "memory of weight, gradient and Adam (lower is better)"
    return Figure(name, density, None, None, share, 0.0, bar, holds)


def decode(repeats: int) -> list[Figure]:
    """One token after another through weights that no cache holds."""
    figures = []
    inputs, outputs = DECODE_SHAPE
    for dtype in (torch.float32, torch.bfloat16):
        copies = -(-DECODE_BYTES // (inputs * outputs * dtype.itemsize))
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.randn(outputs, inputs, generator=generator).to(dtype) for _ in range(copies)
        ]
        turned = [weight.T.contiguous() for weight in weights]
        token = torch.randn(1, inputs, generator=generator)
        rank = torch.rand(inputs, generator=generator).argsort().argsort()
        tokens = {d: token * (rank < round(d * inputs)) for d in DECODE_DENSITIES}
        for sparse in tokens.values():
            exact = sparse @ weights[0].T.float()
            check(activation_sparse_matmul(sparse, turned[0]), exact, 1e-2)
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda: [token.to(weights[0].dtype) @ weight.T for weight in weights]
        }
        for density, sparse in tokens.items():
            runs[str(density)] = lambda sparse=sparse: [
                activation_sparse_matmul(sparse, weight) for weight in turned
            ]
        times = interleaved(runs, repeats=repeats)
        name = f"decode with zero activations, {str(dtype).removeprefix('torch.')}"
        figures += [figure(name, d, times["dense"], times[str(d)]) for d in tokens]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--only", choices=("training", "decode"))
    parser.add_argument("--json", action="store_true", help="print the JSON document instead")
    options = parser.parse_args()
    figures = []
    if options.only in (None, "training"):
        figures += training(options.repeats)
    if options.only in (None, "decode"):
        figures += decode(options.repeats)
    machine = describe("cpu")
    document = {
        "schema": 1,
        "machine": machine.summary(),
        "versions": dict(machine.versions),
        "threads": torch.get_num_threads(),
        "instruction_sets": list(instruction_sets()),
        "shape": {"features": FEATURES, "batch": BATCH, "decode": list(DECODE_SHAPE)},
        "repeats": options.repeats,
        "figures": [asdict(figure) for figure in figures],
    }
    if options.out is not None:
        save_json(options.out, document)
    if options.json:
        Console().print_json(json.dumps(document))
        return
    columns = "against", "density", "ms", "baseline ms", "ratio", "spread", "bar", "holds"
    table = Table(*columns, title=f"Truly sparse training, {machine.summary()}")
    for row in figures:
        table.add_row(
            row.name,
            f"{row.density:.3f}",
            *(
                "" if ms is None else f"{ms:.2f}"
                for ms in (row.milliseconds, row.baseline_milliseconds)
            ),
            f"{row.ratio:.2f}",
            f"{row.spread:.2f}",
            "" if row.bar is None else f"{row.bar:.2f}",
            {None: "", True: "yes", False: "NO"}[row.holds],
        )
    Console().print(table)


if __name__ == "__main__":
    main()
