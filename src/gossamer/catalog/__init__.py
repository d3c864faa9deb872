"""The catalogue: what each of the 61 papers makes sparse, and whether it works here yet.

The entries live in ``papers.toml``. They are read once, checked field by field, and served as
frozen records that describe every paper in the library's five words and in the terms of the
taxonomy.
"""

import difflib
import pkgutil
import re
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, get_type_hints

from gossamer.catalog.taxonomy import GROUPS, SEVERAL, TERMS, Taxonomy, from_table
from gossamer.errors import FormatError

WINGS = (
    "attention",
    "training",
    "compression",
    "conditional",
    "inference",
    "estimators",
    "imaging",
    "spatial",
    "dynamics",
    "graphs",
    "decisions",
    "bench",
    "catalog",
)
STATUSES = ("planned", "works")
SUMMARY_LIMIT = 160

_OPTIONAL = ("arxiv", "entry")
_FORMS = {
    "slug": (re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), "lower-case words joined by hyphens"),
    "arxiv": (re.compile(r"(\d{4}\.\d{5})?"), 'an arXiv id such as "2406.09827", or ""'),
    "entry": (re.compile(r"(gossamer(\.\w+)+:\w+)?"), '"gossamer.module:object", or ""'),
}


@dataclass(frozen=True)
class Paper:
    """One paper of the catalogue.

    Attributes
    ----------
    slug : str
        Its name in the catalogue and on the command line.
    title : str
        The paper's own title.
    arxiv : str
        The arXiv id, or "".
    year : int
        When it first appeared.
    wing : str
        The part of the library it belongs to, one of `WINGS`.
    score, budget, pattern, schedule, kernel : str
        The five words: how much a unit matters, how much may stay, the shape of what stays,
        when it is decided again, and what skips the rest.
    taxonomy : Taxonomy
        What is sparse, when that is decided and at what cost, in closed terms.
    summary : str
        What it does, in one line.
    entry : str
        Where its implementation lives, "module:object"; "" if that is not settled yet.
    status : str
        "works" once the implementation and its reproduction exist, else "planned".
    """

    slug: str
    title: str
    arxiv: str
    year: int
    wing: str
    score: str
    budget: str
    pattern: str
    schedule: str
    kernel: str
    taxonomy: Taxonomy
    summary: str
    entry: str
    status: str


def read(path: Traversable) -> tuple[Paper, ...]:
    """Read a catalogue file and check every field of every entry.

    Parameters
    ----------
    path : Path or other Traversable
        A TOML file whose only key, ``paper``, is an array of tables.

    Returns
    -------
    tuple of Paper
        In the order of the file.

    Raises
    ------
    FormatError
        If the file is not TOML, or if an entry misses a field, has one too many, repeats a slug
        or holds a wrong value; the message names the entry.

    Examples
    --------
    >>> from importlib import resources
    >>> from gossamer import catalog
    >>> len(catalog.read(resources.files("gossamer.catalog") / "papers.toml"))
    61
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(str(path), f"expected UTF-8 TOML, got {error}") from error
    tables = document.get("paper")
    if set(document) != {"paper"} or not isinstance(tables, list):
        raise FormatError(str(path), "expected [[paper]] tables and nothing else")

    found: dict[str, Paper] = {}
    for number, table in enumerate(tables, start=1):
        name = f"entry {number}"
        if isinstance(table, dict) and "slug" in table:
            name += f" ({table['slug']!r})"
        problem = _problem(table)
        if problem is None and table["slug"] in found:
            problem = "slug: expected each slug once, got it again"
        if problem is not None:
            raise FormatError(str(path), f"{name}: {problem}")
        found[table["slug"]] = Paper(**_folded(table))
    return tuple(found.values())


def _problem(table: object) -> str | None:
    """Say what is wrong with one parsed entry; None if nothing is."""
    if not isinstance(table, dict):
        return f"expected a table, got {table!r}"
    known = {name: kind for name, kind in get_type_hints(Paper).items() if name != "taxonomy"}
    known |= dict.fromkeys(GROUPS, dict)
    if missing := [name for name in known if name not in table]:
        return f"expected {', '.join(missing)}, got no such field"
    if unknown := [name for name in table if name not in known]:
        return f"expected the fields {', '.join(known)}, got {', '.join(unknown)}"

    for name, kind in known.items():
        value = table[name]
        if type(value) is not kind:  # exact, because a TOML boolean is an int to isinstance
            return f"{name}: expected {kind.__name__}, got {value!r}"
        if kind is str and (value != " ".join(value.split()) or not (value or name in _OPTIONAL)):
            return f"{name}: expected one line without stray spaces, got {value!r}"
        if name in _FORMS and not _FORMS[name][0].fullmatch(value):
            return f"{name}: expected {_FORMS[name][1]}, got {value!r}"

    for name, allowed in (("wing", WINGS), ("status", STATUSES)):
        if table[name] not in allowed:
            return f"{name}: expected one of {', '.join(allowed)}, got {table[name]!r}"
    if not 1900 <= table["year"] <= 2100:
        return f"year: expected four digits, got {table['year']}"
    if len(table["summary"]) > SUMMARY_LIMIT:
        return f"summary: expected <= {SUMMARY_LIMIT} characters, got {len(table['summary'])}"
    if table["status"] == "works" and not table["entry"]:
        return 'entry: expected "gossamer.module:object" in an entry that works, got ""'
    try:
        taxonomy = _folded(table)["taxonomy"]
    except ValueError as error:
        return str(error)
    if not table["entry"] and taxonomy.hardware != ("none",):
        return f"hardware: expected none in an entry without code, got {taxonomy.hardware}"
    return None


def _folded(table: dict[str, Any]) -> dict[str, Any]:
    """Fold the taxonomy's groups of one parsed entry into a record."""
    taxonomy = from_table({group: table[group] for group in GROUPS})
    rest = {name: value for name, value in table.items() if name not in GROUPS}
    return rest | {"taxonomy": taxonomy}


