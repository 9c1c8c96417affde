"""The command ``isolab sweep``: a sweep from words, typed by the fields of RunConfig."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from typing import Annotated, Any

import typer

from isolab.cli.options import one_line_errors, pairs

WORDS = {
    "none": None, "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False
}  # fmt: skip


@one_line_errors("isolab sweep")
def sweep(
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="NAME=VALUE",
            help="A field of isolab.RunConfig, such as width=32; may be repeated.",
        ),
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            "-a",
            metavar="NAME=V,V,...",
            help="A field that varies, such as learning_rate=2**-7,2**-6 (or, where values hold"
            " commas, a list in Python's form); axes are crossed. May be repeated.",
        ),
    ] = None,
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
    fixed, varied = pairs("--set", values, "width=32"), pairs("--axis", axes, "seed=0,1")
    resources = pairs("--resource", resource, "GPU=1", float)
    from isolab.sweeps.sweep import Sweep, run
    from isolab.training.config import RunConfig

    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name in fixed | varied:
        if name not in defaults:
            raise ValueError(f"unknown field {name!r}; allowed: {list(defaults)}")
    base = RunConfig(**{name: _value(text, defaults[name]) for name, text in fixed.items()})
    grid = Sweep(base, **{name: _values(text, defaults[name]) for name, text in varied.items()})
    table = run(
        grid,
        store or "default",
        scheduler=scheduler,
        resources=resources or None,
        memory_bytes=memory_bytes,
        processes=processes,
    )
    best = table.sort("final_validation_loss").row(0, named=True)
    where = ", ".join(f"{name}={best[name]}" for name in varied)
    typer.echo(
        f"lowest final validation loss of {table.height}: {best['final_validation_loss']:.4f}"
        f"{f' at {where}' if where else ''}; `isolab runs list` shows them all"
    )


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
    if isinstance(default, bool) or (default is None and word == "none"):
        return WORDS.get(word, text)
    if isinstance(default, str):
        return text
    with contextlib.suppress(ValueError, ArithmeticError):
        if isinstance(default, int):
            return int(word)
        base, _, exponent = word.partition("**")
        return float(base) ** float(exponent or 1)
    return text
