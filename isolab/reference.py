"""Reference results: the sweeps whose runs are committed, so that a chapter opens with real charts.

``data/reference/<name>/`` of a checkout is a store like any other (:mod:`isolab.store`), with
``provenance.json`` beside its rows.  ``python -m isolab.reference <name>`` trains what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from isolab.presets import transfer_reference
from isolab.store import Store
from isolab.sweep import Sweep, run

SWEEPS: dict[str, Callable[[], Sweep]] = {"lr_transfer": transfer_reference}
"""What the reference results of each chapter hold."""


def folder(name: str) -> Path:
    """Returns where reference results are kept.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown reference results {name!r}; known: {sorted(SWEEPS)}")
    return Path(__file__).resolve().parents[1] / "data" / "reference" / name


def load(name: str) -> pl.DataFrame:
    """Returns the committed runs, a row a run, with the columns of :func:`isolab.run`.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: an installed package without the repository's data.
    """
    place = folder(name)
    if not any(place.glob("*.parquet")):
        raise FileNotFoundError(
            f"no reference results in {place}: they are part of the repository, not of the"
            " installed package; clone it, or train them with"
            f" python -m isolab.reference {name}"
        )
    return Store(place).runs()


def beside(reference: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """Returns both frames as one, with a column ``origin``: "reference" or "yours"."""
    named = [
        reference.with_columns(pl.lit("reference").alias("origin")),
        own.with_columns(pl.lit("yours").alias("origin")),
    ]
    return pl.concat(named, how="diagonal_relaxed")


def describe(name: str, runs: pl.DataFrame) -> dict[str, object]:
    """Returns what is written beside reference results: what varies, and where they came from."""
    fields = [field for field in runs.columns if field in SWEEPS[name]().configs[0].row()]
    varied = {
        field: values
        for field in fields
        if len(values := runs[field].unique().sort().to_list()) > 1
    }
    fixed = {field: runs[field][0] for field in fields if field not in varied}
    sources = ["isolab_version", "jax_version", "python_version", "device", "cpu", "git_revision",
               "corpus_fingerprint"]  # fmt: skip
    return {
        "name": name,
        "made_by": f"python -m isolab.reference {name}",
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
        "runs": len(runs),
        "diverged": int(runs["diverged"].sum()),
        "hours_of_training": round(float((runs["step_seconds"] * runs["steps"]).sum()) / 3600, 2),
        "varied": varied,
        "fixed": fixed,
        "sources": {source: runs[source].unique().sort().to_list() for source in sources},
    }


def main(
    name: Annotated[str, typer.Argument(help=f"Of {', '.join(SWEEPS)}.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that train at the same time.")
    ] = None,
) -> None:
    """Train the reference runs that are missing, and write their provenance."""
    place = folder(name)
    run(SWEEPS[name](), Store(place), processes=processes)
    finish(name)


def finish(name: str) -> None:
    """Merges the rows of reference results and writes their provenance beside them."""
    store = Store(folder(name))
    store.compact()
    text = json.dumps(describe(name, store.runs()), indent=1)
    (folder(name) / "provenance.json").write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
