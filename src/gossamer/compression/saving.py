"""Save and load pruned models: dense with zeros for everyone, or packed for fast decoding."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.adapters.dense_copy import dense_copy
from gossamer.adapters.safetensors import load_packed, save_packed
from gossamer.compression.block_walker import block_linears
from gossamer.errors import FormatError
from gossamer.files import staged
from gossamer.kernels import PackedWeight
from gossamer.layers import PackedLinear
from gossamer.layers.packed_storage import STORED
from gossamer.patterns import WeightPattern

PACKED_FILE = "packed.safetensors"


def pack_linears(
    model: Any,
    *,
    pattern: WeightPattern | None = None,
    dtype: torch.dtype | None = None,
    head: bool = False,
) -> Any:
    """Return a copy of a pruned model whose decoder blocks have packed linear layers.

    Everything else shares memory with `model`, which stays as it is. The copy is for inference:
    a token decodes in the time it takes to read the weights that are left.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model, pruned or not.
    pattern : WeightPattern, optional
        That all pruned weights have, for instance ``NM(2, 4)``.
    dtype : torch.dtype, optional
        float32 or bfloat16, to which packed values are rounded; by default the weights' own.
        Activations stay in the model's.
    head : bool, default=False
        Also pack the output head, dense as it is: with bfloat16 values it is read in half the
        time, and takes memory beside the embedding that it shared.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    TypeError, ValueError
        If the model has no decoder blocks with linear layers, or a weight cannot be packed.

    Examples
    --------
    >>> from gossamer.testing.attention import tiny_llama
    >>> pack_linears(tiny_llama()).model.layers[0].mlp.up_proj
    PackedLinear(64, 96, density=1, bias=False)
    """
    known: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in model.parameters()
    }
    known |= {id(tensor): tensor for tensor in model.buffers()}
    for block in block_linears(model):
        for name, linear in block.items():
            try:
                known[id(linear)] = PackedLinear.from_dense(linear, pattern, dtype)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    if head:
        linear = model.get_output_embeddings()
        known[id(linear)] = PackedLinear.from_dense(linear, dtype=dtype)
    return _quickened(copy.deepcopy(model, known))


def save(model: Any, directory: Path | str, *, tokenizer: Any = None) -> None:
    """Write a model to a directory: all of it, or nothing where that fails.

    Its files appear together at the end, config.json last.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Dense with zeros, as `prune` leaves it: any transformers loads the directory. Or with
        packed layers, from `pack_linears`: `load` reads them as they are.
    directory : Path or str
        Made if it is not there.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Saved beside the model.

    Raises
    ------
    ValueError
        If the directory holds the other kind already, or is a file.
    OSError
        If it cannot be written.
    """
    directory = Path(directory)
    packed = {n: layer for n, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    check_directory(directory, packed=bool(packed))
    with staged(directory, last="config.json") as stage:
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        if packed:
            _write_packed(model, packed, stage)
        else:
            dense_copy(model).save_pretrained(stage)  # pyright: ignore[reportCallIssue]
        kept = {path.name for path in stage.iterdir()}
    for stale in directory.glob("model*.safetensors*"):  # transformers would read it instead
        if stale.name not in kept:
            stale.unlink()


def _write_packed(model: Any, packed: dict[str, PackedLinear], directory: Path) -> None:
    weights: dict[str, PackedWeight | Tensor] = {
        f"{name}.weight": layer.weight for name, layer in packed.items()
    }
    written: set[int] = set()
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if (layer in packed and part in STORED) or tensor.data_ptr() in written:
            continue  # tied weights are written once
        written.add(tensor.data_ptr())
        weights[name] = tensor
    model.config.save_pretrained(directory)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(directory)
    save_packed(weights, directory / PACKED_FILE)


def check_directory(directory: Path | str, *, packed: bool) -> None:
    """Raise ValueError if `save` would refuse a directory, before there is anything to save."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"expected a directory, got the file {directory}")
    others = "model*.safetensors" if packed else PACKED_FILE
    for other in directory.glob(others):
        raise ValueError(f"expected no {other.name} in {directory}; try another directory")


def load(directory: Path | str) -> Any:
    """Read a model that `save` wrote, packed or dense, in evaluation mode on CPU.

    Parameters
    ----------
    directory : Path or str

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    FormatError
        If the files are damaged or do not belong together.
    OSError
        If there is no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"expected a saved model in {directory}, found no config.json")
    path = directory / PACKED_FILE
    if not path.is_file():
        return AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
    weights = load_packed(path)
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.random.fork_rng(devices=[]):  # the weights drawn are all replaced
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, PackedWeight):
            _replace(model, name, weight, weights.get(f"{name.removesuffix('weight')}bias"), path)
        else:
            state[name] = weight
    own = model.state_dict()
    filled = {own[name].data_ptr() for name in state if name in own}
    found = model.load_state_dict(state | _packed_parts(model), strict=False)
    missing = [name for name in found.missing_keys if own[name].data_ptr() not in filled]
    if missing or found.unexpected_keys:
        wrong = [*missing, *found.unexpected_keys][0]
        raise FormatError(path, f"expected the weights of config.json, got another set at {wrong}")
    return _quickened(model.requires_grad_(False).eval())


def _quickened(model: Any) -> Any:
    from gossamer.adapters.transformers.native_llama import quicken

    quicken(model)
    return model


def _replace(model: nn.Module, name: str, weight: PackedWeight, bias: Any, path: Path) -> None:
    """Put a packed layer in the place of the dense one that it was."""
    parent, _, child = name.removesuffix(".weight").rpartition(".")
    try:
        owner = model.get_submodule(parent)
        dense = getattr(owner, child)
    except AttributeError as error:
        raise FormatError(path, f"expected {name} to be of the model, got: {error}") from error
    if tuple(dense.weight.shape) != tuple(weight.shape):
        expected = list(dense.weight.shape)
        raise FormatError(path, f"{name}: expected shape {expected}, got {list(weight.shape)}")
    setattr(owner, child, PackedLinear(weight, bias))


def _packed_parts(model: nn.Module) -> dict[str, Tensor]:
    """The state of the packed layers, which they have already."""
    return {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in model.named_modules()
        if isinstance(layer, PackedLinear)
        for part in STORED
    }
