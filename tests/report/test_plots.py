"""Plots are deterministic, share a page without clashing, and carry their values in words."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from gossamer.report import plots
from gossamer.report.drawing import PALETTE
from gossamer.report.plots import compare_plots

TITLES = ["Prefill", "Decode", "Quality against speed", "What was computed"]


def test_every_plot_is_one_svg_element_with_its_words(document):
    drawn = compare_plots(document)
    assert [plot.title for plot in drawn] == TITLES
    for plot in drawn:
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
        for method in ("stock", "dense", "hip", "token-select"):
            assert f">{method}</text>" in plot.svg
            assert method in plot.description
        assert "broken" not in plot.svg
    assert "token-select 50.0 s" in drawn[0].description
    assert "hip 14.2 %, search 3.7 %" in drawn[3].description


def test_the_same_document_gives_the_same_bytes(document):
    assert compare_plots(document) == compare_plots(document)


def test_the_readers_matplotlib_settings_neither_matter_nor_change(document):
    before = compare_plots(document)
    with matplotlib.rc_context({"font.size": 40, "axes.grid": True, "ytick.major.pad": 30}):
        mine = dict(matplotlib.rcParams)
        assert compare_plots(document) == before
        assert dict(matplotlib.rcParams) == mine


def test_bar_lengths_are_in_proportion(document):
    svg = compare_plots(document)[0].svg
    lengths = []
    for colour in ("stock", "dense", "sparse"):
        for path in re.findall(rf'd="([^"]+)"[^>]*fill: var\(--{colour}', svg):
            x = [float(number) for number in re.findall(r"[ML] ([\d.]+) ", path)]
            lengths.append(max(x) - min(x))
    seconds = [row["prefill_seconds"] for row in document["rows"] if row["prefill_seconds"]]
    assert len(lengths) == len(seconds)
    scale = seconds[0] / lengths[0]
    assert [length * scale for length in lengths] == pytest.approx(seconds, rel=1e-4)


def test_ids_are_unique_across_the_plots_and_every_reference_resolves(document):
    page = "".join(plot.svg for plot in compare_plots(document))
    ids = re.findall(r' id="([^"]+)"', page)
    references = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'href="#([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)
    assert references


def test_colours_and_type_come_from_the_page(document):
    for plot in compare_plots(document):
        assert "font-family" not in plot.svg
        assert "<style" not in plot.svg
        bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", plot.svg)
        assert not re.findall(r"#[0-9a-f]{6}\b", bare)
        assert not re.search(r"\d{4}-\d\d-\d\d|matplotlib v", plot.svg.lower())


def test_hostile_names_stay_text(document):
    document["rows"][3]["method"] = "<script>$x^2$</script>"
    for plot in compare_plots(document):
        assert "<script" not in plot.svg
        assert ">&lt;script&gt;$x^2$&lt;/script&gt;</text>" in plot.svg


def test_names_of_crowded_points_do_not_cover_each_other(document):
    for row in document["rows"][:-1]:
        row["perplexity"] = 15.0
        row["decode_speedup"] = 2.0
    document["rows"][0]["decode_speedup"] = 1.0
    svg = compare_plots(document)[2].svg
    places = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>(dense|streaming|hip|token-select)<', svg)
    assert len(places) >= 3
    assert len({place[:2] for place in places}) == len(places)


def test_points_lie_inside_the_axes_even_without_a_baseline_at_zero(document):
    document["rows"][0]["decode_speedup"] = document["rows"][1]["decode_speedup"] = None
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "svg", lambda figure, name: figures.append(figure) or "")
        compare_plots(document)
    axes = figures[2].axes[0]
    low, high = axes.get_ylim()
    heights = [points.get_offsets()[0][1] for points in axes.collections]
    assert len(heights) == 3
    assert all(low < height < high for height in heights)


@pytest.mark.parametrize("kept", [(), ("density",), ("prefill_seconds", "decode_ms_per_token")])
def test_plots_without_data_are_left_out(document, kept):
    rows = [{name: row.get(name) for name in ("method", *kept)} for row in document["rows"]]
    titles = [plot.title for plot in compare_plots({"rows": rows})]
    expected = {
        (): [],
        ("density",): ["What was computed"],
        ("prefill_seconds", "decode_ms_per_token"): ["Prefill", "Decode"],
    }
    assert titles == expected[kept]


def test_one_row_is_enough(document):
    document["rows"] = document["rows"][:1]
    assert [plot.title for plot in compare_plots(document)] == ["Prefill", "Decode", TITLES[3]]


def test_the_palette_can_be_told_apart_from_the_page():
    assert len(set(PALETTE.values())) == len(PALETTE)
