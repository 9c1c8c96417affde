"""The command ``isolab sweep``: a sweep from words, typed by the fields of RunConfig."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="A field of isolab.RunConfig, such as width=32; may be repeated.",
    ),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        "-a",
        metavar="NAME=V,V,...",
        help="A field that varies, such as learning_rate=2**-7,2**-6 (or, where values hold commas,"
        " a list in Python's form); axes are crossed. May be repeated.",
    ),
]
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def sweep(
    values: Values = None,
    axes: Axes = None,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="ISOLAB_RUNS", metavar="PATH", help="Where runs are stored, as in `isolab runs`."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a dask scheduler, such as tcp://10.0.0.1:8786."),
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="What a batch takes of a worker, such as GPU=1."),
    ] = None,
    memory_bytes: Annotated[
        int | None, typer.Option(min=1, help="What training may take on each device.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Processes of this machine that train batches at the same time, each on its share"
            " of the cores. Default: one. On a CPU more of them train small models faster.",
        ),
    ] = None,
) -> None:
    """Train a grid of runs and store them; the same command goes on where it was stopped.

    Ends with 2, before anything runs, where an argument is wrong; with 1 where training or storing
    failed; with 130 after Ctrl-C.
    """
    try:
        _run(
            values or [],
            axes or [],
            store,
            scheduler=scheduler,
            resources=dict(map(_resource, resource or [])) or None,
            memory_bytes=memory_bytes,
            processes=processes,
        )
    except (
        ValueError,
        ImportError,
        OSError,
        MemoryError,
        RuntimeError,
        KeyboardInterrupt,
    ) as error:
        typer.echo(f"isolab sweep: {error}", err=True)
        wrong = 2 if isinstance(error, ValueError | ImportError) else 1
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else wrong) from None


def _run(values: Sequence[str], axes: Sequence[str], store: str | None, **options: Any) -> None:
    """Trains the grid and prints its best run."""
    from isolab.sweeps.sweep import Sweep, run
    from isolab.training.config import RunConfig

    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    given = {name: _value(text, defaults[name]) for name, text in _settings(values, defaults)}
    varied = {name: _values(text, defaults[name]) for name, text in _settings(axes, defaults)}
    table = run(Sweep(RunConfig(**given), **varied), store or "default", **options)
    best = table.sort("final_validation_loss").row(0, named=True)
    where = ", ".join(f"{name}={best[name]}" for name in varied)
    typer.echo(
        f"lowest final validation loss of {table.height}: {best['final_validation_loss']:.4f}"
        f"{f' at {where}' if where else ''}; `isolab runs list` shows them all"
    )


def _settings(texts: Sequence[str], fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each field's name and the text of its value."""
    names = set[str]()
    for text in texts:
        name, _, value = text.partition("=")
        if not value:
            raise ValueError(f"{text!r} is not NAME=VALUE, such as width=32")
        if name not in fields:
            raise ValueError(f"unknown field {name!r}; allowed: {list(fields)}")
        if name in names:
            raise ValueError(f"{name} is given twice")
        names.add(name)
        yield name, value


def _values(text: str, default: Any) -> list[Any]:
    if not text.startswith("["):
        return [_value(part, default) for part in text.split(",")]
    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        raise ValueError(f"{text} is no list in Python's form, such as ['a', 'b']") from None


def _value(text: str, default: Any) -> Any:
    """Reads a value as a field's default is typed; RunConfig refuses a wrong text."""
    word = text.strip().lower()
    if isinstance(default, str):
        return text
    with contextlib.suppress(ValueError, KeyError, ArithmeticError):
        if default is None and word == "none":
            return None
        if isinstance(default, bool):
            return TRUTH[word]
        if isinstance(default, int):
            return int(word)
        base, power, exponent = word.partition("**")
        return float(base) ** float(exponent) if power else float(base)
    return text


def _resource(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"--resource {text!r} is not NAME=NUMBER, such as GPU=1") from None
