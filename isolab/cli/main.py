"""The command ``isolab``."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from isolab.cli import runs
from isolab.cli.sweep import sweep
from isolab.cli.workbook import workbook

app = typer.Typer(
    name="isolab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(runs.app, name="runs", help="List, export and prune the runs that are stored.")
app.command("sweep")(sweep)
app.command("workbook")(workbook)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isolab {version('isolab')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """A Jupyter workbook of optimizers and parameterizations on a tiny Transformer, in JAX."""
