"""The atlas in a browser, opened from the disk: filters, search, address, keyboard, no script."""

import json
import os
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from gossamer import catalog
from gossamer.catalog.taxonomy import TERMS

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WORDS = ("score", "budget", "pattern", "schedule", "kernel")
TOTAL = len(catalog.papers())

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Debian's chromium and chromium-driver, which are not installed",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = os.environ | {"SE_OFFLINE": "true"}
    driver = webdriver.Chrome(options, Service(DRIVER, env=environment))
    driver.set_page_load_timeout(300)
    yield driver
    driver.quit()


class Atlas:
    """What a reader sees and does."""

    def __init__(self, browser, site: Path):
        self.browser, self.address = browser, (site / "atlas.html").as_uri()
        self.open()

    def open(self, hash: str = "") -> None:
        """Load the page anew and wait until its script has run."""
        self.browser.get("about:blank")
        self.browser.get(self.address + hash)
        WebDriverWait(self.browser, 30).until(lambda _: self.find("#gs-filter").is_displayed())

    def choose(self, **values: str) -> None:
        """Set controls as a reader would, one input event each."""
        self.browser.execute_script(
            """for (const [name, value] of Object.entries(arguments[0])) {
                 const field = document.getElementById("gs-filter").elements[name];
                 field.value = value;
                 field.dispatchEvent(new Event("input", { bubbles: true }));
               }""",
            values,
        )

    def shown(self) -> list[str]:
        """The slugs of the rows that are laid out."""
        return self.browser.execute_script(
            """return [...document.querySelectorAll("#gs-papers tbody tr")]
                 .filter((row) => row.getClientRects().length).map((row) => row.id)"""
        )

    def count(self) -> str:
        return self.find("#gs-count").text

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def hash(self) -> str:
        return self.browser.execute_script("return location.hash")


@pytest.fixture
def atlas(browser, site: Path) -> Atlas:
    return Atlas(browser, site)


def slugs(papers) -> list[str]:
    return [paper.slug for paper in papers]


def test_all_papers_at_first_and_nothing_to_complain_of(browser, site: Path):
    for log in ("browser", "performance"):
        browser.get_log(log)  # forgets what the browser began with
    atlas = Atlas(browser, site)
    assert atlas.shown() == slugs(catalog.papers())
    assert atlas.count() == f"{TOTAL} papers"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert atlas.address in asked and len(asked) > 5
    assert not [address for address in asked if address.startswith(("http", "ws", "//"))]


def test_wings_and_statuses(atlas: Atlas):
    for wing in {paper.wing for paper in catalog.papers()}:
        atlas.choose(wing=wing)
        assert atlas.shown() == slugs(catalog.find(wing=wing))
    for status in {paper.status for paper in catalog.papers()}:
        atlas.choose(wing="", status=status)
        expected = slugs(catalog.find(status=status))
        assert atlas.shown() == expected
        assert atlas.count() == f"{len(expected)} of {TOTAL} papers"


@pytest.mark.parametrize("word", WORDS)
def test_every_term_of_a_word_and_its_count(atlas: Atlas, word: str):
    options = atlas.browser.execute_script(
        "return [...document.getElementById('gs-filter').elements[arguments[0]].options]"
        ".map((option) => [option.value, option.text])",
        word,
    )
    assert len(options) > 4
    for term, label in options[1:]:
        atlas.choose(**{word: term})
        expected = [
            paper.slug
            for paper in catalog.papers()
            if term.casefold() in getattr(paper, word).casefold()
        ]
        assert expected and atlas.shown() == expected
        assert label == f"{term} ({len(expected)})"


@pytest.mark.parametrize("field", ["object", "granularity", "decided", "mode"])
def test_every_term_of_the_taxonomy(atlas: Atlas, field: str):
    for term in TERMS[field]:
        expected = slugs(catalog.find(where=f"{field}={term}"))
        if expected:
            atlas.choose(**{field: term})
            assert atlas.shown() == expected


@pytest.mark.parametrize(
    "words", ["tree search", "N:M  backward", "D2iT", "ATTENTION", "beyond l1"]
)
def test_search_finds_what_the_command_line_finds(atlas: Atlas, words: str):
    atlas.find("[name=q]").send_keys(words)
    assert atlas.shown() == slugs(catalog.find(words)) != []


def test_filters_combine_and_nothing_found_is_said(atlas: Atlas):
    atlas.choose(wing="attention", status="works", kernel="gathered", q="search")
    expected = [
        paper.slug
        for paper in catalog.find("search", wing="attention", status="works")
        if "gathered" in paper.kernel
    ]
    assert atlas.shown() == expected != []
    atlas.choose(q="no such paper")
    assert atlas.shown() == []
    assert atlas.count().startswith(f"0 of {TOTAL} papers: ")


def test_the_address_keeps_the_filter(atlas: Atlas):
    atlas.choose(wing="training", q="n:m & more?")
    atlas.choose(q="n:m")
    expected, kept = atlas.shown(), atlas.hash()
    assert kept == "#q=n%3Am&wing=training"
    atlas.open(kept)
    assert atlas.shown() == expected == slugs(catalog.find("n:m", wing="training"))
    atlas.find("#gs-filter [type=reset]").click()
    atlas.browser.execute_async_script("setTimeout(arguments[0], 20)")
    assert atlas.shown() == slugs(catalog.papers())
    assert atlas.hash() == ""


@pytest.mark.parametrize("hash", ["#wing=kites", "#unknown=1", "#%E0%A4%A", "#hip-attention"])
def test_an_unknown_address_shows_everything(atlas: Atlas, hash: str):
    atlas.open(hash)
    assert atlas.shown() == slugs(catalog.papers())


def test_keyboard_and_labels(atlas: Atlas):
    controls = atlas.browser.find_elements("css selector", "#gs-filter :is(input, select, button)")
    names = [control.accessible_name for control in controls]
    assert names == [
        *("Search", "Wing", "Status", *(word.capitalize() for word in WORDS)),
        *("Object", "Granularity", "Decided", "Mode", "Clear"),
    ]
    live = atlas.find("#gs-count")
    assert (live.get_attribute("aria-live"), live.aria_role) == ("polite", "status")
    controls[0].send_keys(Keys.TAB)
    assert atlas.browser.switch_to.active_element == controls[1]
    controls[1].send_keys("graphs")
    assert atlas.shown() == slugs(catalog.find(wing="graphs"))


def test_without_scripts_it_is_the_full_table(browser, site: Path):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get((site / "atlas.html").as_uri())
        rows = browser.find_elements("css selector", "#gs-papers tbody tr")
        assert len(rows) == TOTAL
        assert not browser.find_element("css selector", "#gs-filter").is_displayed()
        assert all(rows[place].is_displayed() for place in (0, TOTAL // 2, TOTAL - 1))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("page", ["index", "atlas", "evidence", "wings/training/index", "kernels"])
def test_a_narrow_window_does_not_scroll_sideways(browser, site: Path, page: str):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get((site / f"{page}.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_search_of_the_site_works_from_the_disk(browser, site: Path):
    browser.get((site / "index.html").as_uri())
    field = browser.find_element("css selector", ".md-search__input")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys("dyGRASS")
    found = ".md-search-result__item a"
    WebDriverWait(browser, 30).until(lambda now: now.find_elements("css selector", found))
    first = browser.find_element("css selector", found).get_attribute("href")
    assert "wings/graphs" in first or "evidence" in first or "changelog" in first
