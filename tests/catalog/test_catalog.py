"""The catalogue: complete, well-formed, searchable, and honest about what works."""

import re
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import catalog, reproduce
from gossamer.catalog import Paper
from gossamer.errors import FormatError

# Written out, so that no paper can be dropped, renamed or moved unnoticed.
SLUGS = {
    "attention": "adaspa alisa anchor-attention delta-llm dhsa dynamic-llava"
    " dynamic-mask-attention hip-attention lserve routing-transformer seer-attention sparse-d"
    " sparse-vdit token-select zipvl",
    "training": "activating-while-pruning bdwp cast cl-dst dass dsl-recommendation dynst g2gnet"
    " progressive-gradient-flow random-pruning random-search rl-subnetworks sharp sparcl"
    " sparse-ift sr-ste",
    "compression": "dsnot essential-sparsity evopress group-channel-pruning sparse-unified-model"
    " yolov8-compression",
    "conditional": "d2it delta-activation dynamic-mdetr fire-together lazy-neuron",
    "inference": "fast-sparse-convnets sparse-bytenn",
    "estimators": "quick-selection sparse-linear-regression v1-sparse-coding",
    "imaging": "ddos-unet mri-finetune-sr rdledm red-psm",
    "spatial": "dsvt queen",
    "dynamics": "sparse-diff sparse-dynamics-control",
    "graphs": "dygrass",
    "decisions": "bayesian-network-ac misspecified-bandits",
    "bench": "scbench sparse-frontier",
    "catalog": "sparseland",
}

