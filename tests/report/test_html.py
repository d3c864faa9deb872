"""Pages are self-contained, escaped, accessible, readable in both themes, and deterministic."""

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gossamer.report import drawing, html
from gossamer.report.documents import Result
from gossamer.report.html import compare_page, report_page
from gossamer.report.tables import HEADINGS
from gossamer.report.words import MISSING
from gossamer.reproduce import Claim, Evidence, stopped

BENCHMARK = {
    "machine": "Example CPU",
    "threads": 1,
    "repeats": 9,
    "figures": [
        {
            **{"name": "spmm, dense", "density": 0.1, "milliseconds": 2.0, "ratio": 3.0},
            **{"baseline_milliseconds": 6.0, "spread": 0.25, "bar": 2.5, "holds": True},
        },
        {
            **{"name": "spmm, CSR", "density": 0.1, "milliseconds": None, "ratio": 0.5},
            **{"baseline_milliseconds": None, "spread": 0.1, "bar": 2.0, "holds": False},
        },
        {"name": "a step", "ratio": 1.3},
    ],
}
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.cells, self.words = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def evidence():
    claims = (
        Claim("half <b>the</b> work", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True, "tiny"),
        Claim("twice as fast", "2x", "Figure 2", None, 1.1, "ours >= 2", False),
    )
    return Evidence("tiny", "quick", 0, "cpu", 1.5, claims, 2, "Example CPU", {})


def results(*evidences, comparison=None, benchmark=None):
    found = [Result(Path("a.json"), "evidence", one.slug, one) for one in evidences]
    if comparison:
        found.append(Result(Path("b.json"), "comparison", "a model", comparison))
    if benchmark:
        found.append(Result(Path("c.json"), "benchmark", "products", benchmark))
    return found


def test_the_table_has_every_row_and_cell(document):
    page = Page(compare_page(document))
    assert page.cells[0] == ["Method", *HEADINGS]
    assert [cells[0] for cells in page.cells[1:]] == [
        *("stock", "dense", "streaming1", "hip", "token-select1, 2", "broken")
    ]
    assert page.cells[4][1:5] == ["25.0 s", "1.60x", "24.0 ms", "7.50x"]
    assert "slower than dense at prefill (0.72x)" in page.words


def test_the_page_asks_for_nothing_and_runs_nothing(document):
    everything = results(evidence(), comparison=document, benchmark=BENCHMARK)
    for text in (compare_page(document), report_page(everything)):
        tags = Page(text).tags
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
        for _, attributes in tags:
            for name, value in attributes.items():
                assert not name.startswith("on")
                assert name.startswith("xmlns") or "//" not in (value or "")
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)


def test_the_same_document_gives_the_same_page(document):
    assert compare_page(document) == compare_page(document)


def test_settings_and_machine_are_shown(document):
    document["decode_tokens"] = 64
    words = Page(compare_page(document)).words
    for shown in (
        *("example-model", "an example document", "8,192", "Example CPU, 2 cores", "3.00 GiB"),
        *("python 3.11.0, torch 2.13.0", "Decode tokens"),
    ):
        assert shown in words


def test_the_headline_goes_to_methods_that_keep_the_quality(document):
    words = Page(compare_page(document)).words
    assert "Prefill against stock1.60xhip" in words  # streaming is faster and loses passkeys
    assert "Decode against stock9.00xtoken-select" in words
    document["rows"][2]["perplexity"] = 15.1
    assert "Prefill against stock1.60xhip" in Page(compare_page(document)).words
    document["rows"][2]["passkey"]["found"] = 8
    assert "Prefill against stock2.00xstreaming" in Page(compare_page(document)).words
    for row in document["rows"][2:]:
        row["perplexity"] = 20.0
    assert "against stock" not in Page(compare_page(document)).words


def test_an_interrupted_run_is_announced(document):
    assert "Incomplete" not in compare_page(document)
    document["complete"] = False
    assert "Incomplete: the run was interrupted" in Page(compare_page(document)).words


def test_names_are_escaped(document):
    hostile = '"><script>alert(1)</script>'
    document["model"] = document["text"] = document["rows"][3]["method"] = hostile
    document["rows"][3]["notes"] = [hostile]
    document["versions"] = {hostile: hostile}
    text = compare_page(document)
    assert "<script" not in text
    assert Page(text).words.count(hostile) >= 6


def test_every_drawing_has_words_for_those_who_do_not_see_it(document):
    page = Page(compare_page(document))
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    drawings = [tag for tag, _ in page.tags if tag == "svg"]
    captions = [tag for tag, _ in page.tags if tag == "figcaption"]
    assert len(images) == len(drawings) == len(captions) == 4
    assert all(len(attributes["aria-label"]) > 40 for attributes in images)


def luminance(colour):
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_accessibility_asks_for(theme):
    blocks = re.findall(r":root \{(.*?)\}", report_page([]), flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[theme]))
    for back in ("page", "panel"):
        for front in ("ink", "muted", "good", "bad"):
            light, dark = sorted(
                (luminance(colours[front]), luminance(colours[back])), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_both_themes_define_every_colour():
    light, dark = re.findall(r":root \{(.*?)\}", report_page([]), flags=re.DOTALL)
    assert re.findall(r"--(\w+):", light) == re.findall(r"--(\w+):", dark)


def test_evidence_shows_what_holds_what_does_not_and_what_stopped():
    halted = stopped("other", scale="full", seed=1, seconds=3.0, error="interrupted")
    page = Page(report_page(results(evidence(), halted)))
    assert "2 results" in page.words
    assert page.cells[1:3] == [
        ["tiny", "evidence", "1 of 2 claims hold"],
        ["other", "evidence", "incomplete (interrupted)"],
    ]
    assert page.cells[4] == [
        "1. half <b>the</b> workSettingtiny",
        *("0.5Table 1", "1", "0.48", "ours <= 0.5", "yes"),
    ]
    assert page.cells[5][-1] == "no"


def test_a_report_has_every_ratio_of_a_benchmark_and_says_what_missed():
    page = Page(report_page(results(benchmark=BENCHMARK)))
    assert page.cells[1:] == [
        ["spmm, dense", "0.100", "2.00", "6.00", "3.00", "0.25", "2.50", "yes"],
        ["spmm, CSR", "0.100", MISSING, MISSING, "0.50", "0.10", "2.00", "NO"],
        ["a step", MISSING, MISSING, MISSING, "1.30", MISSING, MISSING, MISSING],
    ]
    assert "1 of 2 bars reached" in page.words
    assert "Example CPU, 1 thread, medians of 9 interleaved rounds" in page.words


def test_results_of_a_kind_share_a_page_without_clashing(document):
    twice = results(evidence(), evidence(), comparison=document) + results(comparison=document)
    text = report_page(twice)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert wanted and set(wanted) <= set(ids)
    assert report_page(twice) == text


def test_what_was_left_out_is_said_and_escaped():
    words = Page(report_page([], ["x.json: <b>not</b> results"])).words
    assert "Left out" in words and "x.json: <b>not</b> results" in words
    assert "Left out" not in report_page([])


@pytest.mark.parametrize(("module", "missing"), [(drawing, "matplotlib"), (html, "jinja2")])
def test_a_missing_extra_is_named(monkeypatch, module, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}: pip install 'gossamer\[report\]'"):
        runpy.run_path(module.__file__)


def test_tables_do_not_load_the_extra():
    code = (
        "import sys, gossamer.report, gossamer.cli.reproduce;"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2.environment')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
