"""Quotients are drawn where they belong, and only those that are quotients."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from gossamer.report import ratio_plots
from gossamer.report.ratio_plots import evidence_plots, figures_plots
from gossamer.reproduce import Claim, Evidence


def evidence(*figures):
    claims = tuple(
        Claim(f"claim {baseline}", None, "", baseline, ours, "", bool(index % 2))
        for index, (baseline, ours) in enumerate(figures)
    )
    return Evidence("tiny", "quick", 0, "cpu", 1.5, claims, 2, "Example CPU", {})


def ratio(name, value, bar=None, holds=None):
    return {"name": name, "ratio": value, "bar": bar, "holds": holds, "density": 0.25}


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of their SVG."""
    figures = []
    monkeypatch.setattr(ratio_plots, "svg", lambda figure, name: figures.append(figure) or "")
    return figures


def test_only_claims_that_compare_positive_numbers_are_drawn(drawn):
    others = [(None, 1.0), ("exact", 1.0), (1.0, "equal"), (0.0, 1.0), (1.0, -2.0), (1.0, math.inf)]
    (plot,) = evidence_plots(evidence(*others, (2.0, 3.0), (4.0, 1.0)))
    assert plot.description == (
        "Ours over the baseline: claim 7 1.5, does not hold; claim 8 0.25, holds."
    )
    points = [tuple(dots.get_offsets()[0]) for dots in drawn[0].axes[0].collections[1:]]
    assert points == [(1.5, 0), (0.25, 1)]
    low, high = drawn[0].axes[0].get_xlim()
    assert low < 0.25 and high > 1.5
    assert evidence_plots(evidence(*others)) == ()


def test_bars_run_from_one_to_the_ratio_and_marks_stand_at_the_bar(drawn):
    rows = [ratio("up", 4.0, 2.0, True), ratio("down", 0.5, 1.0, False), ratio("no bar", 9.0)]
    (plot,) = figures_plots({"figures": rows})
    assert plot.description == "Baseline over ours: up (25 %) 4.00; down (25 %) 0.50."
    axes = drawn[0].axes[0]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert spans == [(1.0, 4.0), (0.5, 1.0)]
    marks = [lines.get_segments()[0][0][0] for lines in axes.collections[1:]]
    assert marks == [2.0, 1.0]


def test_without_bars_every_ratio_is_drawn():
    (plot,) = figures_plots({"figures": [ratio("a", 1.0), ratio("b", 2.0), ratio("none", 0.0)]})
    assert plot.description == "Baseline over ours: a (25 %) 1.00; b (25 %) 2.00."
    assert figures_plots({"figures": []}) == ()


def test_a_plot_is_one_svg_element_with_escaped_names():
    (plot,) = figures_plots({"figures": [ratio("<script>$x^2$</script>", 2.0)]})
    assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
    assert ">&lt;script&gt;$x^2$&lt;/script&gt; (25 %)</text>" in plot.svg
