"""The built site: whole, linked, self-contained, and true to catalogue and results."""

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from gossamer import catalog

ROOT = Path(__file__).parents[2]
RESULTS = sorted(ROOT.glob("results/*/reproduce/*.json"))


class Page(HTMLParser):
    """What a page links to and loads, its anchors, and the cells of its tables row by row."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        loaded = values.get("href") if tag == "link" else values.get("src")
        if loaded and values.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(loaded)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere(pages: dict[Path, Page]):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("https", "mailto", "javascript"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (
                anchor and not anchor.startswith("__") and anchor not in pages[target].anchors
            ):
                dead.append((path.name, link))
    assert not dead


def test_nothing_is_loaded_from_the_network(site: Path, pages: dict[Path, Page]):
    for path, page in pages.items():
        for address in page.loads:
            assert not urlsplit(address).scheme and not address.startswith("//"), (path, address)
            assert (path.parent / unquote(urlsplit(address).path)).exists(), (path, address)
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text("utf-8")
        assert "@import" not in sheet.read_text("utf-8")


def test_every_wing_and_every_implementation_has_its_page(site: Path):
    for paper in catalog.papers():
        folder = site / "wings" / paper.wing
        assert paper.slug in (folder / "index.html").read_text("utf-8")
        assert (folder / f"{paper.slug}.html").exists() == bool(paper.entry)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_claim_is_shown_as_it_was_measured(path: Path, site: Path, pages):
    evidence = json.loads(path.read_text())
    wing = catalog.get(evidence["slug"]).wing
    shown = pages[site / "wings" / wing / f"{evidence['slug']}.html"].rows
    overview = pages[site / "evidence.html"].rows
    claims = iter([row for row in shown if "Criterion: " in row[0]])
    machines = [other for other in RESULTS if other.stem == path.stem]  # in the page's order
    found = {
        other: [next(claims) for _ in json.loads(other.read_text())["claims"]] for other in machines
    }
    assert next(claims, None) is None
    for claim, row in zip(evidence["claims"], found[path], strict=True):
        assert row[0].startswith(f"{claim['claim']}Criterion: ")
        assert claim["criterion"] in row[0]
        assert claim["setting"] in row[0]
        for name, cell in zip(("paper", "baseline", "ours"), row[1:4], strict=True):
            if isinstance(claim[name], str):
                assert cell == claim[name]
            elif claim[name] is not None:
                assert float(cell) == pytest.approx(claim[name], rel=1e-3)
        assert row[4] == ("holds" if claim["holds"] else "does not hold")
        assert any(other[0].startswith(claim["claim"]) for other in overview)


def test_the_atlas_shows_every_paper_in_five_words(site: Path, pages):
    rows = pages[site / "atlas.html"].rows[1:]
    assert len(rows) == len(catalog.papers())
    for paper, (about, words, measured) in zip(catalog.papers(), rows, strict=True):
        assert paper.title in about and paper.summary in about and paper.status in about
        for word in ("score", "budget", "pattern", "schedule", "kernel"):
            assert word + getattr(paper, word) in words
        found = [path for path in RESULTS if path.stem == paper.slug]
        assert ("claims hold" in measured) == bool(found)
