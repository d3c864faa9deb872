"""The torch operator library that every kernel registers with, so that torch.compile traces it."""

from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)
LIBRARY = torch.library.Library("gossamer", "DEF")


def register(schema: str, run: Callable, fake: Callable) -> None:
    """Define one operator for every device, with a shape-only twin for tracing.

    Parameters
    ----------
    schema : str
        ``name(Tensor x, ...) -> Tensor`` in torch's schema language.
    run : callable
        The implementation; picks a back end by its last argument, ``impl``.
    fake : callable
        Same signature; returns empty tensors of the right shapes.
    """
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gossamer::{name}", fake)


def constant(function: F) -> F:
    """Let torch.compile call `function` while it traces and keep what it returns.

    What `torch.compiler.assume_constant_result` does, which would import the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
