"""Trains the reference runs that a chapter lacks, and measures its tables, with provenance."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import polars as pl
import typer

from isolab.chapters import CHAPTERS
from isolab.chapters.chapter import REFERENCE
from isolab.results.provenance import provenance
from isolab.results.store import Store
from isolab.sweeps.sweep import run
from isolab.training.config import RunConfig


def main(
    name: Annotated[str, typer.Argument(help=f"Of {', '.join(CHAPTERS)}.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that train at the same time.")
    ] = None,
    tables: Annotated[bool, typer.Option(help="Measure the chapter's tables anew, too.")] = False,
) -> None:
    """Train a chapter's missing reference runs; written to data/reference with provenance.json."""
    chapter = CHAPTERS.get(name)
    if chapter is None or chapter.reference is None:
        known = [key for key, value in CHAPTERS.items() if value.reference is not None]
        raise typer.BadParameter(f"{name!r} has no reference results; those that do: {known}")
    evidence, place = chapter.evidence(), REFERENCE / chapter.folder
    store = Store(place)
    run(evidence.sweep, store, processes=processes)
    store.compact()
    runs = store.runs()
    _write(name, chapter.folder, runs, about_runs(runs))
    for table, measurement in evidence.tables.items() if tables else ():
        if (REFERENCE / table).exists():  # the others are made by readers only
            frame = measurement()
            frame.write_parquet(REFERENCE / table / "table.parquet")
            _write(name, table, frame, {"sources": dict(provenance())})


def about_runs(runs: pl.DataFrame) -> dict[str, Any]:
    """Returns what reference runs hold and where they came from."""
    fields = [field for field in RunConfig().row() if field in runs.columns]
    values = {field: runs[field].unique().sort().to_list() for field in fields}
    sources = [*provenance(), "corpus_fingerprint"]
    return {
        "diverged": int(runs["diverged"].sum()),
        "hours_of_training": round(float((runs["step_seconds"] * runs["steps"]).sum()) / 3600, 2),
        "varied": {field: levels for field, levels in values.items() if len(levels) > 1},
        "fixed": {field: levels[0] for field, levels in values.items() if len(levels) == 1},
        "sources": {source: runs[source].unique().sort().to_list() for source in sources},
    }


def _write(chapter: str, folder: str, frame: pl.DataFrame, about: dict[str, Any]) -> None:
    about = {
        "name": folder,
        "made_by": f"python -m isolab.chapters {chapter}",
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": len(frame),
    } | about
    (REFERENCE / folder / "provenance.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
