"""The committed measurements, by paper."""

from pathlib import Path

from gossamer import reproduce
from gossamer.reproduce import Claim, Evidence

LEADS = 2  # claims of a paper that stand in the atlas


def collect(results: Path) -> dict[str, tuple[Evidence, ...]]:
    """Read what was reproduced.

    Parameters
    ----------
    results : Path
        Folder with ``<device>/reproduce/<slug>.json`` files.

    Returns
    -------
    dict of str to tuple of Evidence
        By slug, in the order of the devices' names. Runs that did not finish are left out.

    Raises
    ------
    FormatError
        If a file is not evidence.
    """
    found: dict[str, tuple[Evidence, ...]] = {}
    for path in sorted(results.glob("*/reproduce/*.json")):
        evidence = reproduce.load(path)
        if evidence.complete:
            found[evidence.slug] = (*found.get(evidence.slug, ()), evidence)
    return found


def leads(evidence: Evidence) -> tuple[Claim, ...]:
    """Pick the claims to show beside a paper: the first with a figure of its own, held or not.

    "exact" is no figure: it says that two computations agree.

    Examples
    --------
    >>> from gossamer.reproduce import Claim, Evidence
    >>> same = Claim("equal", "exact", "-", None, "equal", "equal", True)
    >>> fast = Claim("faster", 2.0, "Table 1", 1.0, 1.4, "ours >= 1.8", False)
    >>> run = Evidence("slug", "full", 0, "cpu", 1.0, (same, fast), 1, "a machine", {})
    >>> [claim.claim for claim in leads(run)]
    ['faster', 'equal']
    """
    ranked = sorted(evidence.claims, key=lambda claim: claim.paper in (None, "exact"))
    return tuple(ranked[:LEADS])
