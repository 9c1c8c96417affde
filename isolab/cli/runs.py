"""The commands ``isolab runs ...``: list, export and prune what is stored."""

from __future__ import annotations

import shutil
import warnings
from typing import Annotated

import polars as pl
import typer

from isolab.cli.conditions import check_columns, matching, stored_texts
from isolab.cli.options import one_line_errors
from isolab.results.folder import runs_folder
from isolab.results.store import STORED_AT, Store, StoreWarning, export

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="SQL: \"optimizer = 'isoadam' AND width >= 128\", 'width IN (64, 128)',"
        " 'learning_rate < POWER(2.0, -7)', 'NOT diverged', 'b1 IS NOT NULL',"
        " \"stored_at < DATE '2026-01-31'\" (UTC); where repeated, all hold.",
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
ROUNDED = ("final_validation_loss", "final_train_loss", "step_seconds")
UNLIMITED = 1 << 15  # characters a line, where the output is no terminal


@app.command("list")
@one_line_errors("isolab runs list")
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
    frame = _matching_runs(_open(store), where)
    names = _names(columns) or _varying(frame)
    check_columns([*names, *([sort] if sort else [])], frame.columns)
    if sort and frame.schema[sort].is_nested():
        raise ValueError(f"cannot sort by {sort}, which holds a list in each run")
    order = [sort] if sort else [name for name in names if not frame.schema[name].is_nested()]
    if order:
        frame = frame.sort(order, descending=descending, nulls_last=True, maintain_order=True)
    typer.echo(_table(frame.select(names).head(limit or frame.height), may_drop=not columns))
    if 0 < limit < frame.height:
        typer.echo(f"{limit} of {frame.height:,} runs; --limit 0 shows all", err=True)


@app.command("export")
@one_line_errors("isolab runs export")
def export_runs(
    out: Annotated[str, typer.Argument(help="File or fsspec address, .csv or .parquet.")],
    where: Where = None,
    columns: Columns = None,
    store: Place = None,
) -> None:
    """Write the runs that match to a CSV or Parquet file.

    Curves are included. Ends with 1, and writes nothing, where no run matches.
    """
    frame = _matching_runs(_open(store), where, 1)
    names = _names(columns) or [name for name in frame.columns if name != STORED_AT]
    check_columns(names, frame.columns)
    export(frame.select(names), out)
    typer.echo(f"wrote {_count(frame.height, 'run')} to {out}")


