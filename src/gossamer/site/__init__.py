"""The documentation site: hand-written pages from ``docs/``, and pages made from what is measured.

``mkdocs build`` calls `gossamer.site.hooks`, which adds the atlas, the table of evidence and one
page a wing and a method to the hand-written ones. Nothing is fetched, at build or at view time.
"""

from gossamer.site.docstrings import markdown, reference
from gossamer.site.pages import Site

__all__ = ["Site", "markdown", "reference"]
