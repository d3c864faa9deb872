"""The atlas: every paper in the five words, beside what was measured of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer import catalog
from gossamer.catalog import Paper
from gossamer.catalog.taxonomy import TERMS as TAXONOMY_TERMS
from gossamer.reproduce import Claim, Evidence
from gossamer.site.evidence import leads

WORDS = ("score", "budget", "pattern", "schedule", "kernel")

# What the five words are often told with. A term is offered where at least one paper uses it.
TERMS: Mapping[str, tuple[str, ...]] = {
    "score": (
        *("magnitude", "gradient", "activation", "attention", "q.k", "learned", "random"),
        *("change", "difference", "error", "none"),
    ),
    "budget": ("top-k", "top-p", "top-N of", "threshold", "density", "share", "fixed", "annealed"),
    "pattern": (
        *("unstructured", "N:M", "block", "channel", "layer", "head", "token", "stripe"),
        *("window", "edges", "k-space"),
    ),
    "schedule": (
        *("once", "every step", "every n", "then fixed", "until t", "per input", "per token"),
        *("per frame", "per image", "prefill", "decode"),
    ),
    "kernel": (
        *("block-sparse attention", "gathered", "SpMM", "SDDMM", "N:M matmul"),
        *("activation-sparse", "random walks", "none"),
    ),
}

TAXONOMY = ("object", "granularity", "decided", "mode")  # its fields that are filters, too


@dataclass(frozen=True)
class Row:
    """One paper of the atlas.

    Parameters
    ----------
    paper : Paper
    page : str
        Path of its method page, without an ending; "" if it has none.
    evidence : Evidence or None
        Of the first device that measured it.
    leads : tuple of Claim
        The claims to show.
    text : str
        What a search looks into.
    facets : mapping of str to str
        What the filters look into, by name; several terms have spaces between.
    """

    paper: Paper
    page: str
    evidence: Evidence | None
    leads: tuple[Claim, ...]
    text: str
    facets: Mapping[str, str]


@dataclass(frozen=True)
class Facet:
    """One filter: a name, a title, and its terms with the number of papers of each."""

    name: str
    title: str
    terms: tuple[tuple[str, int], ...]


def rows(papers: Sequence[Paper], evidence: Mapping[str, tuple[Evidence, ...]]) -> tuple[Row, ...]:
    """Put papers and their evidence side by side.

    Parameters
    ----------
    papers : sequence of Paper
    evidence : mapping of str to tuple of Evidence
        By slug.

    Returns
    -------
    tuple of Row
        In the order of `papers`.

    Examples
    --------
    >>> rows(catalog.find("tree search"), {})[0].facets["wing"]
    'attention'
    """
    return tuple(_row(paper, evidence.get(paper.slug, ())) for paper in papers)


def facets(found: Sequence[Row]) -> tuple[Facet, ...]:
    """Count what can be filtered by: the wing, the status, the five words and the taxonomy.

    Examples
    --------
    >>> wing, *_ = facets(rows(catalog.find("tree search"), {}))
    >>> wing.terms
    (('attention', 1),)
    """
    exact = {"wing": catalog.WINGS, "status": catalog.STATUSES}
    counted = []
    taxonomy = {name: tuple(TAXONOMY_TERMS[name]) for name in TAXONOMY}
    for name, terms in {**exact, **TERMS, **taxonomy}.items():
        counts = [(term, sum(matches(row, name, term) for row in found)) for term in terms]
        counted.append(Facet(name, name.capitalize(), tuple(pair for pair in counts if pair[1])))
    return tuple(counted)


def matches(row: Row, facet: str, term: str) -> bool:
    """Say whether a paper has a term: somewhere in a word, elsewhere as a whole."""
    value = row.facets[facet]
    return term.casefold() in value if facet in WORDS else term in value.split()


def terms(paper: Paper, field: str) -> tuple[str, ...]:
    """Return a paper's terms in one field of the taxonomy."""
    value = getattr(paper.taxonomy, field)
    return (value,) if isinstance(value, str) else value


def _row(paper: Paper, runs: tuple[Evidence, ...]) -> Row:
    words = {word: getattr(paper, word).casefold() for word in WORDS}
    taxonomy = {name: " ".join(terms(paper, name)) for name in TAXONOMY}
    return Row(
        paper=paper,
        page=f"wings/{paper.wing}/{paper.slug}" if paper.entry else "",
        evidence=runs[0] if runs else None,
        leads=leads(runs[0]) if runs else (),
        text=catalog.searched(paper),
        facets={"wing": paper.wing, "status": paper.status, **words, **taxonomy},
    )
