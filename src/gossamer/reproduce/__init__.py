"""The evidence: what a paper reports against what this machine measures.

Each module of this package is one paper, named by its slug with underscores, and exposes
``reproduce(scale, seed)``, which returns its `Claim` objects. `run` wraps them into `Evidence`.
"""

import difflib
import math
import pkgutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gossamer.bench.machine import commit, describe
from gossamer.errors import FormatError
from gossamer.files import load_json

SCALES = ("quick", "full", "gpu")
SCHEMA = 1

_EVIDENCE_TYPES = {
    "slug": str,
    "scale": str,
    "seed": int,
    "device": str,
    "seconds": int | float,
    "threads": int,
    "machine": str,
    "versions": dict,
    "error": str | None,
    "commit": str,
}


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and what came of it here.

    Parameters
    ----------
    claim : str
        The statement, in one sentence.
    paper : float, str or None
        The figure the paper reports.
    source : str
        Where it reports it, for example ``"Table 2"``.
    baseline : float, str or None
        What the method is compared with, measured here.
    ours : float, str or None
        What the method reached here.
    criterion : str
        What must be true of the figures for the claim to hold.
    holds : bool
        Whether it is.
    setting : str, default=""
        Model, data and hyper-parameters of the measurement.
    seeds : int, optional
        How many seeds the figures are means over; None where that was not noted.

    Raises
    ------
    TypeError
        If a figure or `holds` is of another type, for example a tensor.

    Examples
    --------
    >>> Claim("twice as fast", 2.0, "Table 1", 8.0, 3.9, "ours <= baseline / 2", True).holds
    True
    """

    claim: str
    paper: float | str | None
    source: str
    baseline: float | str | None
    ours: float | str | None
    criterion: str
    holds: bool
    setting: str = ""
    seeds: int | None = None

    def __post_init__(self) -> None:
        for name in ("paper", "baseline", "ours"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | str | None):
                raise TypeError(
                    f"{name}: expected a float, a str or None, got {type(value).__name__}, "
                    "try float(...)"
                )
        for name in ("claim", "source", "criterion", "setting"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}: expected a str, got {type(getattr(self, name)).__name__}")
        if not isinstance(self.holds, bool):
            raise TypeError(
                f"holds: expected a bool, got {type(self.holds).__name__}, try bool(...)"
            )
        if self.seeds is not None and (type(self.seeds) is not int or self.seeds < 1):
            raise TypeError(f"seeds: expected an int of at least 1 or None, got {self.seeds!r}")


@dataclass(frozen=True)
class Evidence:
    """The claims of one paper, measured in one run on one machine.

    Parameters
    ----------
    slug : str
        The paper, as the catalogue names it.
    scale : {"quick", "full", "gpu"}
        How much was computed.
    seed : int
        Seed of everything random.
    device : str
        ``"cpu"`` or ``"cuda"``.
    seconds : float
        Wall time of the run.
    claims : tuple of Claim
        What was measured.
    threads : int
        Threads PyTorch used inside an operator.
    machine : str
        The machine in one line.
    versions : dict of str to str
        Python and the packages that shape the numbers.
    error : str or None
        Why the run stopped early, None if it finished.
    commit : str, default=""
        Of the code that ran; "" where it is not a checkout, or was not noted.
    """

    slug: str
    scale: str
    seed: int
    device: str
    seconds: float
    claims: tuple[Claim, ...]
    threads: int
    machine: str
    versions: dict[str, str]
    error: str | None = None
    commit: str = ""

    @property
    def complete(self) -> bool:
        """Whether the run finished."""
        return self.error is None

    @property
    def holds(self) -> bool:
        """Whether the run finished, measured something, and every claim holds."""
        return self.complete and bool(self.claims) and all(claim.holds for claim in self.claims)

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as JSON data; figures that are not finite become strings."""
        document = {"schema": SCHEMA, **asdict(self), "complete": self.complete}
        document["claims"] = [
            {name: _finite_or_text(value) for name, value in asdict(claim).items()}
            for claim in self.claims
        ]
        return document


def available() -> tuple[str, ...]:
    """List the slugs of the papers that can be reproduced, sorted.

    Returns
    -------
    tuple of str
    """
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