@cache
def papers() -> tuple[Paper, ...]:
    """Return all papers, by wing and then by slug.

    Returns
    -------
    tuple of Paper
        Read and checked on the first call.

    Raises
    ------
    FormatError
        If the catalogue that ships with the library is damaged.

    Examples
    --------
    >>> from gossamer import catalog
    >>> len(catalog.papers())
    61
    """
    return read(resources.files(__name__) / "papers.toml")


def find(
    words: str | Iterable[str] = (),
    *,
    wing: str | None = None,
    status: str | None = None,
    where: str = "",
) -> tuple[Paper, ...]:
    """Search the catalogue.

    Parameters
    ----------
    words : str or iterable of str, default=()
        All of them must occur, in any case, in the slug, the title, the summary or the five
        words. A plain string is split at spaces.
    wing : str, optional
        Keep only this wing.
    status : str, optional
        Keep only papers of this status.
    where : str, default=""
        Conditions on the taxonomy, ``field=term`` or ``field!=term``, joined by commas; all must
        be met. A field of several terms meets ``=`` if the term is among them.

    Returns
    -------
    tuple of Paper
        The hits, in the order of `papers`; empty if there are none.

    Raises
    ------
    ValueError
        If the wing, the status, a field of the taxonomy or a term of it does not exist.

    Examples
    --------
    >>> from gossamer import catalog
    >>> [paper.slug for paper in catalog.find("tree search", wing="attention")]
    ['hip-attention']
    >>> [paper.slug for paper in catalog.find(where="object=kv_cache, granularity=page")]
    ['lserve', 'scbench', 'sparse-frontier']
    """
    conditions = [_condition(text) for text in where.split(",")] if where.strip() else []
    for name, value, allowed in (("wing", wing, WINGS), ("status", status, STATUSES)):
        if value is not None and value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    needles = [_plain(word) for word in (words.split() if isinstance(words, str) else words)]
    return tuple(
        paper
        for paper in papers()
        if wing in (None, paper.wing)
        and status in (None, paper.status)
        and all(needle in searched(paper) for needle in needles)
        and all((term in _terms(paper, name)) is wanted for name, term, wanted in conditions)
    )


def _condition(text: str) -> tuple[str, str, bool]:
    """Parse ``field=term`` or ``field!=term`` into field, term and whether it is wanted."""
    name, separator, term = (part.strip() for part in text.partition("="))
    wanted = not name.endswith("!")
    name = name.removesuffix("!").strip()
    if not separator or name not in TERMS:
        raise ValueError(
            f"where: expected FIELD=TERM with a FIELD of {', '.join(TERMS)}, got {text!r}"
        )
    if term not in TERMS[name]:
        raise ValueError(f"where: expected {name}= one of {', '.join(TERMS[name])}, got {term!r}")
    return name, term, wanted


def _terms(paper: Paper, name: str) -> tuple[str, ...]:
    value = getattr(paper.taxonomy, name)
    return value if name in SEVERAL else (value,)


def searched(paper: Paper) -> str:
    """Return the text that `find` looks into, its case folded.

    Parameters
    ----------
    paper : Paper

    Returns
    -------
    str
        Slug, title, summary and the five words, a line each.

    Examples
    --------
    >>> from gossamer import catalog
    >>> "tree search" in catalog.searched(catalog.get("hip-attention"))
    True
    """
    five = (paper.score, paper.budget, paper.pattern, paper.schedule, paper.kernel)
    return _plain("\n".join((paper.slug, paper.title, paper.summary, *five)))


def _plain(text: str) -> str:
    """Fold case, and the letters of titles that keyboards lack: "D²iT" is found as "d2it"."""
    return unicodedata.normalize("NFKC", text).casefold()


def get(slug: str) -> Paper:
    """Return one paper.

    Parameters
    ----------
    slug : str
        Its exact slug.

    Returns
    -------
    Paper
        The paper.

    Raises
    ------
    ValueError
        If no paper has this slug; the message suggests the nearest.

    Examples
    --------
    >>> from gossamer import catalog
    >>> catalog.get("hip-attention").arxiv
    '2406.09827'
    """
    known = {paper.slug: paper for paper in papers()}
    if slug in known:
        return known[slug]
    typed = _plain(slug).strip()
    # A part of a name is a better hint than its spelling: "hip" is closer to "sharp" letterwise.
    near = [name for name in known if typed and typed in name]
    near = near[:1] or difflib.get_close_matches(typed, known, n=1, cutoff=0.5)
    hint = repr(near[0]) if near else "`gossamer papers` to list them"
    raise ValueError(f"slug: expected a paper of the catalogue, got {slug!r}, try {hint}")


def resolve(paper: Paper) -> object:
    """Import the object that implements a paper.

    Parameters
    ----------
    paper : Paper
        A paper with an entry.

    Returns
    -------
    object
        What its entry names, usually a class.

    Raises
    ------
    ValueError
        If the paper has no entry yet.
    ImportError, AttributeError
        If the entry names something that does not exist.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from gossamer import catalog
    >>> paper = replace(catalog.get("sparseland"), entry="gossamer.catalog:Paper")
    >>> catalog.resolve(paper) is catalog.Paper
    True
    """
    if not paper.entry:
        raise ValueError(
            f"paper: expected one with an implementation, got {paper.slug!r} which is "
            f"{paper.status}, try one of find(status='works')"
        )
    return pkgutil.resolve_name(paper.entry)
