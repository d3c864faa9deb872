"""Every cell is worded once; slower is said to be slower; nothing missing is invented."""

import io

import pytest
from rich.console import Console

from gossamer.inference import LayerReport
from gossamer.report.tables import (
    HEADINGS,
    compare_rows,
    compare_table,
    decode_limit,
    evidence_table,
    layers_table,
    perplexity_change,
    title,
)
from gossamer.report.words import (
    MISSING,
    change,
    divergence,
    figure,
    milliseconds,
    perplexity,
    seconds,
    share,
    size,
    speedup,
    superscript,
)
from gossamer.reproduce import Claim, Evidence


def text(table, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("word", "value", "expected"),
    [
        (seconds, 41.234, "41.2 s"),
        (seconds, 1.0, "1.00 s"),
        (seconds, 0.0421, "42.1 ms"),
        (milliseconds, 182.4, "182 ms"),
        (milliseconds, 9.876, "9.88 ms"),
        (speedup, 0.84, "0.84x"),
        (speedup, 13.52, "13.5x"),
        (size, 512, "512 B"),
        (size, 360 * 2**20, "360 MiB"),
        (size, 2**30, "1.00 GiB"),
        (size, 5 * 2**40, "5120 GiB"),
        (share, 1, "100 %"),
        (share, 0, "0 %"),
        (share, 0.118, "11.8 %"),
        (share, 0.1, "10 %"),
        (share, 0.0042, "0.42 %"),
        (share, 1e-7, "<0.01 %"),
        (share, 0.99999, ">99.9 %"),
        (change, 0.0079, "+0.8 %"),
        (change, -0.012, "-1.2 %"),
        (change, -1e-9, "0 %"),
        (change, 25.0, "+2500 %"),
        (perplexity, 14.816, "14.82"),
        (perplexity, 12345.6, "1.23e+04"),
        (divergence, 0.0, "0"),
        (divergence, 2e-9, "<0.001"),
        (divergence, 0.1312, "0.131"),
        (figure, 0.93456, "0.9346"),
        (figure, "8x", "8x"),
    ],
)
def test_units(word, value, expected):
    assert word(value) == expected
    assert word(None) == MISSING


def test_the_decode_limit_is_said_where_it_is_known():
    stock = {"method": "stock", "decode_floor_ms": 40.0, "weight_bytes_read_per_token": 2**29}
    document = {
        "rows": [stock, {"method": "dense", "decode_floor_ms": 10.0}],
        "peak_rss_bytes": 3 * 2**30,
    }
    limit = decode_limit(document)
    assert limit == (
        "with an empty cache a token takes 40.0 ms of stock, which reads 512 MiB of weights; "
        "10.0 ms of dense"
    )
    words = " ".join(text(compare_table(document)).split())
    assert limit in words and "3.00 GiB" in words
    assert decode_limit({"rows": [{"method": "stock", "decode_ms_per_token": 100.0}]}) is None


def test_superscript():
    assert superscript(120) == "¹²⁰"


def test_perplexity_is_compared_with_dense():
    assert perplexity_change({"perplexity": 16.5}, {"perplexity": 15.0}) == pytest.approx(0.1)
    assert perplexity_change({"perplexity": 16.5}, {}) is None
    assert perplexity_change({}, {"perplexity": 15.0}) is None


def test_cells_stand_under_their_headings(document):
    rows, _ = compare_rows(document)
    cells = [dict(zip(range(len(HEADINGS)), row.cells, strict=True)) for row in rows]
    hip = [cells[3][index].text for index in range(len(HEADINGS))]
    assert hip == [
        *("25.0 s", "1.60x", "24.0 ms", "7.50x", "360 MiB", "45.0 MiB", "14.2 %", "3.7 %"),
        *("15.30", "+2.0 %", "0.018", "95.3 %", "8/8"),
    ]


def test_what_was_not_measured_is_a_dash(document):
    rows, _ = compare_rows(document)
    assert {cell.text for cell in rows[-1].cells} == {MISSING}


def test_slower_than_stock_and_lost_passkeys_are_marked(document):
    rows, _ = compare_rows(document)
    tones = {
        (row.method, heading): cell.tone
        for row in rows
        for heading, cell in zip(HEADINGS, row.cells, strict=True)
        if cell.tone == "worse"
    }
    assert set(tones) == {("token-select", "vs stock"), ("streaming", "Keys")}


def test_a_sparse_row_slower_than_dense_says_so(document):
    rows, footnotes = compare_rows(document)
    assert footnotes == ("sinks", "slower than dense at prefill (0.72x)")
    assert {row.method: row.notes for row in rows if row.notes} == {
        "streaming": (1,),
        "token-select": (1, 2),
    }
    document["rows"][3]["decode_ms_per_token"] = 60.0
    assert "slower than dense at decode (0.50x)" in compare_rows(document)[1]


def test_stock_and_dense_are_never_called_slow(document):
    document["rows"][0]["prefill_seconds"] = 100.0
    document["rows"][0]["notes"] = "one note as plain text"
    rows, footnotes = compare_rows(document)
    assert footnotes[0] == "one note as plain text"
    assert rows[0].notes == (1,)
    assert rows[1].notes == ()


def test_the_table_fits_80_columns_whole(document):
    printed = text(compare_table(document))
    assert "…" not in printed
    for words in (
        "example-model · 8,192 tokens · float32 · cpu",
        "token-select¹ ²",
        "0.80x",
        "2/8",
    ):
        assert words in printed
    assert "² slower than dense at prefill (0.72x)" in printed


def test_an_incomplete_comparison_says_so(document):
    document["complete"] = False
    assert title(document).endswith("incomplete")
    assert "incomplete" in text(compare_table(document))


def test_names_are_not_markup(document):
    document["rows"][3]["method"] = "[red]x[/red]"
    assert "[red]x[/red]" in text(compare_table(document), width=120)


def test_evidence_shows_paper_ours_criterion_and_verdict():
    claims = (
        Claim("half the work", 0.5, "Table 1", 1.0, 0.48, "ours <= 0.5", True),
        Claim("twice as fast", "2x", "Figure 2", None, 1.1, "ours >= 2", False),
    )
    found = Evidence("tiny", "quick", 0, "cpu", 1.5, claims, 2, "Example CPU", {})
    printed = text(evidence_table(found))
    for words in ("tiny: 1 of 2 claims hold", "Figure 2", "0.48", "ours >= 2", "Example CPU"):
        assert words in printed
    lines = printed.splitlines()
    assert next(line for line in lines if "half the work" in line).rstrip().endswith("yes")
    assert next(line for line in lines if "twice as fast" in line).rstrip().endswith("no")


def test_layers_say_their_kernel_and_both_times():
    layers = [
        LayerReport("1.conv", (40, 20, 1, 1), (1, 40, 7, 7), 0.15, "spmm", 5880, 0.25, 1.0),
        LayerReport("[b]", (40, 1, 3, 3), (1, 40, 7, 7), 1.0, "depthwise", 17640, None, 2.0),
    ]
    first, second, last = text(layers_table(layers), width=100).splitlines()[-3:]
    words = ["1.conv", "40x20x1x1", "1x40x7x7", "15", "%", "spmm", "0.25", "ms", "1.00", "ms"]
    assert first.split() == [*words, "4.00x"]
    assert second.split()[0] == "[b]" and second.split().count(MISSING) == 2
    assert last.strip() == "spmm 1, depthwise 1; 0.0 million multiplications"
