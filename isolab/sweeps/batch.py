"""A batch: runs that share a program and a horizon, trained together, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.model.corpus import load_corpus
from isolab.results.provenance import PACKAGE, provenance
from isolab.training.config import RunConfig
from isolab.training.memory import runs_that_fit
from isolab.training.result import Result
from isolab.training.train import Snapshot, train

Batch = tuple[RunConfig, ...]


def train_batch(
    batch: Batch,
    memory_bytes: int | None = None,
    on_progress: Callable[[float, np.ndarray], None] | None = None,
    processes: int = 1,
) -> pl.DataFrame:
    """Trains runs that share a program and returns their rows.

    Args:
        batch: the runs; trained side by side, or one part after another where memory is short.
        memory_bytes: see :func:`isolab.run`.
        on_progress: called after each evaluation interval with the share of the batch that is done
            and its runs' validation losses.
        processes: how many train at the same time, this one included, and share the memory.
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
    about = provenance()
    rows = [
        {
            **result.config.row(),
            "key": result.config.key(fingerprints[result.config.corpus]),
            "corpus_fingerprint": fingerprints[result.config.corpus],
            **{name: getattr(result, name) for name in _OUTCOME},
            **about,
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
    config that means it.

    Args:
        configs: what to look for.
        runs: a row per run, with ``key``.
        fingerprints: of the corpora that the runs were trained on, by name; default: as they are
            on this machine.
    """
    if fingerprints is None:
        fingerprints = fingerprints_of(configs)
    place = {key: number for number, key in enumerate(runs["key"])}
    found = []  # (row, key, config)
    for config in configs:
        keys = config.keys(fingerprints[config.corpus])
        row = next((place[key] for key in keys if key in place), None)
        if row is not None:
            found.append((row, keys[0], config))
    return runs[[row for row, _, _ in found]].with_columns(
        pl.Series("key", [key for _, key, _ in found], pl.String),
        pl.Series("rate_rule", [config.rate_rule for _, _, config in found], pl.String),
        pl.Series("eps_rule", [config.eps_rule for _, _, config in found], pl.String),
    )


def check_keys(batch: Batch, keys: Sequence[str]) -> None:
    """Compares the runs' keys, by the corpus and code of this process, with the caller's.

    Raises:
        ValueError: they differ, so that the results would not be those that the caller asked for.
    """
    if keys_of(batch) != list(keys):
        raise ValueError(
            f"the corpus {batch[0].corpus!r} (or isolab, at {PACKAGE}) of this"
            " worker is not the caller's: the same Python, isolab and files are needed on both"
        )


def failure(batch: Batch, error: BaseException) -> str:
    """Returns what to tell of a batch that failed elsewhere: which runs, and why."""
    first = batch[0]
    reason = str(error).strip() or type(error).__name__
    return (
        f"{len(batch)} runs of {first.optimizer} at width {first.width}, {first.steps} steps:"
        f" {type(error).__name__}: {reason}"
    )


def evenly(group: Sequence[Any], limit: int) -> list[Sequence[Any]]:
    """Cuts a sequence in parts of nearly equal size: each size of a batch is compiled anew.

    Example:
        >>> evenly("abcdefghi", 4)
        ['abc', 'def', 'ghi']
    """
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
