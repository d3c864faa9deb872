"""The torch operator library that every kernel registers with, so that torch.compile traces it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

F = TypeVar("F", bound=Callable)
LIBRARY = torch.library.Library("gossamer", "DEF")


def register(schema: str, run: Callable, fake: Callable) -> Callable:
    """Define one operator for every device, with a shape-only twin for tracing.

    Parameters
    ----------
    schema : str
        ``name(Tensor x, ...) -> Tensor`` in torch's schema language.
    run : callable
        The implementation; picks a back end by its last argument, ``impl``.
    fake : callable
        Same signature; returns empty tensors of the right shapes.

    Returns
    -------
    callable
        Calls the operator, or `run` itself where nobody watches: for what needs no gradient.
    """
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gossamer::{name}", fake)
    operator = getattr(torch.ops.gossamer, name)

    def call(*arguments: object) -> Any:
        return operator(*arguments) if dispatched() else run(*arguments)

    return call


def dispatched() -> bool:
    """Return whether a call must go through torch's dispatcher: it is being traced or counted.

    The dispatcher costs as much as a small product, which is why some kernels go round it.
    """
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


def constant(function: F) -> F:
    """Let torch.compile call `function` while it traces and keep what it returns.

    What `torch.compiler.assume_constant_result` does, which would import the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
