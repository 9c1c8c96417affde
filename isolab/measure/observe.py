"""Training several runs and measuring each at some of its steps, as tidy rows."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from isolab.model.corpus import load_corpus
from isolab.training.config import RunConfig
from isolab.training.program import program_of
from isolab.training.watch import Observation, watch

Measurement = Callable[[Observation], Iterable[dict[str, Any]]]


def observe(
    configs: Iterable[RunConfig],
    steps: Sequence[int],
    function: Measurement,
    labels: Sequence[str] = ("width", "seed"),
    schema: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Trains runs as ever, each up to the last step asked for, and collects what is measured.

    Args:
        configs: the runs; neighbours that share a program share its compilation. Groups of them
            run in threads, since most of the time of few steps is compiling, on one core each.
        steps: when to measure, 0 (before training) to each run's ``steps``.
        function: ``function(observation)`` returns rows, plain values by column.
        labels: fields of a run's config that its rows have too.
        schema: polars types of columns, where the values do not tell (null in every row).

    Returns:
        polars.DataFrame, by run and step: ``labels``, ``step``, and the function's columns.

    Raises:
        ValueError: no steps, a step twice, or one outside a run.

    Example:
        >>> runs = [RunConfig(width=16, depth=1, seed=seed) for seed in (0, 1)]
        >>> observe(runs, [0], lambda seen: [{"tokens": seen.batch[0].size}]).rows()
        [(16, 0, 0, 2048), (16, 1, 0, 2048)]
    """
    groups = [list(runs) for _, runs in itertools.groupby(configs, program_of)]
    for runs in groups:
        load_corpus(runs[0].corpus)  # once, before there are threads
    task = functools.partial(_measured, steps=steps, function=function, labels=labels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(itertools.chain.from_iterable(pool.map(task, groups)))
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def _measured(
    runs: Sequence[RunConfig],
    steps: Sequence[int],
    function: Measurement,
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    return [
        {label: getattr(config, label) for label in labels} | {"step": seen.step} | row
        for config in runs
        for seen in watch(config, steps)
        for row in function(seen)
    ]