ENTRY = """
[[paper]]
slug = "some-method"
title = "Some Method: a Title"
arxiv = "2406.09827"
year = 2024
wing = "attention"
score = "magnitude"
budget = "top-k"
pattern = "block"
schedule = "once"
kernel = "none"
summary = "Keeps the large ones."
entry = ""
status = "planned"
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def read(tmp_path: Path):
    """Read a catalogue from text or bytes."""

    def from_text(text: str | bytes) -> tuple[Paper, ...]:
        path = tmp_path / "papers.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return catalog.read(path)

    return from_text


def evidence_missing(paper: Paper) -> list[str]:
    """List what a paper that is said to work lacks."""
    missing = []
    try:
        catalog.resolve(paper)
    except (ValueError, ImportError, AttributeError):
        missing.append("entry")
    module = paper.slug.replace("-", "_") + ".py"
    if not (resources.files("gossamer") / "reproduce" / module).is_file():
        missing.append("reproduction")
    docs = ROOT / "docs" / "methods.md"
    rows = docs.read_text("utf-8").splitlines() if docs.exists() else []
    word = re.compile(rf"(?<![\w-]){re.escape(paper.slug)}(?![\w-])")
    if not any(row.startswith("|") and word.search(row) for row in rows):
        missing.append("docs row")
    found = [reproduce.load(path) for path in ROOT.glob(f"results/*/reproduce/{paper.slug}.json")]
    if not any(one.scale != "quick" and one.complete and one.claims for one in found):
        missing.append("committed evidence")
    return missing


def test_the_61_papers_are_all_here_in_order():
    expected = [(wing, slug) for wing, slugs in SLUGS.items() for slug in slugs.split()]
    assert len(expected) == 61
    assert [(paper.wing, paper.slug) for paper in catalog.papers()] == expected
    assert tuple(SLUGS) == catalog.WINGS


def test_papers_are_read_once():
    assert catalog.papers() is catalog.papers()


@pytest.mark.parametrize("field", ["title", "arxiv", "summary"])
def test_no_two_papers_share_a(field: str):
    values = [getattr(paper, field) for paper in catalog.papers() if getattr(paper, field)]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("paper", catalog.papers(), ids=lambda paper: paper.slug)
def test_entry_is_fit_to_print(paper: Paper):
    assert len(paper.summary) <= 160
    assert paper.summary.endswith(".")
    for value in asdict(paper).values():
        assert str(value) == str(value).strip()
    if paper.arxiv:
        assert paper.year == 2000 + int(paper.arxiv[:2])


def test_what_works_has_code_a_reproduction_and_a_docs_row():
    lacking = {paper.slug: evidence_missing(paper) for paper in catalog.find(status="works")}
    assert not {slug: missing for slug, missing in lacking.items() if missing}


def test_a_false_claim_of_working_would_be_noticed():
    boast = replace(
        catalog.get("sparseland"), slug="no-such", status="works", entry="gossamer.errors:Nothing"
    )
    assert evidence_missing(boast) == ["entry", "reproduction", "docs row", "committed evidence"]


def test_read_returns_the_fields_as_written(read):
    (paper,) = read(ENTRY)
    assert paper == Paper(
        slug="some-method",
        title="Some Method: a Title",
        arxiv="2406.09827",
        year=2024,
        wing="attention",
        score="magnitude",
        budget="top-k",
        pattern="block",
        schedule="once",
        kernel="none",
        summary="Keeps the large ones.",
        entry="",
        status="planned",
    )
    with pytest.raises(AttributeError):
        paper.status = "works"


@pytest.mark.parametrize("field", list(Paper.__dataclass_fields__))
def test_a_missing_field_is_refused(read, field: str):
    text, count = re.subn(rf"(?m)^{field} = .*\n", "", ENTRY)
    assert count == 1
    named = "entry 1" if field == "slug" else "some-method"
    with pytest.raises(FormatError, match=rf"{named}.*expected {field}, got no such field"):
        read(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('wing = "attention"', 'wing = "kites"', r"wing: expected one of attention, .*'kites'"),
        ('status = "planned"', 'status = "soon"', r"status: expected one of .*'soon'"),
        ('status = "planned"', 'status = "works"', r"entry: expected .* an entry that works"),
        ("year = 2024", 'year = "2024"', r"year: expected int, got '2024'"),
        ("year = 2024", "year = true", r"year: expected int, got True"),
        ("year = 2024", "year = 24", r"year: expected four digits, got 24"),
        ('title = "Some Method: a Title"', "title = 7", r"title: expected str, got 7"),
        ('score = "magnitude"', 'score = ["magnitude"]', r"score: expected str, got \['magni"),
        ('score = "magnitude"', 'score = ""', r"score: expected one line .*got ''"),
        ("large ones.", "large ones. ", r"summary: expected one line without stray"),
        ("large ones.", "large\\nones.", r"summary: expected one line without stray"),
        ("large ones.", "large ones." + "x" * 150, r"summary: expected <= 160 .*got 171"),
        ('"some-method"', '"Some Method"', r"slug: expected lower-case words"),
        ('"some-method"', '"some--method"', r"slug: expected lower-case words"),
        ('"2406.09827"', '"arXiv:2406.09827"', r"arxiv: expected an arXiv id"),
        ('entry = ""', 'entry = "gossamer.attention.HiP"', r"entry: expected \"gossamer.mod"),
        ('entry = ""', 'entry = "os:system"', r"entry: expected \"gossamer.mod"),
        ('entry = ""', 'entry = ""\nvenue = "x"', r"expected the fields slug, .*got venue"),
    ],
)
def test_a_wrong_field_is_refused(read, old: str, new: str, message: str):
    assert ENTRY.count(old) == 1
    with pytest.raises(FormatError, match=rf"papers\.toml: entry 1 \(.*\): {message}"):
        read(ENTRY.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + ENTRY, r"entry 2 \('some-method'\): slug: expected each slug once"),
        ("paper = [1]", r"entry 1: expected a table, got 1"),
        ("paper = 1", r"expected \[\[paper\]\] tables"),
        ("", r"expected \[\[paper\]\] tables"),
        ("[meta]\n" + ENTRY, r"expected \[\[paper\]\] tables and nothing else"),
        (ENTRY + '\nslug = "again"', r"expected UTF-8 TOML"),
        (ENTRY + "=", r"expected UTF-8 TOML"),
        (ENTRY.encode() + b"# \xff", r"expected UTF-8 TOML"),
        ("x = " + "[" * 50_000, r"expected UTF-8 TOML"),
    ],
)
def test_a_broken_file_is_refused(read, text: str | bytes, message: str):
    with pytest.raises(FormatError, match=message):
        read(text)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_gives_papers_or_a_format_error(tmp_path_factory, data):
    content = bytearray((ENTRY + ENTRY.replace("some", "other")).encode())
    end = data.draw(st.integers(0, len(content)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_bytes(content[:end])
    try:
        found = catalog.read(path)
    except FormatError as error:
        assert error.path == path
    else:
        assert all(type(paper.year) is int and paper.wing in catalog.WINGS for paper in found)


def test_find_without_words_returns_everything():
    assert catalog.find() == catalog.find([]) == catalog.find("") == catalog.papers()


@pytest.mark.parametrize("field", "slug title score budget pattern schedule kernel summary".split())
def test_find_looks_into(field: str):
    for paper in catalog.papers():
        assert paper in catalog.find([getattr(paper, field).swapcase()])


def test_find_needs_every_word():
    def hits(*words: str) -> set[str]:
        return {paper.slug for paper in catalog.find(words)}

    assert hits("n:m") > hits("n:m", "backward") == {"bdwp"}
    assert hits("n:m", "voxel") == set()
    assert hits("n:m") & hits("training") == hits("training", "N:M")


def test_find_splits_a_plain_string_and_keeps_phrases_of_a_list():
    assert catalog.find("matmul n:m") == catalog.find(["n:m", "matmul"]) != ()
    assert catalog.find(["matmul n:m"]) == ()


def test_find_reads_typographic_letters_as_plain_ones():
    assert catalog.find("D2iT:") == (catalog.get("d2it"),)
    assert catalog.find("beyond L1") == (catalog.get("v1-sparse-coding"),)


@pytest.mark.parametrize("wing", catalog.WINGS)
def test_find_filters_by_wing(wing: str):
    assert [paper.slug for paper in catalog.find(wing=wing)] == SLUGS[wing].split()


def test_find_filters_by_status():
    split = [set(catalog.find(status=status)) for status in catalog.STATUSES]
    assert set.union(*split) == set(catalog.papers())
    assert not set.intersection(*split)
    assert all(paper.status == "planned" for paper in split[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wing": "kites"}, r"wing: expected one of attention, .*catalog, got 'kites'"),
        ({"wing": "Attention"}, r"wing: expected one of .* got 'Attention'"),
        ({"wing": ""}, r"wing: expected one of .* got ''"),
        ({"status": "done"}, r"status: expected one of planned, works, got 'done'"),
    ],
)
def test_find_refuses_unknown_filters(options: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        catalog.find("attention", **options)


def test_get_returns_the_paper_of_each_slug():
    assert [catalog.get(paper.slug) for paper in catalog.papers()] == list(catalog.papers())


@pytest.mark.parametrize(
    ("slug", "hint"),
    [
        ("hip-atention", "'hip-attention'"),
        ("HiP-Attention", "'hip-attention'"),
        ("hip", "'hip-attention'"),
        ("hip_attention", "'hip-attention'"),
        ("tokenselect", "'token-select'"),
        ("srste", "'sr-ste'"),
        ("qqqqqq", "`gossamer papers`"),
        ("", "`gossamer papers`"),
    ],
)
def test_get_suggests_the_nearest(slug: str, hint: str):
    with pytest.raises(ValueError, match=rf"slug: .*got {slug!r}, try {hint}"):
        catalog.get(slug)


def test_resolve_imports_the_entry():
    paper = replace(catalog.get("sparseland"), entry="gossamer.errors:FormatError")
    assert catalog.resolve(paper) is FormatError


def test_resolve_refuses_a_paper_without_an_entry():
    paper = replace(catalog.get("sparseland"), entry="")
    with pytest.raises(ValueError, match="got 'sparseland' which is"):
        catalog.resolve(paper)
