"""MkDocs' hooks: the generated pages join the hand-written ones. ``mkdocs.yml`` names this file."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gossamer.site.pages import Site

ASSETS = Path(__file__).parent / "assets"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the menu, which follows the catalogue."""
    config.nav = _site(config).navigation()
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages; a hand-written page of the same name is part of its own."""
    for name, text in _site(config).pages().items():
        if written := files.get_file_from_path(name):
            files.remove(written)
        files.append(File.generated(config, name, content=text))
    for asset in sorted(ASSETS.iterdir()):
        files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    return files


def _site(config: MkDocsConfig) -> Site:
    return Site(Path(config.config_file_path).parent)
