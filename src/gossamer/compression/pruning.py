"""Prune a language model: every linear layer of its decoder blocks, block by block."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compression.base import Layer, PruningMethod
from gossamer.compression.block_walker import (
    Batch,
    Block,
    block_linears,
    calibrated_blocks,
    calibration_sequences,
)
from gossamer.compression.input_statistics import STATISTICS


@dataclass(frozen=True)
class LayerReport:
    """What pruning did to one layer.

    Parameters
    ----------
    name : str
    shape : (int, int)
        [out, in]
    density : float
        Share of weights kept.
    pattern : str
    moved : float
        Share of the kept weights that the first method of the list had dropped.
    mean_error : float or None
        Mean over outputs of the absolute expected change, an output's mean over tokens; None
        without calibration.
    output_error : float or None
        Squared change of the outputs on the calibration text over their squared size; None where
        no method has gathered Gram matrices.
    """

    name: str
    shape: tuple[int, int]
    density: float
    pattern: str
    moved: float
    mean_error: float | None
    output_error: float | None


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did, layer by layer.

    Parameters
    ----------
    methods : tuple of str
    layers : tuple of LayerReport
    tokens : int
        Of calibration.
    seconds : float
    """

    methods: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    tokens: int
    seconds: float

    @property
    def density(self) -> float:
        """Share of weights kept in all pruned layers together."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        kept = sum(size * layer.density for size, layer in zip(sizes, self.layers, strict=True))
        return kept / sum(sizes)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain lists and dictionaries, with the density of all layers."""
        return {"density": self.density, **asdict(self)}


def prune(
    model: Any,
    methods: Sequence[PruningMethod],
    calibration: Iterable[Batch] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PruneReport:
    """Prune the linear layers of a model's decoder blocks, in place.

    The first method decides which weights stay, the others refine that, and the last one writes
    the weights. Each block is calibrated on inputs from the pruned blocks before it. Embeddings,
    norms and the output head stay as they are. When anything fails, or is interrupted, the model
    is put back bit by bit; the original weights are kept in memory for that until the end.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    methods : sequence of PruningMethod
        For instance ``[Wanda(density=0.5), DSnoT()]``.
    calibration : iterable of Tensor [n, T] or mapping with input_ids, optional
        Token ids without padding; 16 sequences of 512 tokens do for small models. Not needed by
        magnitude.
    progress : callable, optional
        Called as ``progress(done, blocks)`` after each block.

    Returns
    -------
    PruneReport

    Raises
    ------
    TypeError, ValueError
        If model, methods or calibration do not fit, naming the layer where it is one.

    Examples
    --------
    >>> from gossamer.compression import DSnoT, Wanda, prune
    >>> from gossamer.testing.attention import prompt, tiny_llama
    >>> report = prune(tiny_llama(), [Wanda(density=0.5), DSnoT()], [prompt(batch=2)])
    >>> report.density, report.tokens, len(report.layers)
    (0.5, 256, 14)
    """
    start = time.perf_counter()
    methods = _checked(methods)
    needed = max(STATISTICS.index(method.collect) for method in methods)
    linears = block_linears(model)
    if needed and calibration is None:
        names = ", ".join(type(method).__name__ for method in methods)
        raise ValueError(f"{names}: expected calibration batches, got none; try token ids [n, T]")
    sequences = calibration_sequences(calibration) if needed and calibration is not None else []
    layers: list[LayerReport] = []
    with _all_or_nothing(model, [layer for block in linears for layer in block.values()]):
        if needed:
            gram = STATISTICS[needed] == "gram"
            blocks: Iterable[Block] = calibrated_blocks(model, sequences, gram=gram)
        else:
            blocks = (Block(block, {}) for block in linears)
        for done, block in enumerate(blocks, start=1):
            for name, linear in block.linears.items():
                layer = Layer(name, linear.weight.detach().float(), block.inputs.get(name))
                layers.append(_prune_layer(layer, linear, methods))
            if progress is not None:
                progress(done, len(linears))
    tokens = sum(ids.shape[1] for ids in sequences)
    names = tuple(repr(method) for method in methods)
    return PruneReport(names, tuple(layers), tokens, time.perf_counter() - start)


def _checked(methods: Sequence[PruningMethod]) -> tuple[PruningMethod, ...]:
    if isinstance(methods, PruningMethod):
        raise TypeError(f"expected a list of methods, got one; try [{methods}]")
    methods = tuple(methods)
    for method in methods:
        if not isinstance(method, PruningMethod):
            raise TypeError(f"expected pruning methods, got {method!r}; try Wanda(density=0.5)")
    if not methods or [method.refines for method in methods] != [False] + [True] * (
        len(methods) - 1
    ):
        raise ValueError(
            "expected one method that chooses weights, then those that refine its mask, got "
            f"{list(methods)}; try [Wanda(density=0.5), DSnoT()]"
        )
    return methods


@contextmanager
def _all_or_nothing(model: nn.Module, linears: list[nn.Linear]) -> Iterator[None]:
    """Run a model in evaluation mode; put weights back if the caller fails, modes always."""
    training = [module for module in model.modules() if module.training]
    weights = [linear.weight.detach().clone() for linear in linears]
    model.eval()
    try:
        yield
    except BaseException:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data.copy_(weight)
        raise
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _prune_layer(
    layer: Layer, linear: nn.Linear, methods: tuple[PruningMethod, ...]
) -> LayerReport:
    try:
        first = decision = methods[0].decide(layer, None)
        for method in methods[1:]:
            decision = method.decide(layer, decision)
        pruned = methods[-1].apply(layer, decision)
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from error
    pruned, kept = pruned.to(linear.weight.dtype), decision.mask
    report = LayerReport(
        layer.name,
        (kept.shape[0], kept.shape[1]),
        decision.pattern.density(kept),
        str(decision.pattern),
        int((kept & ~first.mask).sum()) / max(1, int(kept.sum())),
        *_errors(layer, pruned.float()),
    )
    linear.weight.copy_(pruned)  # only now: layer.weight may share its memory
    return report


def _errors(layer: Layer, pruned: Tensor) -> tuple[float | None, float | None]:
    """Return the mean absolute expected change of outputs, and the relative squared change."""
    if layer.inputs is None:
        return None, None
    change = pruned - layer.weight
    mean = float((change @ layer.inputs.mean.float()).abs().mean())
    gram = layer.inputs.gram
    if gram is None:
        return mean, None
    lost, size = (float(((w @ gram) * w).sum(dtype=torch.float64)) for w in (change, layer.weight))
    return mean, lost / size if size else 0.0
