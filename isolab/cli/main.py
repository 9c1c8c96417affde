"""The command ``isolab``."""

from __future__ import annotations

import ast
import contextlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isolab.cli.sweep import sweep

if TYPE_CHECKING:
    import polars as pl

    from isolab.results.store import Store

app = typer.Typer(
    name="isolab",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
runs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs, name="runs", help="List, export and prune the runs that are stored.")
app.command("sweep")(sweep)

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="optimizer=isoadam, 'width>=128', 'width in 64,128', 'learning_rate<2**-7', diverged,"
        " 'not diverged', 'stored_at<2026-01-31' (UTC), 'b1!=null'; where repeated, all hold.",
    ),
]
Columns = Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Columns to take.")]
Place = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="ISOLAB_RUNS",
        metavar="PATH",
        help="A folder or any fsspec address. Default: data/runs of a checkout, isolab/runs of the"
        " user's data folder for an installed package.",
    ),
]

OUTCOMES = (
    "key", "corpus_fingerprint", "curve_step", "curve_train_loss", "curve_validation_loss",
    "final_validation_loss", "final_train_loss", "diverged", "divergence_step", "step_seconds",
    "isolab_version", "jax_version", "device", "git_revision", "python_version", "cpu", "stored_at",
)  # fmt: skip
"""Columns that do not say what was run; listed only when asked for, but for those of ALWAYS."""

