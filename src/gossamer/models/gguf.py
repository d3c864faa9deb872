"""GGUF files, converted once to safetensors and kept in the user's cache directory.

transformers reads a GGUF file very slowly, most of all its vocabulary. The weights are kept in
float32: dequantised values are scaled integers, which neither bfloat16 nor float16 holds exactly.

A conversion is built in a directory of its own and renamed into place, under a lock, so that
nobody ever sees half of one. Its marker holds the digest of every file, and is checked on each use.
"""

import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from gossamer.errors import FormatError

logger = logging.getLogger("gossamer")

_SCHEMA = 1
_MARKER = "gossamer.json"


def cache_directory() -> Path:
    """Return where converted models are kept.

    Returns
    -------
    Path
        `$GOSSAMER_CACHE`, else `$XDG_CACHE_HOME/gossamer`, else `~/.cache/gossamer`.
    """
    if own := os.environ.get("GOSSAMER_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "gossamer"


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def converted(name: str, digest: str, provide: Callable[[Path], object]) -> Path:
    """Return the directory that holds a converted GGUF file, and convert it if there is none.

    Parameters
    ----------
    name : str
        The directory's name under `cache_directory() / "models"`.
    digest : str
        SHA-256 of the GGUF file; a conversion of another file is replaced.
    provide : callable
        Called only if a conversion is needed, with the path at which to put the GGUF file; the
        directory around it is empty and may be used.

    Raises
    ------
    FormatError
        transformers cannot read the GGUF file.
    OSError
        The cache cannot be written to; what was there before is intact.
    """
    target = cache_directory() / "models" / name
    if _is_complete(target, digest):
        return target
    partial = target.with_name(f"{name}.partial")
    with _write_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".lock"):
            if _is_complete(target, digest):  # another process was faster
                return target
            # Under the lock nobody else is at work, so this was left by a process that was killed.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                gguf = partial / "source" / "model.gguf"
                gguf.parent.mkdir(parents=True)
                provide(gguf)
                logger.info("converting %s to safetensors, once, in %s", name, target)
                convert(gguf, partial)
                shutil.rmtree(gguf.parent)
                digests = {file.name: sha256(file) for file in sorted(partial.iterdir())}
                marker = {"schema": _SCHEMA, "source": digest, "files": digests}
                (partial / _MARKER).write_text(json.dumps(marker, indent=1))
                for file in digests:  # safetensors lets nobody else read what it writes
                    shutil.copymode(partial / _MARKER, partial / file)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def converted_file(path: Path) -> Path:
    """Return the directory that holds the conversion of a GGUF file of the user's.

    Parameters
    ----------
    path : Path
        An existing file; it is only read.

    Raises
    ------
    FormatError
        It is not a GGUF file, or not one that transformers can read.
    OSError
        The cache cannot be written to.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise FormatError(path, f"expected a GGUF file, which opens with b'GGUF', got {magic}")
    digest = sha256(path)
    # A link keeps the file apart from its neighbours, which transformers might read as well.
    return converted(
        f"{path.stem}-{digest[:12]}", digest, lambda target: target.symlink_to(path.resolve())
    )


def convert(gguf: Path, directory: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as transformers saves them, in float32.

    Parameters
    ----------
    gguf : Path
        The file to read, or a link to it, alone in its directory.
    directory : Path
        An existing directory to write to.

    Raises
    ------
    FormatError
        transformers cannot read the file.
    OSError
        The directory cannot be written to.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Newer versions leave some weights packed unless they are told not to.
    config = getattr(transformers, "GgufConfig", None)
    unpacked = {} if config is None else {"quantization_config": config(dequantize=True)}
    # The GGUF reader's progress bar cannot be turned off.
    with redirect_stderr(io.StringIO()):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpacked
            )
        # Its errors on a damaged file are of every kind.
        except Exception as error:
            raise FormatError(
                gguf.resolve(),
                f"expected a language model that transformers can read: {first_line(error)}",
            ) from error
        # The weights are plain float32 by now; only the mark of a quantised model bars saving.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        try:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        # Neither safetensors nor tokenizers raises OSError when a disk is full.
        except Exception as error:
            raise OSError(first_line(error)) from error


def _is_complete(directory: Path, digest: str) -> bool:
    try:
        marker = json.loads((directory / _MARKER).read_text())
        return (marker["schema"], marker["source"]) == (_SCHEMA, digest) and all(
            sha256(directory / name) == expected for name, expected in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that converts a model in %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _write_errors_named(target: Path) -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write the converted model to {target}: {error.strerror or error}; free some "
            "space, or set GOSSAMER_CACHE to another directory",
        ) from error
