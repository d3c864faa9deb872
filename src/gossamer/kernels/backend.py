"""Which implementation of a kernel runs: chosen by device, or named by the caller."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from gossamer.errors import BackendError

Impl = Literal["auto", "reference", "cpu", "triton"]
IMPLS: tuple[Impl, ...] = ("auto", "reference", "cpu", "triton")
WITHOUT_TRITON = IMPLS[:3]  # what operations without a Triton kernel offer


# Looked up once, here: torch.compile cannot trace an import.
try:
    _native: ModuleType | None = importlib.import_module("gossamer.kernels._native")
except ImportError:
    _native = None
_has_triton = importlib.util.find_spec("triton") is not None


def native() -> ModuleType | None:
    """Return the compiled module, or None where gossamer was installed without a compiler."""
    return _native


def native_module() -> ModuleType:
    """Return the compiled module; `choose` has already made sure that there is one."""
    module = native()
    if module is None:
        raise BackendError("the native kernels were not built")
    return module


def launch(kernel: str, *arguments: object) -> object:
    """Call a native kernel, or make a native record, by name.

    Tensors cross as DLPack capsules: handing over the tensor itself costs five times as much,
    which a decode step would notice.
    """
    crossing = (to_dlpack(part) if isinstance(part, Tensor) else part for part in arguments)
    return getattr(native_module(), kernel)(*crossing)


@cache
def _warn_reference() -> None:
    warnings.warn(
        "gossamer runs its slow reference kernels: the native ones were not built. "
        "Install a C++ compiler (g++ or clang++) and reinstall gossamer.",
        RuntimeWarning,
        stacklevel=4,
    )


def has_triton() -> bool:
    """Whether Triton can be imported."""
    return _has_triton


def choose(impl: str, device: torch.device, impls: tuple[Impl, ...] = IMPLS) -> str:
    """Return "reference", "cpu" or "triton" for tensors on `device`, out of an operation's `impls`.

    An explicit choice never falls back.

    Raises
    ------
    ValueError
        If `impl` is not one of `impls`.
    BackendError
        If the named implementation cannot run on `device`.
    """
    if impl not in impls:
        raise ValueError(f"expected impl to be one of {', '.join(impls)}, got {impl!r}")
    if impl == "auto":
        if device.type == "cpu":
            if native() is not None:
                return "cpu"
            _warn_reference()
        elif device.type == "cuda" and "triton" in impls and has_triton():
            return "triton"
        return "reference"
    if impl == "cpu" and device.type != "cpu":
        raise BackendError(f"impl='cpu' needs CPU tensors, got {device}; try impl='auto'")
    if impl == "cpu" and native() is None:
        raise BackendError("impl='cpu' was not built: install a C++ compiler and reinstall")
    if impl == "triton" and not has_triton():
        raise BackendError("impl='triton' needs Triton: pip install gossamer[triton]")
    if impl == "triton" and device.type != "cuda" and not _interpreting():
        raise BackendError(f"impl='triton' needs CUDA tensors, got {device}; try impl='auto'")
    return impl


def _interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets the native kernels can use here, best first."""
    module = native()
    return () if module is None else tuple(module.available())


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Force the native kernels onto one instruction set (process-wide) for tests and benches.

    Parameters
    ----------
    name : str
        One of `instruction_sets()`.
    """
    module = native()
    if module is None:
        raise BackendError("the native kernels were not built: there is nothing to force")
    before = module.active()
    module.force(name)
    try:
        yield
    finally:
        module.force(before)
