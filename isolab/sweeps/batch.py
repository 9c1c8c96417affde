"""A batch: runs that share a program and a horizon, trained together, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from isolab.model.corpus import load_corpus
from isolab.results.provenance import PACKAGE, provenance
from isolab.training.config import RunConfig
from isolab.training.memory import runs_that_fit
from isolab.training.result import Result
from isolab.training.train import Report, train

Batch = tuple[RunConfig, ...]


def train_batch(
    batch: Batch,
    memory_bytes: int | None = None,
    on_progress: Callable[[Batch, float, Report], None] | None = None,
    processes: int = 1,
) -> pl.DataFrame:
    """Trains runs that share a program and returns their rows.

    Args:
        batch: the runs; trained side by side, or one part after another where memory is short.
        memory_bytes: see :func:`run`.
        on_progress: called after each evaluation interval with the batch, the share of it that is
            done, and the interval's report.
        processes: how many train batches beside this one, itself counted, and share the memory.
    """
    results: list[Result] = []

    def report(news: Report) -> None:
        if on_progress is not None:
            runs = len(results) + len(news.train_loss) * news.step / news.steps
            on_progress(batch, runs / len(batch), news)

    for part in evenly(batch, runs_that_fit(batch, memory_bytes, processes)):
        results += train(part, on_progress=report)
    return results_frame(results)


def results_frame(results: Sequence[Result]) -> pl.DataFrame:
    """Returns a row per result: config, key, curve, outcome and provenance."""
    about = provenance()
    rows = []
    names = {result.config.corpus for result in results}
    fingerprints = {name: load_corpus(name).fingerprint for name in names}
    for result in results:
        fingerprint = fingerprints[result.config.corpus]
        rows.append(
            {
                **result.config.row(),
                "key": result.config.key(fingerprint),
                "corpus_fingerprint": fingerprint,
                "curve_step": result.curve_step,
                "curve_train_loss": result.curve_train_loss,
                "curve_validation_loss": result.curve_validation_loss,
                "final_validation_loss": result.final_validation_loss,
                "final_train_loss": result.final_train_loss,
                "diverged": result.diverged,
                "divergence_step": result.divergence_step,
                "step_seconds": result.step_seconds,
                **about,
            }
        )
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
    found = []
    for config in configs:
        keys = config.keys(fingerprints[config.corpus])
        at = next((place[key] for key in keys if key in place), None)
        if at is not None:
            found.append((at, keys[0], config.rate_rule, config.eps_rule))
    names = ("key", "rate_rule", "eps_rule")
    rows = runs[[at for at, *_ in found]]
    values = zip(*(labels for _, *labels in found), strict=True) if found else ((), (), ())
    return rows.with_columns(
        pl.Series(name, list(column), pl.String) for name, column in zip(names, values, strict=True)
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


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("b1", "b2", "eps", "weight_decay"), pl.Float64),
    "curve_step": pl.List(pl.Int32),
    "curve_train_loss": pl.List(pl.Float32),
    "curve_validation_loss": pl.List(pl.Float32),
    "divergence_step": pl.Int64,
}
