"""The pages that nobody writes: the atlas, the evidence, and one a wing and a method."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gossamer import catalog
from gossamer.catalog import Paper
from gossamer.report.tables import evidence_setting, verdict
from gossamer.report.words import figure
from gossamer.reproduce import Evidence
from gossamer.site.atlas import WORDS, Row, facets, rows, terms
from gossamer.site.docstrings import markdown, reference, summary
from gossamer.site.evidence import collect

WINGS_MARK = "<!-- wings -->"
NOT_BUILT = "Nothing of this wing is built yet."
_SPARSE = re.compile(r"\*\*What is sparse:\*\*\s(.+?)[.;:]\s", re.DOTALL)


@dataclass(frozen=True)
class Site:
    """What is on the site, read from one checkout.

    Parameters
    ----------
    root : Path
        The repository: hand-written pages in ``docs/``, measurements in ``results/``.

    Examples
    --------
    >>> sorted(Site(Path("nowhere")).pages())[:2]
    ['atlas.md', 'evidence.md']
    """

    root: Path

    @cached_property
    def evidence(self) -> dict[str, tuple[Evidence, ...]]:
        """Every complete reproduction under ``results/``, by slug."""
        return collect(self.root / "results")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every paper of the catalogue with its page and evidence."""
        return rows(catalog.papers(), self.evidence)

    def pages(self) -> dict[str, str]:
        """Write every page that is generated, wholly or in part.

        Returns
        -------
        dict of str to str
            Markdown by path below ``docs/``. A hand-written wing page is the opening of its own.

        Raises
        ------
        ImportError, AttributeError
            If an entry of the catalogue names something that does not exist.
        FormatError
            If a result is damaged.
        """
        measured = [
            (row.paper, self.evidence[row.paper.slug])
            for row in self.rows
            if row.paper.slug in self.evidence
        ]
        claims = [claim for _, runs in measured for run in runs for claim in run.claims]
        held = sum(claim.holds for claim in claims)
        pages = {
            "atlas.md": _render("atlas.md.j2", rows=self.rows, facets=facets(self.rows)),
            "evidence.md": _render("evidence.md.j2", papers=measured, total=len(claims), held=held),
        }
        for wing in catalog.WINGS:
            pages[f"wings/{wing}/README.md"] = self._wing(wing)
        for row in self.rows:
            if row.page:
                pages[f"{row.page}.md"] = self._method(row.paper)
        for source, target in (
            ("CONTRIBUTING.md", "contributing.md"),
            ("CHANGELOG.md", "changelog.md"),
        ):
            if (self.root / source).exists():
                text = (self.root / source).read_text("utf-8")
                pages[target] = text.replace("](docs/", "](")
        start = self.root / "docs" / "index.md"
        if start.exists():
            pages["index.md"] = start.read_text("utf-8").replace(WINGS_MARK, self._wings())
        return pages

    def navigation(self) -> list[dict[str, Any]]:
        """Return the menu in MkDocs' form: titles, and the pages below them.

        Returns
        -------
        list of dict
        """
        wings: list[dict[str, Any]] = [
            {
                wing.capitalize(): [
                    f"wings/{wing}/README.md",
                    *(f"{row.page}.md" for row in self._of(wing) if row.page),
                ]
            }
            for wing in catalog.WINGS
        ]
        own = {"index.md", "data.md", "methods.md"}  # the last is for readers of the repository
        guides = sorted(
            path.name for path in (self.root / "docs").glob("*.md") if path.name not in own
        )
        return [
            {"Start": "index.md"},
            {"Atlas": "atlas.md"},
            {"Wings": wings},
            {"Evidence": "evidence.md"},
            {"Guides": guides},
            {"About": ["data.md", "contributing.md", "changelog.md"]},
        ]

    def _of(self, wing: str) -> list[Row]:
        return [row for row in self.rows if row.paper.wing == wing]

    def _wings(self) -> str:
        """A table of the wings: what is sparse in each, and how far it has come."""
        lines = ["| wing | what is sparse | papers | measured |", "|---|---|---|---|"]
        for wing in catalog.WINGS:
            found = self._of(wing)
            measured = sum(row.evidence is not None for row in found)
            said = _SPARSE.search(self._opening(wing))
            sparse = " ".join(said[1].split()) if said else "-"
            link = f"[{wing}](wings/{wing}/README.md)"
            lines.append(f"| {link} | {sparse} | {len(found)} | {measured or '-'} |")
        return "\n".join(lines)

    def _opening(self, wing: str) -> str:
        """A wing's hand-written page, or else the docstring of its package."""
        written = self.root / "docs" / "wings" / wing / "README.md"
        if written.exists():
            return written.read_text("utf-8").replace(
                "(../../../CONTRIBUTING", "(../../contributing"
            )
        package = _package(wing)
        text = markdown(package.__doc__ or "") if package else NOT_BUILT
        return f"# {wing.capitalize()}\n\n{text}\n"

    def _wing(self, wing: str) -> str:
        """A wing's opening, its papers, and the names its package offers."""
        package = _package(wing)
        shown = {row.paper.entry for row in self._of(wing)}
        public = [
            (name, summary(item), Markup(reference(f"gossamer.{wing}.{name}", item, level=0)))
            for name, item in (_public(package) if package else {}).items()
            if f"gossamer.{wing}:{name}" not in shown
        ]
        return self._opening(wing) + _render("wing.md.j2", rows=self._of(wing), public=public)

    def _method(self, paper: Paper) -> str:
        module, _, name = paper.entry.partition(":")
        item = catalog.resolve(paper)
        return _render(
            "method.md.j2",
            name=name,
            paper=paper,
            reference=Markup(reference(f"{module}.{name}", item)),
            runs=self.evidence.get(paper.slug, ()),
            taxonomy=[
                (field.name, ", ".join(terms(paper, field.name)))
                for field in fields(paper.taxonomy)
            ],
        )


def _package(wing: str) -> ModuleType | None:
    return import_module(f"gossamer.{wing}") if find_spec(f"gossamer.{wing}") else None


def _public(package: ModuleType) -> Mapping[str, Any]:
    """The names a package offers: those it lists, else the classes and functions it defines."""
    names = getattr(package, "__all__", None)
    if names is not None:
        return {name: getattr(package, name) for name in names}
    return {
        name: item
        for name, item in vars(package).items()
        if (inspect.isclass(item) or inspect.isfunction(item))
        and item.__module__ == package.__name__
        and not name.startswith("_")
    }


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=WORDS, figure=figure, verdict=verdict, evidence_setting=evidence_setting
    )
    return environment.get_template(template).render(values)