def validate(slug: str, *, scale: str = "quick", seed: int = 0) -> None:
    """Refuse what `run` cannot run, before anything is computed.

    Parameters
    ----------
    slug, scale, seed
        As for `run`.

    Raises
    ------
    ValueError
        If the slug or scale is unknown, the seed is out of range, or the scale is ``"gpu"`` and
        there is no CUDA device.

    Examples
    --------
    >>> validate("no-such-paper")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: slug: expected a paper with a reproduction, got 'no-such-paper', try ...
    """
    slugs = available()
    if slug not in slugs:
        near = difflib.get_close_matches(slug, slugs, n=1)
        advice = f"try {near[0]!r}" if near else "try `gossamer papers` for the slugs"
        raise ValueError(f"slug: expected a paper with a reproduction, got {slug!r}, {advice}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected 0 <= seed < 2**32, got {seed}")
    if scale == "gpu" and not torch.cuda.is_available():
        raise ValueError("scale: expected a CUDA device for 'gpu', found none, try 'full'")


def run(slug: str, *, scale: str = "quick", seed: int = 0) -> Evidence:
    """Measure one paper's claims on this machine.

    Parameters
    ----------
    slug : str
        The paper; one of `available`.
    scale : {"quick", "full", "gpu"}, default="quick"
        At most 30 seconds, at most 5 minutes on two cores, or on a CUDA device. A scale yields only
        the claims that it can decide: exactness, counts, invariants and gradients are decided at
        any size; times, trained quality and statistics of large data are asked of "full" alone.
    seed : int, default=0
        Seed of everything random.

    Returns
    -------
    Evidence

    Raises
    ------
    ValueError
        As `validate` does.
    TypeError
        If the paper's module returns something other than claims.
    """
    validate(slug, scale=scale, seed=seed)
    module = import_module(f"{__name__}.{slug.replace('-', '_')}")
    reproduce: Callable[[str, int], Iterable[Claim]] = module.reproduce
    start = time.perf_counter()
    claims = tuple(reproduce(scale, seed))
    seconds = time.perf_counter() - start
    for claim in claims:
        if not isinstance(claim, Claim):
            raise TypeError(f"{slug}: expected claims, got {type(claim).__name__}")
    return _evidence(slug, scale, seed, seconds, claims, error=None)


def stopped(slug: str, *, scale: str, seed: int, seconds: float, error: str) -> Evidence:
    """Record a run that ended early; it never counts as holding.

    Parameters
    ----------
    slug, scale, seed
        As for `run`.
    seconds : float
        Wall time until it ended.
    error : str
        Why it ended.

    Returns
    -------
    Evidence
        Without claims.
    """
    return _evidence(slug, scale, seed, seconds, (), error=error)


def load(path: Path | str) -> Evidence:
    """Read evidence that ``gossamer reproduce`` wrote.

    Parameters
    ----------
    path : Path or str
        A JSON file with one paper's evidence.

    Returns
    -------
    Evidence

    Raises
    ------
    FormatError
        If the file is damaged, of another kind, or written by a later schema.
    OSError
        If it cannot be read.
    """
    return parse(load_json(path), path)


def parse(document: Any, path: Path | str) -> Evidence:
    """Check one parsed document of ``gossamer reproduce``.

    Parameters
    ----------
    document : JSON data
    path : Path or str
        Where it was read, for the message.

    Returns
    -------
    Evidence

    Raises
    ------
    FormatError
        As `load` does.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise FormatError(path, f"expected evidence of schema {SCHEMA}, found something else")
    try:
        claims = tuple(_pick(Claim, claim) for claim in document["claims"])
        evidence: Evidence = _pick(Evidence, {**document, "claims": claims})
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(path, f"expected evidence of schema {SCHEMA}, found {error}") from error
    for name, expected in _EVIDENCE_TYPES.items():
        if not isinstance(getattr(evidence, name), expected):
            raise FormatError(path, f"{name}: unexpected value {getattr(evidence, name)!r}")
    return evidence


def _evidence(
    slug: str, scale: str, seed: int, seconds: float, claims: tuple[Claim, ...], error: str | None
) -> Evidence:
    machine = describe("cuda" if scale == "gpu" else "cpu")
    return Evidence(
        slug=slug,
        scale=scale,
        seed=seed,
        device=machine.device,
        seconds=seconds,
        claims=claims,
        threads=machine.threads,
        machine=machine.summary(),
        versions=machine.versions,
        error=error,
        commit=commit(),
    )


def _pick(record: type, document: dict[str, Any]) -> Any:
    """Build a record from a document's fields of the same names."""
    names = {field.name for field in fields(record)}
    return record(**{name: value for name, value in document.items() if name in names})


def _finite_or_text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
