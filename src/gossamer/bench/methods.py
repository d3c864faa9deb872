"""Attention methods by name, as the command line writes them: ``hip:k=1024:dense_layers=2``."""

import ast
import difflib
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from gossamer.attention import (
    AnchorAttention,
    AttentionMethod,
    DenseAttention,
    HiPAttention,
    StreamingAttention,
    TokenSelect,
)

STOCK = "stock"  # the model as it comes: transformers' SDPA attention and DynamicCache

METHODS: Mapping[str, type[AttentionMethod]] = MappingProxyType(
    {
        "dense": DenseAttention,
        "streaming": StreamingAttention,
        "hip": HiPAttention,
        "anchor": AnchorAttention,
        "token-select": TokenSelect,
    }
)

# Where a comparison at a few thousand tokens wants other settings than the paper's, which were
# chosen for 128k tokens and large models. Every report prints the settings it used.
PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "anchor": {"theta": 10.0, "block": 64, "step": 4},
        "token-select": {"top_k": 512, "score_dtype": "bfloat16"},
    }
)

DEFAULT = (STOCK, *METHODS)


def parse(spec: str) -> AttentionMethod | None:
    """Return the method that `spec` names, or None for "stock".

    Parameters
    ----------
    spec : str
        A name, then any ``:parameter=value``; ``name:paper`` for the paper's own settings.

    Raises
    ------
    ValueError
        If the name or a parameter is unknown, or a value does not fit.

    Examples
    --------
    >>> parse("hip:k=256").k
    256
    >>> parse("anchor:paper").theta
    12.0
    >>> parse("hipp")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown method 'hipp', expected one of stock, ...; did you mean hip?
    """
    name, *options = spec.split(":")
    if name == STOCK and not options:
        return None
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, DEFAULT, n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown method {name!r}, expected one of {', '.join(DEFAULT)}; did you mean "
            f"{nearest}?"
        )
    method = METHODS[name]
    settings: dict[str, object] = dict(PRESETS.get(name, {}))
    if options and options[0] == "paper":
        settings, options = {}, options[1:]
    known = {field.name for field in fields(method)}
    for option in options:
        key, found, text = option.partition("=")
        if key not in known or not found:
            raise ValueError(
                f"unknown parameter {option!r} of {name}, expected {', '.join(sorted(known))} "
                "as name=value"
            )
        settings[key] = _value(text)
    try:
        return method(**settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{spec}: {error}") from error


def _value(text: str) -> object:
    """A number, True, False or None as Python writes it, inf, or the text itself."""
    if text in ("inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
