"""Walk through a transformers decoder block by block, with the inputs that each block gets.

Every block is calibrated on what the blocks before it put out as they are now, so a caller that
prunes each block as it comes calibrates the next one on the pruned model. Held at once are one
block's activations of one batch and the hidden states of all sequences.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compression.input_statistics import InputStatistics

Batch = Tensor | Mapping[str, Tensor]
Context = tuple[tuple, dict[str, Any]]

BATCH_TOKENS = 2048  # of a pass through a block; more would leave the caches and be no faster


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder block: its linear layers by their names in the model, and their inputs."""

    linears: dict[str, nn.Linear]
    inputs: dict[str, InputStatistics]


class _ReachedBlocks(Exception):
    """Ends a forward pass that has shown what enters the blocks."""


class _SeenAll(Exception):
    """Ends a block's pass that has shown the inputs of all its linear layers."""


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a causal language model's decoder blocks.

    Raises
    ------
    TypeError
        If it is no transformers model.
    ValueError
        If there is no such list.

    Examples
    --------
    >>> from gossamer.testing.attention import tiny_llama
    >>> name, blocks = decoder_blocks(tiny_llama())
    >>> name, len(blocks)
    ('model.layers', 2)
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise TypeError(f"expected a transformers language model, got {type(model).__name__}")
    count = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"expected a list of {count} decoder blocks in {type(model).__name__}")


def block_linears(model: nn.Module) -> list[dict[str, nn.Linear]]:
    """Return the linear layers of each decoder block by name; embeddings and head are in none.

    Raises
    ------
    TypeError, ValueError
        As `decoder_blocks`; also if a block has no linear layers or has packed ones, or a weight
        is quantised or not finite.
    """
    prefix, blocks = decoder_blocks(model)
    layers: list[dict[str, nn.Linear]] = []
    for index, block in enumerate(blocks):
        linears: dict[str, nn.Linear] = {}
        for name, module in block.named_modules(prefix=f"{prefix}.{index}"):
            if hasattr(module, "to_dense"):
                raise ValueError(f"{name}: expected a dense layer, got {type(module).__name__}")
            if isinstance(module, nn.Linear):
                if not module.weight.is_floating_point():
                    raise TypeError(
                        f"{name}: expected weights of floats, got {module.weight.dtype}"
                    )
                # A sum alone is quickest, but may overflow.
                if not bool(module.weight.sum().isfinite() or module.weight.isfinite().all()):
                    raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
                linears[name] = module
        if not linears:
            raise ValueError(f"{prefix}.{index}: expected linear layers, got none of torch's own")
        layers.append(linears)
    return layers


def calibration_sequences(batches: Iterable[Batch]) -> list[Tensor]:
    """Return token ids as sequences [1, T].

    Raises
    ------
    TypeError, ValueError
        If there are none, they are no ids, or a batch is padded.

    Examples
    --------
    >>> [ids.tolist() for ids in calibration_sequences([torch.tensor([[5, 6], [7, 8]])])]
    [[[5, 6]], [[7, 8]]]
    """
    if isinstance(batches, Tensor | Mapping | str):
        raise TypeError(f"expected batches of token ids, got {type(batches).__name__}; try [batch]")
    sequences: list[Tensor] = []
    for batch in batches:
        ids = batch
        if isinstance(batch, Mapping):
            if "input_ids" not in batch:
                raise ValueError(f"expected a batch with input_ids, got {', '.join(batch)}")
            ids, padding = batch["input_ids"], batch.get("attention_mask")
            if padding is not None and not bool(padding.bool().all()):
                raise ValueError("expected calibration without padding; try equal lengths")
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
            shape = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids)
            raise TypeError(f"expected token ids [sequences, tokens], got {shape}")
        sequences += [row[None] for row in ids if len(row)]
    if not sequences:
        raise ValueError("expected calibration sequences, got none")
    return sequences


