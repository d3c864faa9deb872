"""Docstrings become Markdown that says the same, and nothing that Markdown would misread."""

from dataclasses import dataclass

import markdown as library
import pytest

from gossamer.site.docstrings import markdown, reference, summary

DOCSTRING = """Keep what matters.

    Scores are |w| * g_k, h <- L_H^+ h and ``a * b``; "Title" (arXiv 2406.09827).

    Parameters
    ----------
    x : Tensor [B, *, n]
        Any `shape`,
        on two lines.
    y, z
        No type.

    Returns
    -------
    Tensor [n]

    Raises
    ------
    ValueError
        If x < 0.

    Examples
    --------
    Twice:

    >>> 1 + 1
    2
    """

NAMELESS = object()


def html(text: str) -> str:
    return library.markdown(text, extensions=["attr_list", "def_list", "fenced_code"])


def test_every_section_arrives():
    page = html(markdown(DOCSTRING))
    for title in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"<strong>{title}</strong>" in page
    assert page.count("<dt>") == 4 and page.count("<dd>") == 4
    assert '<dt><code class="gs-name">x</code> Tensor [B, *, n]</dt>' in page
    assert '<dt><code class="gs-name">y, z</code></dt>' in page
    assert "<dt><code>Tensor [n]</code></dt>" in page
    assert "Any <code>shape</code>,\non two lines." in page
    assert "If x &lt; 0." in page
    assert "<p>Twice:</p>" in page and "&gt;&gt;&gt; 1 + 1\n2" in page


def test_prose_keeps_its_symbols_and_code_stays_code():
    page = html(markdown(DOCSTRING))
    assert "|w| * g_k, h &lt;- L_H^+ h and <code>a * b</code>" in page
    assert '<a href="https://arxiv.org/abs/2406.09827">arXiv 2406.09827</a>' in page
    assert "<em>" not in page


@pytest.mark.parametrize("text", ["a < b > c", "2 * 3 * 4", "_a_ and __b__", "<script>x</script>"])
def test_no_text_becomes_markup(text: str):
    page = html(markdown(text))
    assert not any(f"<{tag}" in page for tag in ("em", "strong", "script", "b>"))


@dataclass(frozen=True)
class Example:
    """One example."""

    a_rather_long_name: int = 1
    another_rather_long_name: str = "text"
    function: object = len

    def shown(self, value: int, *, strict: bool = True) -> int:
        """Return it."""
        return value if strict else 0

    @property
    def size(self) -> int:
        """Its size."""
        return 0

    def _hidden(self) -> None:
        """Not for readers."""

    def silent(self) -> None: ...


def test_a_class_has_its_call_and_its_documented_members():
    text = reference("gossamer.x.Example", Example)
    assert "gossamer.x.Example(\n    a_rather_long_name=1,\n" in text
    assert "shown(value, *, strict=True)" in text
    assert "### `size` { #Example.size }" in text
    assert "_hidden" not in text and "silent" not in text
    assert "shown" not in reference("gossamer.x.Example", Example, level=0)


def test_summaries_are_one_line():
    assert summary(Example) == "One example."
    assert summary(3) == ""


def unnamed(key=NAMELESS):
    return key


def test_defaults_without_a_name_have_no_address():
    assert "0x" in repr(NAMELESS)
    assert "0x" not in reference("unnamed", unnamed)
