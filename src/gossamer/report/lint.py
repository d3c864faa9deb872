"""Findings on files: a user's report, or the evidence of a reproduction."""

import re
from collections.abc import Iterator
from pathlib import Path

from gossamer import catalog
from gossamer.catalog import lint, reports
from gossamer.catalog.lint import Finding
from gossamer.errors import FormatError
from gossamer.files import load_json
from gossamer.reproduce import Claim, Evidence, load

_SPEED = re.compile(r"\b(faster|speed-?ups?|as fast|quicker)\b", re.IGNORECASE)
_ENERGY = re.compile(r"\b(energy|joules?|watts?)\b", re.IGNORECASE)
_NOTHING = ("", "nan", "inf", "-inf")


def lint_file(path: Path | str) -> tuple[Finding, ...]:
    """Check a JSON file by the ten lessons.

    Parameters
    ----------
    path : Path or str
        A report (`gossamer.catalog.reports`), or what ``gossamer reproduce --out`` wrote.

    Returns
    -------
    tuple of Finding

    Raises
    ------
    FormatError
        If the file is neither.
    OSError
        If it cannot be read.
    """
    document = load_json(path)
    if isinstance(document, dict) and "claims" in document and "slug" in document:
        return check_evidence(load(path))
    try:
        return lint.check(reports.from_json(document))
    except ValueError as error:
        raise FormatError(path, f"{error} (neither a report nor evidence)") from error


def check_evidence(evidence: Evidence) -> tuple[Finding, ...]:
    """Check the evidence of one paper.

    Claims are sentences with figures, so less can be checked than of a report: that each was
    measured, against something, by a criterion, with a source for what is quoted, and that speed
    and energy are claimed only where they can be.

    Parameters
    ----------
    evidence : Evidence

    Returns
    -------
    tuple of Finding
    """
    return tuple(_findings(evidence))


def _findings(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.complete:
        yield Finding("error", "L9", f"the run stopped early: {evidence.error}")
    elif not evidence.claims:
        yield Finding("error", "L9", "nothing was measured")
    if evidence.scale == "quick":
        yield Finding("warning", "L9", "a quick run is a smoke test, no evidence")
    if not evidence.commit:
        yield Finding("warning", "L9", "the commit of the code is not recorded")
    for number, claim in enumerate(evidence.claims, start=1):
        for finding in _of_claim(claim, evidence.slug):
            yield Finding(finding.severity, finding.lesson, f"claim {number}: {finding.text}")
    unknown = sum(claim.seeds is None for claim in evidence.claims)
    if unknown:
        yield Finding("warning", "L9", f"the seeds of {unknown} claims are not counted")


def _of_claim(claim: Claim, slug: str) -> Iterator[Finding]:
    for name, least in (("claim", 2), ("criterion", 1), ("setting", 2)):
        value = getattr(claim, name)
        if len(re.findall(r"\w+", value)) < least:
            yield Finding("error", "L9", f"expected a {name} in words, got {value!r}")
    if claim.paper is not None and not claim.source.strip():
        yield Finding("error", "L10", f"{claim.paper!r} is quoted from nowhere")
    if claim.ours is None or str(claim.ours).strip().lower() in _NOTHING:
        yield Finding("error", "L10", f"ours was not measured: {claim.ours!r}")
    if _SPEED.search(claim.claim):
        if claim.baseline is None or str(claim.baseline).strip().lower() in _NOTHING:
            yield Finding("error", "L2", "a speed-up without a baseline of the same run")
        known = {paper.slug: paper.taxonomy.hardware for paper in catalog.papers()}
        if known.get(slug) == ("none",):
            yield Finding("warning", "L10", f"speed, but the catalogue has no hardware for {slug}")
    if _ENERGY.search(f"{claim.claim} {claim.criterion}") and "meter" not in claim.setting:
        yield Finding("error", "L10", "energy, but no meter is named in the setting")
