"""Language models that experiments load: two by name, any other from files or from the hub."""

import difflib
import importlib.util
import io
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gossamer.errors import FormatError
from gossamer.models.gguf import cache_directory, converted, converted_file, first_line
from gossamer.models.packages import PACKAGED_MODELS, write_gguf

__all__ = ["PACKAGED_MODELS", "LoadedModel", "cache_directory", "load"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model that is ready to run.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model, in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    name : str
        What `load` was asked for.
    source : str
        Where the weights come from, for reports.
    licence : str
        The licence of the weights, "not recorded" where gossamer did not choose them.
    context : int or None
        Longest sequence that the config allows, in tokens; None if it names no limit.
    """

    model: Any
    tokenizer: Any
    name: str
    source: str
    licence: str
    context: int | None


def load(
    name: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    name : str or Path
        "smollm2" or "gemma3-270m", which are fetched on first use and read from
        `cache_directory()` afterwards; a directory that transformers saved; a GGUF file, converted
        on first use; or the id of a model on the hub.
    dtype : torch.dtype, default torch.float32
        Floating-point type of the weights.
    device : str or torch.device, default "cpu"
        Where the weights go.

    Returns
    -------
    LoadedModel
        Its tensors own their memory; no file stays mapped.

    Raises
    ------
    TypeError
        `dtype` is not a floating-point type.
    ValueError
        There is no such model or no such device.
    FormatError
        The model's files cannot be read, or its weights are not finite.
    OSError
        The model cannot be fetched, or the cache cannot be written to.
    ImportError
        A package of the extra "llm" is not installed.

    Examples
    --------
    >>> from gossamer import models
    >>> models.load("smolm2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: expected smollm2, ... got 'smolm2', try 'smollm2'
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"expected a floating-point dtype, got {dtype!r}, try torch.float32")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a device of this machine, got {device!r}, try 'cpu'") from error
    needed = ("transformers", "safetensors", "accelerate", "gguf")
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise ImportError(
            f"a language model needs {', '.join(missing)}, try: pip install 'gossamer[llm]'"
        )

    name = str(name)
    source, licence = name, "not recorded"
    if packaged := PACKAGED_MODELS.get(name):
        place = converted(name, packaged.sha256, partial(write_gguf, packaged))
        source, licence = packaged.source, packaged.licence
    elif (path := Path(name)).is_file():
        place = converted_file(path)
    elif name and path.is_dir():
        place = path
    else:
        place = _hub_id(name)
    model, tokenizer = _from_pretrained(place, dtype)
    for label, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise FormatError(place, f"expected finite weights, got NaN or inf in {label}")
    # Tensors of their own: pages of a mapped file would change, or fault, when the file does.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(device, copy=True)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(model, tokenizer, name, source, licence, context)


def _hub_id(name: str) -> str:
    """Return `name` if it may be the id of a model on the hub, where asking takes long offline."""
    known = ", ".join(PACKAGED_MODELS)
    problem = f"expected {known}, a directory, a GGUF file or a hub id, got {name!r}"
    if nearest := difflib.get_close_matches(name, PACKAGED_MODELS, n=1, cutoff=0.75):
        raise ValueError(f"{problem}, try {nearest[0]!r}")
    if not name.strip() or name[0] in "/.~" or name.endswith(".gguf"):
        raise ValueError(f"{problem}: there is no such file or directory")
    return name


def _from_pretrained(place: Path | str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load what lies in a local directory (a path) or on the hub (a string)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = isinstance(place, Path)
    try:
        # Of the progress bars only those of a download are worth showing.
        with redirect_stderr(io.StringIO()) if local else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
            model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, local_files_only=local)
    # On files that are missing or damaged, transformers raises errors of every kind.
    except Exception as error:
        reason = first_line(error)
        if local:
            problem = f"expected a model that transformers can read: {reason}"
            raise FormatError(place, problem) from error
        nearest = difflib.get_close_matches(place, PACKAGED_MODELS, n=1, cutoff=0)[0]
        raise ValueError(
            f"cannot load {place!r} from the hub ({reason.rstrip('.')}); "
            f"known without it: {', '.join(PACKAGED_MODELS)}, try {nearest!r}"
        ) from error
    return model.eval(), tokenizer
