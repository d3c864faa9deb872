"""The command line: one module a job, assembled here."""

import logging
import sys

import typer

from gossamer.cli import bench, compare, lint, papers, prune, report, reproduce

app = typer.Typer(
    name="gossamer",
    help="Dynamic sparsity: make a model compute only what matters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench.bench)
app.command()(compare.compare)
app.command()(lint.lint)
app.command()(papers.papers)
app.command()(papers.show)
app.command()(prune.prune)
app.command()(reproduce.reproduce)
app.command()(report.report)


def main() -> None:
    """Run the command line: bad input is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="gossamer: %(message)s")
    logging.getLogger("gossamer").setLevel(logging.INFO)  # a model's first fetch takes a while
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"gossamer: error: {message}\n")
        sys.exit(2)
