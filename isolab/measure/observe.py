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
from isolab.model.fields import whole_numbers
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig
from isolab.training.program import program_of
from isolab.training.watch import Observation, watch

Measurement = Callable[[Observation], Iterable[dict[str, Any]]]


def observe(
    config: RunConfig,
    axes: Mapping[str, Sequence[Any]],
    steps: Sequence[int],
    function: Measurement,
    schema: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Trains runs as ever, each up to the last step asked for, and collects what is measured.

    Runs that share a program share its compilation. Groups of them run in threads, since most of
    the time of few steps is compiling, on one core each.

    Args:
        axes: fields of the config that are crossed, ``width`` and ``seed`` among them.
        steps: when to measure, 0 (before training) to ``config.steps``.
        function: ``function(observation)`` returns rows, plain values by column.
        schema: polars types of columns, where the values do not tell (null in every row).

    Returns:
        polars.DataFrame, by run and step: the axes, ``step``, and the function's columns.

    Raises:
        ValueError: impossible values of an axis, no steps, a step twice, or one outside a run.
    """
    checked = {
        "width": whole_numbers("widths", axes["width"], 1),
        "seed": whole_numbers("seeds", axes["seed"], 0),
    }
    steps = whole_numbers("steps", steps, 0, config.steps)
    load_corpus(config.corpus)  # once, before there are threads
    runs = Sweep(config, **{**axes, **checked})
    groups = [list(group) for _, group in itertools.groupby(runs, program_of)]
    task = functools.partial(_measured, steps=steps, function=function, labels=list(axes))
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