ALWAYS = ("steps", "seed", "final_validation_loss", "diverged")
OPTIMIZER_DEFAULTS = ("b1", "b2", "eps", "weight_decay")
ROUNDED = {"final_validation_loss": ".4f", "final_train_loss": ".4f", "step_seconds": ".4g"}
UNLIMITED = 1 << 20  # characters a line, where the output is no terminal


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
    failed = [chapter.name for chapter in outcomes if chapter.error is not None]
    if failed:
        typer.echo(f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@runs.command("list")
def list_runs(
    where: Where = None,
    columns: Columns = None,
    sort: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column to sort by. Default: as shown.")
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Highest first.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Rows to show; 0 for all.")] = 50,
    store: Place = None,
) -> None:
    """Show what varies among the runs that match, and how they ended."""
    from isolab.cli.filters import check_columns

    with _one_line_errors("list"):
        opened = _open(store)
        frame, _ = _select(opened, where)
        if not frame.height:
            return
        names = _names(columns) or _varying(frame)
        check_columns([*names, *([sort] if sort else [])], frame.columns)
        order = [sort] if sort else [name for name in names if not frame.schema[name].is_nested()]
        if sort and frame.schema[sort].is_nested():
            raise ValueError(f"cannot sort by {sort}, which holds a list in each run")
        if order:
            frame = frame.sort(order, descending=descending, nulls_last=True, maintain_order=True)
        typer.echo(_table(frame.head(limit or frame.height), names, may_drop=not columns))
        if 0 < limit < frame.height:
            _note(f"{limit} of {frame.height:,} runs; --limit 0 shows all")


@runs.command("export")
def export_runs(
    out: Annotated[str, typer.Argument(help="File or fsspec address, .csv or .parquet.")],
    where: Where = None,
    columns: Columns = None,
    store: Place = None,
) -> None:
    """Write the runs that match to a CSV or Parquet file.

    Curves are included. Ends with 1, and writes nothing, where no run matches.
    """
    from isolab.cli.filters import check_columns
    from isolab.results.store import STORED_AT, export

    with _one_line_errors("export"):
        frame, _ = _select(_open(store), where)
        if not frame.height:
            raise typer.Exit(1)
        names = _names(columns) or [name for name in frame.columns if name != STORED_AT]
        check_columns(names, frame.columns)
        export(frame.select(names), out)
        typer.echo(f"wrote {_count(frame.height)} to {out}")


@runs.command("prune")
def prune_runs(
    where: Where = None,
    everything: Annotated[bool, typer.Option("--all", help="Prune every run.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Place = None,
) -> None:
    """Show the runs that match, ask, and remove them for good."""
    with _one_line_errors("prune"):
        if bool(where) == everything:
            raise ValueError("say which runs: either --where CONDITION, or --all")
        opened = _open(store)
        doomed, stored = _select(opened, where)
        if not doomed.height:
            return
        names = _varying(doomed)
        shown = doomed.sort(names, nulls_last=True).head(10)
        typer.echo(_table(shown, names, may_drop=True))
        if doomed.height > 10:
            typer.echo(f"... and {doomed.height - 10:,} more")
        question = f"Prune {doomed.height:,} of {_count(stored)} in {opened.folder.path}?"
        if not yes and not typer.confirm(question):
            _note("nothing was pruned")
            raise typer.Exit(1)
        import polars as pl

        pruned = opened.prune(pl.col("key").is_in(doomed["key"].to_list()))
        typer.echo(f"pruned {_count(pruned)}; `isolab runs compact` frees the space")


@runs.command("compact")
def compact_store(store: Place = None) -> None:
    """Merge small files into one and free the space of pruned runs."""
    with _one_line_errors("compact"):
        opened = _open(store)
        before = _size(opened)
        opened.compact()
        typer.echo(f"{opened.folder.path}: {before} before, {_size(opened)} now")


@runs.command("damaged")
def damaged_files(store: Place = None) -> None:
    """Name the damaged files; ends with 1 where there are any.

    Damaged is a file whose content does not match its name; its runs count as missing.
    """
    from isolab.results.store import StoreWarning

    with _one_line_errors("damaged"):
        opened = _open(store)
        warnings.simplefilter("ignore", StoreWarning)  # it names the same files
        paths = opened.damaged()
        for path in paths:
            typer.echo(path)
        if paths:
            raise typer.Exit(1)
        _note(f"no damaged file in {opened.folder.path}")


@contextlib.contextmanager
def _one_line_errors(command: str) -> Iterator[None]:
    """Says errors and warnings in one line each; ends with 2 for a wrong wish, 1 for a failure."""
    from isolab.results.store import StoreError, StoreWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _note(f"isolab runs {command}: warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", StoreWarning)
        warnings.showwarning = show
        try:
            yield
        except BrokenPipeError:  # `| head` has seen enough
            raise
        except ValueError as error:
            _note(f"isolab runs {command}: {error}")
            raise typer.Exit(2) from None
        except (StoreError, OSError) as error:
            _note(f"isolab runs {command}: {error}")
            raise typer.Exit(1) from None


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _count(number: int) -> str:
    return f"{number:,} run{'' if number == 1 else 's'}"


def _size(store: Store) -> str:
    entries = store.folder.entries().values()
    megabytes = sum(entry.size for entry in entries) / 1e6
    return f"{megabytes:,.3f} MB in {len(entries):,} file{'' if len(entries) == 1 else 's'}"


def _names(columns: str | None) -> list[str]:
    return list(dict.fromkeys(map(str.strip, columns.split(",")))) if columns else []


def _open(path: str | None) -> Store:
    from isolab.results.folder import runs_folder
    from isolab.results.store import Store

    try:
        return Store(path or runs_folder())
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is missing
        raise ValueError(f"cannot open the store {path!r}: {error}") from error


def _select(store: Store, where: Sequence[str] | None) -> tuple[pl.DataFrame, int]:
    """Returns the runs that satisfy every condition, and how many are stored; tells of none."""
    from isolab.cli.filters import parse_filter
    from isolab.results.store import STORED_AT

    frame = store.runs()
    stored = frame.height
    if not stored:
        _note(f"no runs in {store.folder.path}")
        return frame, 0
    frame = store.runs(columns=[*frame.columns, STORED_AT])
    filters = [parse_filter(text, frame.schema) for text in where or ()]
    matching = frame.filter(True, *(condition.expression() for condition in filters))
    if not matching.height:
        reasons = [reason for f in filters if (reason := f.unmatched(frame)) is not None]
        _note("; ".join([f"none of {_count(stored)} in {store.folder.path} matches", *reasons]))
    return matching, stored


def _varying(frame: pl.DataFrame) -> list[str]:
    """Returns the columns of a config that vary, and those that are always of interest.

    The optimizer's hyperparameters are left out where they follow from its name.
    """
    names = [
        name
        for name in frame.columns
        if name not in (*OUTCOMES, *ALWAYS)
        and not frame.schema[name].is_nested()
        and frame[name].n_unique() > 1
    ]
    if "optimizer" in names:
        optimizers = frame["optimizer"].n_unique()
        names = [
            name
            for name in names
            if name not in OPTIMIZER_DEFAULTS
            or frame.select("optimizer", name).n_unique() > optimizers
        ]
    return names + [name for name in ALWAYS if name in frame.columns] or ["key"]


def _table(frame: pl.DataFrame, names: Sequence[str], may_drop: bool) -> str:
    """Returns a table as text, where it may within the terminal's width.

    Headings that are too wide break after underscores; then the last columns that are not in
    ALWAYS go, and are named below.
    """
    width = shutil.get_terminal_size(fallback=(UNLIMITED, 0)).columns
    cells = {name: _cells(frame[name]) for name in names}
    heads = {name: [name] for name in cells}
    if _width(heads, cells) > width:
        heads = {name: name.replace("_", "_ ").split() for name in cells}
    dropped: list[str] = []
    while may_drop and _width(heads, cells) > width and set(heads) - set(ALWAYS):
        dropped.insert(0, [name for name in heads if name not in ALWAYS][-1])
        del heads[dropped[0]], cells[dropped[0]]
    tall = max(map(len, heads.values()))
    columns = []
    for name, head in heads.items():
        column = [""] * (tall - len(head)) + head + cells[name]
        wide = max(map(len, column))
        right = frame.schema[name].is_numeric()
        columns.append([text.rjust(wide) if right else text.ljust(wide) for text in column])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    if dropped:
        lines.append(f"too wide for this terminal, see --columns: {', '.join(dropped)}")
    return "\n".join(lines)


def _width(heads: dict[str, list[str]], cells: dict[str, list[str]]) -> int:
    return sum(max(map(len, heads[name] + cells[name])) + 2 for name in heads) - 2


def _cells(series: pl.Series) -> list[str]:
    return ["-" if value is None else _cell(series.name, value) for value in series]


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # a setting in full, so that it can be typed into a condition
        short = format(value, ROUNDED.get(name, "g"))
        return short if name in ROUNDED or float(short) == value else repr(value)
    if hasattr(value, "isoformat"):
        return str(value.isoformat(timespec="seconds"))
    if hasattr(value, "__len__") and not isinstance(value, str):
        return f"{len(value)} values"
    return str(value)


def _name_and_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"parameter {text!r} is not NAME=VALUE, such as seeds=[0,1]")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
