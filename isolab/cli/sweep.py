"""The command ``isolab sweep``: a sweep from words, typed by the fields of RunConfig."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
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
            envvar="ISOLAB_RUNS", metavar="PATH", help="Where runs are kept. Default: as ever."
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

    Ends with 2, before anything runs, where a wish is wrong; with 1 where training or storing
    failed; with 130 after Ctrl-C.
    """
    try:
        _run(values or [], axes or [], store, scheduler, resource or [], memory_bytes, processes)
    except (ValueError, ImportError) as error:
        _fail(error, 2)
    except (OSError, MemoryError, RuntimeError) as error:  # of the store or the cluster, too
        _fail(error, 1)
    except KeyboardInterrupt as error:
        _fail(error, 130)


def _run(
    values: Sequence[str],
    axes: Sequence[str],
    store: str | None,
    scheduler: str | None,
    resources: Sequence[str],
    memory_bytes: int | None,
    processes: int | None,
) -> None:
    given = dict(_setting(text, _one) for text in values)
    varied = [_setting(text, _several) for text in axes]
    for names in ([text.partition("=")[0] for text in values], [name for name, _ in varied]):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice")
    needs = dict(map(_resource, resources))

    from isolab.sweeps.sweep import Sweep, run
    from isolab.training.config import RunConfig

    grid = Sweep(RunConfig(**given), **dict(varied))
    table = run(
        grid,
        store or "default",
        scheduler=scheduler,
        resources=needs or None,
        memory_bytes=memory_bytes,
        processes=processes,
    )
    best = table.sort("final_validation_loss").row(0, named=True)
    where = ", ".join(f"{name}={best[name]}" for name, _ in varied)
    typer.echo(
        f"lowest final validation loss of {table.height}: {best['final_validation_loss']:.4f}"
        f"{f' at {where}' if where else ''}; `isolab runs list` shows them all"
    )


def _setting(text: str, read: Callable[[str, str, str], Any]) -> tuple[str, Any]:
    """Returns a field's name and what ``read`` makes of (name, kind, text after the sign)."""
    import dataclasses

    from isolab.training.config import RunConfig

    kinds = {field.name: str(field.type) for field in dataclasses.fields(RunConfig)}
    name, sign, value = text.partition("=")
    if not sign or not value:
        raise ValueError(f"{text!r} is not NAME=VALUE, such as width=32")
    if name not in kinds:
        raise ValueError(f"unknown field {name!r}; allowed: {list(kinds)}")
    return name, read(name, kinds[name], value)


def _several(name: str, kind: str, text: str) -> list[Any]:
    if not text.startswith("["):
        return [_one(name, kind, part) for part in text.split(",")]
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"{name}={text} is no list in Python's form, such as ['a', 'b']") from None
    return list(listed)


def _one(name: str, kind: str, text: str) -> Any:
    """Reads a value as a field's kind: "int", "float | None" and so on."""
    word = text.strip().lower()
    optional, kind = kind.endswith("| None"), kind.removesuffix(" | None")
    if optional and word == "none":
        return None
    allowed = {
        "int": "a whole number",
        "float": "a number, or a power such as 2**-7",
        "bool": "true or false",
    }
    try:
        if kind == "bool":
            return TRUTH[word]
        if kind == "int":
            return int(word)
        if kind == "float":
            base, power, exponent = word.partition("**")
            return float(base) ** float(exponent) if power else float(base)
    except (ValueError, KeyError, ArithmeticError):
        also = ", or none" if optional else ""
        raise ValueError(f"{name} is {text!r}; allowed: {allowed[kind]}{also}") from None
    return text


def _resource(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"--resource {text!r} is not NAME=NUMBER, such as GPU=1") from None


def _fail(error: BaseException, code: int) -> None:
    typer.echo(f"isolab sweep: {error}", err=True)
    raise typer.Exit(code) from None
