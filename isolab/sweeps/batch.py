"""A batch: runs that share a program and a horizon, trained together, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.model.corpus import load_corpus
from isolab.results.provenance import provenance
from isolab.training.config import RunConfig
from isolab.training.memory import runs_that_fit
from isolab.training.train import Result, Snapshot, train

Batch = tuple[RunConfig, ...]


def train_batch(
    batch: Batch,
    memory_bytes: int | None = None,
    on_progress: Callable[[float, np.ndarray], None] | None = None,
    processes: int = 1,
) -> pl.DataFrame:
    """Trains runs that share a program, in parts where memory is short, and returns their rows.

    ``on_progress`` is called after each evaluation interval with the share of the batch that is
    done and its runs' validation losses; so many ``processes`` share ``memory_bytes``.
    """
    results: list[Result] = []

    def report(snapshot: Snapshot) -> None:
        losses = snapshot.validation_loss
        runs = len(results) + len(losses) * snapshot.step / batch[0].steps
        if on_progress is not None and snapshot.step:
            on_progress(runs / len(batch), losses)

    for part in evenly(batch, runs_that_fit(batch, memory_bytes, processes)):
        results += train(part, on_snapshot=report)
    return results_frame(results)


def results_frame(results: Sequence[Result]) -> pl.DataFrame:
    """Returns a row per result: config, key, curve, outcome and provenance."""
    fingerprints = fingerprints_of(result.config for result in results)
    rows = [
        {
            **result.config.row(),
            "key": result.config.key(fingerprints[result.config.corpus]),
            "corpus_fingerprint": fingerprints[result.config.corpus],
            **{name: getattr(result, name) for name in _OUTCOME},
            **provenance(),
        }
        for result in results
    ]
    return pl.DataFrame(rows, schema_overrides=_SCHEMA, infer_schema_length=None)


def fingerprints_of(configs: Iterable[RunConfig]) -> dict[str, str]:
    """Returns each corpus's fingerprint by its name; looking one up takes some 10 ms."""
    return {name: load_corpus(name).fingerprint for name in {c.corpus for c in configs}}


def keys_of(configs: Sequence[RunConfig]) -> list[str]:
    """Returns the runs' keys."""
    fingerprints = fingerprints_of(configs)
    return [config.key(fingerprints[config.corpus]) for config in configs]


def rows_of(
    configs: Sequence[RunConfig], runs: pl.DataFrame, fingerprints: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """Returns a row for each config whose run a frame holds, in order, with the config's fields.

    A frame that holds a run once, as at the base width, where all rules are one, gives it to every
    config that means it.  ``fingerprints`` are those of the corpora that the runs were trained on,
    by name; default: as they are on this machine.
    """
    if fingerprints is None:
        fingerprints = fingerprints_of(configs)
    place = {key: number for number, key in enumerate(runs["key"])}
    found = []  # (config, key, row)
    for config in configs:
        keys = config.keys(fingerprints[config.corpus])
        rows = [place[key] for key in keys if key in place]
        found += [(config, keys[0], row) for row in rows[:1]]
    return runs[[row for _, _, row in found]].with_columns(
        pl.Series("key", [key for _, key, _ in found], pl.String),
        pl.Series("rate_rule", [config.rate_rule for config, _, _ in found], pl.String),
        pl.Series("eps_rule", [config.eps_rule for config, _, _ in found], pl.String),
    )


def evenly(group: Sequence[Any], limit: int) -> list[Sequence[Any]]:
    """Cuts a sequence in parts of nearly equal size: each size of a batch is compiled anew."""
    count = -(-len(group) // limit)
    size = -(-len(group) // count)
    return [group[i : i + size] for i in range(0, len(group), size)]


_OUTCOME = (
    "curve_step", "curve_train_loss", "curve_validation_loss", "final_validation_loss",
    "final_train_loss", "diverged", "divergence_step", "step_seconds",
)  # fmt: skip
_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("b1", "b2", "eps", "weight_decay"), pl.Float64),
    "curve_step": pl.List(pl.Int32),
    "curve_train_loss": pl.List(pl.Float32),
    "curve_validation_loss": pl.List(pl.Float32),
    "divergence_step": pl.Int64,
}
