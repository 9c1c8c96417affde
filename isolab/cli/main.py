"""The command ``isolab``."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from isolab.cli import runs
from isolab.cli.sweep import sweep

app = typer.Typer(
    name="isolab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(runs.app, name="runs", help="List, export and prune the runs that are stored.")
app.command("sweep")(sweep)


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


@app.command()
def workbook(
    notebooks: Annotated[
        list[Path] | None,
        typer.Argument(help="Default: the numbered ones in notebooks/, in order."),
    ] = None,
    preset: Annotated[str, typer.Option(help="smoke, laptop or full.")] = "laptop",
    out: Annotated[
        Path, typer.Option(help="Folder for the executed notebooks and their pages.")
    ] = Path("build/workbook"),
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", help="NAME=VALUE, a Python literal or a word; may be repeated."
        ),
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(min=1, help="Seconds that one cell may take.")
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(min=1, help="Notebooks run at the same time; chapter 1 times steps: 1 then."),
    ] = 1,
) -> None:
    """Run notebooks by papermill and export each as an HTML page.

    Ends with 1 where a notebook failed (the others still run), and with 2, before anything runs,
    where the preset, a path or a parameter is wrong.
    """
    from isolab.cli import workbook as book

    try:
        parameters = {"preset": preset, **dict(map(_name_and_value, parameter or ()))}
        paths = notebooks or book.chapters(Path("notebooks"))
        outcomes = book.run(paths, out, parameters, timeout, typer.echo, at_once)
    except ValueError as error:
        typer.echo(f"isolab workbook: {error}", err=True)
        raise typer.Exit(2) from None
    failed = [outcome.executed.stem for outcome in outcomes if outcome.error is not None]
    if failed:
        typer.echo(f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _name_and_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"parameter {text!r} is not NAME=VALUE, such as seeds=[0,1]")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
