"""Reference results: what is committed, so that a chapter opens with real charts at once.

``data/reference/<name>/`` of a checkout holds the runs of a sweep, a store like any other
(:mod:`isolab.results.store`), or a table of measurements, one Parquet file; ``provenance.json`` is
beside
them.  ``python -m isolab.chapters.reference <name>`` trains the runs that are missing, or measures
anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from isolab.chapters import (
    epsilon_gradients,
    epsilon_reference,
    speedup_reference,
    speedup_step_time,
    transfer_alignment,
    transfer_coordinates,
    transfer_reference,
)
from isolab.results.provenance import PACKAGE, provenance
from isolab.results.store import Store
from isolab.sweeps.batch import rows_of as find_rows
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import with_later_fields

SWEEPS: dict[str, Callable[[], Sweep]] = {
    "speedup": speedup_reference,
    "lr_transfer": transfer_reference,
    "epsilon": lambda: epsilon_reference().sweep,
}
"""Reference results that are runs."""
TABLES: dict[str, Callable[[], pl.DataFrame]] = {
    "coordinates": transfer_coordinates,
    "alignment": transfer_alignment,
    "gradients": epsilon_gradients,
    "step_time": speedup_step_time,
}
"""Reference results that are measurements of some few steps or runs."""


def folder(name: str) -> Path:
    """Returns where reference results are kept.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SWEEPS | TABLES:
        raise ValueError(f"unknown reference results {name!r}; known: {sorted(SWEEPS | TABLES)}")
    return PACKAGE.parent / "data" / "reference" / name


def load(name: str) -> pl.DataFrame:
    """Returns the committed runs, with the columns of :func:`isolab.run`, or the table.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: an installed package without the repository's data.
    """
    place = folder(name)
    if not any(place.glob("*.parquet")):
        raise FileNotFoundError(
            f"no reference results in {place}: they are part of the repository, not of the"
            " installed package; clone it, or train them with"
            f" python -m isolab.chapters.reference {name}"
        )
    if name in TABLES:
        return pl.read_parquet(place / "table.parquet")
    return with_later_fields(Store(place).runs())


def rows_of(runs: pl.DataFrame, sweep: Sweep) -> pl.DataFrame:
    """Returns the runs of a frame that are a sweep's, a row for each config, in its order.

    Args:
        runs: a row per run, with ``key``, ``corpus`` and ``corpus_fingerprint``.
        sweep: what to look for; runs that the frame does not hold are left out.
    """
    trained_on = dict(runs.select("corpus", "corpus_fingerprint").unique().iter_rows())
    configs = [config for config in sweep if config.corpus in trained_on]
    return find_rows(configs, runs, trained_on)


def beside(reference: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """Returns both frames as one, with a column ``origin``: "reference" or "yours"."""
    named = [
        reference.with_columns(pl.lit("reference").alias("origin")),
        own.with_columns(pl.lit("yours").alias("origin")),
    ]
    return pl.concat(named, how="diagonal_relaxed")


def describe(name: str, frame: pl.DataFrame) -> dict[str, object]:
    """Returns what is written beside reference results: what they hold and where they came from."""
    about: dict[str, object] = {
        "name": name,
        "made_by": f"python -m isolab.chapters.reference {name}",
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": len(frame),
    }
    if name in TABLES:
        return about | {"sources": provenance()}
    fields = [field for field in frame.columns if field in SWEEPS[name]().configs[0].row()]
    values = {field: frame[field].unique().sort().to_list() for field in fields}
    sources = [*provenance(), "corpus_fingerprint"]
    return about | {
        "diverged": int(frame["diverged"].sum()),
        "hours_of_training": round(float((frame["step_seconds"] * frame["steps"]).sum()) / 3600, 2),
        "varied": {field: levels for field, levels in values.items() if len(levels) > 1},
        "fixed": {field: levels[0] for field, levels in values.items() if len(levels) == 1},
        "sources": {source: frame[source].unique().sort().to_list() for source in sources},
    }


def make(name: str, processes: int | None = None) -> None:
    """Trains the reference runs that are missing, or measures the table, and says how.

    Args:
        name: of :data:`SWEEPS` or :data:`TABLES`.
        processes: that train at the same time.
    """
    place = folder(name)
    if name in SWEEPS:
        store = Store(place)
        run(SWEEPS[name](), store, processes=processes)
        store.compact()
        frame = store.runs()
    else:
        frame = TABLES[name]()
        place.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(place / "table.parquet")
    text = json.dumps(describe(name, frame), indent=1)
    (place / "provenance.json").write_text(text + "\n")


def main(
    name: Annotated[str, typer.Argument(help=f"Of {', '.join(SWEEPS | TABLES)}.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that train at the same time.")
    ] = None,
) -> None:
    """Train the reference runs that are missing, or measure a table, with its provenance."""
    make(name, processes)


if __name__ == "__main__":
    typer.run(main)