@torch.no_grad()
def calibrated_blocks(
    model: Any, sequences: Sequence[Tensor], *, gram: bool = False
) -> Iterator[Block]:
    """Yield each block with statistics of the inputs of its linear layers.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode. The caller may change a block's weights while it has it.
    sequences : sequence of Tensor [1, T]
        Those of one length pass through a block together, up to `BATCH_TOKENS` tokens at once,
        or one sequence that is longer.
    gram : bool, default=False
        Whether to gather Gram matrices.

    Raises
    ------
    ValueError
        If a layer sees no token, or inputs are not finite.
    """
    _, blocks = decoder_blocks(model)
    states, contexts = _first_states(model, blocks, equal_batches(sequences))
    for index, (block, linears) in enumerate(zip(blocks, block_linears(model), strict=True)):

        def run(state: Tensor, block: nn.Module = block, index: int = index) -> Tensor:
            args, options = contexts[state.shape[:2]][index]
            out = block(state, *args, **options)
            return out[0] if isinstance(out, tuple) else out

        yield Block(linears, _collect(linears, states, run, gram))
        if index + 1 < len(blocks):
            for place, state in enumerate(states):
                states[place] = run(state)


def equal_batches(sequences: Sequence[Tensor]) -> list[Tensor]:
    """Stack sequences of one length, in their order, to batches of at most `BATCH_TOKENS` tokens.

    Examples
    --------
    >>> short, long = torch.zeros(1, 700), torch.zeros(1, 3000)
    >>> [list(batch.shape) for batch in equal_batches([short, long, short, short, long])]
    [[2, 700], [1, 700], [1, 3000], [1, 3000]]
    """
    by_length: dict[int, list[Tensor]] = {}
    for sequence in sequences:
        by_length.setdefault(sequence.shape[1], []).append(sequence)
    return [
        batch
        for length, equal in by_length.items()
        for batch in torch.cat(equal).split(max(1, BATCH_TOKENS // length))
    ]


def _first_states(
    model: Any, blocks: nn.ModuleList, batches: Sequence[Tensor]
) -> tuple[list[Tensor], dict[torch.Size, list[Context]]]:
    """Return what enters the first block, and what else each block gets, by shape of the ids."""
    seen: list[tuple[Tensor, Context]] = []

    def note(*args: Any, **options: Any) -> Tensor:
        seen.append(_entered(args, options))
        if ids.shape in contexts or len(seen) == len(blocks):
            raise _ReachedBlocks
        return seen[-1][0]

    states: list[Tensor] = []
    contexts: dict[torch.Size, list[Context]] = {}
    with _replaced_forwards(blocks, note):
        for ids in batches:
            seen.clear()
            with suppress(_ReachedBlocks):
                model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)
            states.append(seen[0][0])
            contexts.setdefault(ids.shape, [context for _, context in seen])
    return states, contexts


@contextmanager
def _replaced_forwards(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let blocks do something else for a while: masks and positions need none of their work."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, replaced in zip(blocks, own, strict=True):
            del block.forward
            if replaced is not None:
                block.forward = replaced


def _entered(args: tuple, options: dict[str, Any]) -> tuple[Tensor, Context]:
    """Part a block's hidden states from what else it gets."""
    if args:
        return args[0], (args[1:], options)
    return options.pop("hidden_states"), ((), options)


def _collect(
    linears: dict[str, nn.Linear],
    states: list[Tensor],
    run: Callable[[Tensor], Tensor],
    gram: bool,
) -> dict[str, InputStatistics]:
    """Run a block on every batch; layers that read one tensor share its statistics."""
    inputs: dict[str, InputStatistics] = {}
    seen: dict[str, Tensor] = {}

    def note(name: str, linear: nn.Module, args: tuple[Tensor]) -> None:
        seen[name] = args[0]
        if len(seen) == len(linears):
            raise _SeenAll

    with ExitStack() as stack:
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(partial(note, name)).remove)
        for state in states:
            seen.clear()
            with suppress(_SeenAll):
                run(state)
            readers: dict[int, list[str]] = {}
            for name, x in seen.items():
                readers.setdefault(id(x), []).append(name)
            for names in readers.values():
                shared = inputs.get(names[0]) or InputStatistics(gram=gram)
                inputs |= dict.fromkeys(names, shared)
                shared.update(seen[names[0]])
    for name in linears:
        if name not in inputs or not inputs[name].tokens:
            raise ValueError(f"{name}: saw no token of the calibration text; try more of it")
        if not bool(torch.isfinite(inputs[name].variance).all()):
            raise ValueError(f"{name}: expected finite inputs, got NaN or infinity")
        inputs[name].sequences = sum(map(len, states))  # also those that sent an expert no token
    return inputs