@app.command("prune")
@one_line_errors("isolab runs prune")
def prune_runs(
    where: Where = None,
    everything: Annotated[bool, typer.Option("--all", help="Prune every run.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Place = None,
) -> None:
    """Show the runs that match, ask, and remove them for good."""
    if bool(where) == everything:
        raise ValueError("say which runs: either --where CONDITION, or --all")
    opened = _open(store)
    frame = _matching_runs(opened, where)
    names = _varying(frame)
    typer.echo(_table(frame.select(names).sort(names, nulls_last=True).head(10), may_drop=True))
    if frame.height > 10:
        typer.echo(f"... and {frame.height - 10:,} more")
    question = f"Prune {frame.height:,} of {_count(len(opened.keys()), 'run')}"
    question += f" in {opened.folder.path}?"
    if not yes and not typer.confirm(question):
        typer.echo("nothing was pruned", err=True)
        raise typer.Exit(1)
    pruned = opened.prune(pl.col("key").is_in(frame["key"].to_list()))
    typer.echo(f"pruned {_count(pruned, 'run')}")


@app.command("compact")
@one_line_errors("isolab runs compact")
def compact_store(store: Place = None) -> None:
    """Merge small files into one."""
    opened = _open(store)
    before = _size(opened)
    opened.compact()
    typer.echo(f"{opened.folder.path}: {before} before, {_size(opened)} now")


@app.command("damaged")
@one_line_errors("isolab runs damaged")
def damaged_files(store: Place = None) -> None:
    """Name the damaged files; ends with 1 where there are any.

    Damaged is a file whose content does not match its name; its runs count as missing.
    """
    opened = _open(store)
    warnings.simplefilter("ignore", StoreWarning)  # it names the same files
    paths = opened.damaged()
    for path in paths:
        typer.echo(path)
    if paths:
        raise typer.Exit(1)
    typer.echo(f"no damaged file in {opened.folder.path}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(store: Store) -> str:
    sizes = [e.size for e in store.folder.entries().values() if not e.name.startswith(".")]
    return f"{sum(sizes) / 1e6:,.3f} MB in {_count(len(sizes), 'file')}"


def _names(columns: str | None) -> list[str]:
    return list(dict.fromkeys(map(str.strip, columns.split(",")))) if columns else []


def _open(path: str | None) -> Store:
    try:
        return Store(path or runs_folder())
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is missing
        raise ValueError(f"cannot open the store {path!r}: {error}") from error


def _matching_runs(store: Store, where: list[str] | None, code: int = 0) -> pl.DataFrame:
    """Returns the runs that satisfy every condition; where there are none, ends with a code."""
    frame = store.runs()
    if not frame.height:
        typer.echo(f"no runs in {store.folder.path}", err=True)
        raise typer.Exit(code)
    frame = store.runs(columns=[*frame.columns, STORED_AT])
    found = matching(frame, where or [])
    if not found.height:
        none = f"none of {_count(frame.height, 'run')} in {store.folder.path} matches"
        typer.echo("; ".join([none, *stored_texts(frame, where or [])]), err=True)
        raise typer.Exit(code)
    return found


def _varying(frame: pl.DataFrame) -> list[str]:
    """Returns the columns of a config that vary, and those that are always of interest.

    The optimizer's hyperparameters are left out where they follow from its name.
    """
    names = [name for name in frame.columns if name not in (*OUTCOMES, *ALWAYS)]
    names = [name for name in names if frame[name].n_unique() > 1]
    count = frame["optimizer"].n_unique() if "optimizer" in names else 0
    for name in OPTIMIZER_DEFAULTS:
        if name in names and frame.select("optimizer", name).n_unique() == count:
            names.remove(name)
    return names + [name for name in ALWAYS if name in frame.columns] or ["key"]


def _table(frame: pl.DataFrame, may_drop: bool) -> str:
    """Returns a table as text; where it may, without the last columns if the terminal is narrow.

    Settings are written in full, so that they can be typed into a condition.
    """
    width = shutil.get_terminal_size((UNLIMITED, 0)).columns
    shown, dropped = frame.with_columns(map(_shown, frame.iter_columns())), list[str]()
    if not may_drop:
        return _printed(shown, width)
    others = [name for name in frame.columns if name not in ALWAYS]
    while len((text := _printed(shown, UNLIMITED)).partition("\n")[0]) > width and others:
        dropped.insert(0, others.pop())
        shown = shown.drop(dropped[0])
    more = f"\ntoo wide for this terminal, see --columns: {', '.join(dropped)}"
    return text + more if dropped else text


def _shown(values: pl.Series) -> pl.Series:
    """Returns a column as it is printed."""
    if values.dtype.is_nested():
        return pl.Series(values.name, [f"{n} values" for n in values.list.len()])
    if values.dtype.is_temporal():
        return values.dt.truncate("1s")
    written = values.dtype.is_float() and values.name not in ROUNDED
    return values.cast(pl.String) if written else values


def _printed(frame: pl.DataFrame, width: int) -> str:
    """Returns a frame as polars prints it, folded to so many characters a line."""
    with pl.Config(
        tbl_formatting="NOTHING",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_cell_alignment="RIGHT",
        float_precision=4,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=width,
        fmt_str_lengths=UNLIMITED,
    ):
        return "\n".join(line[1:].rstrip() for line in str(frame).splitlines())
