"""Many runs as one table: a grid of configs, grouped by program, trained in batches, stored.

Sweep(base, **axes) -> RunConfigs -> plan: programs and batches -> train -> store, frame
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tqdm.auto import tqdm

from isolab.config import RunConfig
from isolab.corpus import load_corpus
from isolab.provenance import provenance
from isolab.store import Store
from isolab.training import Report, Result, program_of, train

BATCH_RUNS = 8
"""Runs trained side by side, at most."""


class Sweep:
    """A set of runs: a base config and axes, crossed or zipped.

    Args:
        base: the config that the axes vary.
        *zipped: mappings of equally long axes that advance together.
        **axes: values by field of :class:`isolab.RunConfig`, crossed with each other.

    Sweeps add up: ``a + b`` holds the runs of both, each once.

    Raises:
        ValueError: an unknown field, an empty axis, zipped axes of different lengths, a field that
            is varied twice, or an impossible config; before any training.

    Example:
        >>> grid = Sweep(RunConfig(), {"steps": [100, 200], "warmup_steps": [10, 20]}, seed=[0, 1])
        >>> [(c.steps, c.warmup_steps, c.seed) for c in grid.configs]
        [(100, 10, 0), (100, 10, 1), (200, 20, 0), (200, 20, 1)]
    """

    configs: tuple[RunConfig, ...]

    def __init__(
        self, base: RunConfig, *zipped: Mapping[str, Sequence[Any]], **axes: Sequence[Any]
    ) -> None:
        known = [field.name for field in dataclasses.fields(RunConfig)]
        groups = [dict(group) for group in zipped] + [{name: axes[name]} for name in axes]
        seen: set[str] = set()
        for group in groups:
            for name, values in group.items():
                if name not in known:
                    raise ValueError(f"unknown axis {name!r}; allowed: {known}")
                if name in seen:
                    raise ValueError(f"axis {name!r} is given twice")
                seen.add(name)
                if isinstance(values, str) or not len(values):
                    raise ValueError(
                        f"axis {name} is {values!r}; allowed: one value or more, listed"
                    )
            if len({len(values) for values in group.values()}) > 1:
                lengths = {name: len(values) for name, values in group.items()}
                raise ValueError(f"zipped axes have lengths {lengths}; allowed: equal ones")
        points = [
            [
                dict(zip(group, _plain(values), strict=True))
                for values in zip(*group.values(), strict=True)
            ]
            for group in groups
        ]
        self.configs = tuple(
            dataclasses.replace(base, **{k: v for point in row for k, v in point.items()})
            for row in itertools.product(*points)
        )

    def __add__(self, other: Sweep) -> Sweep:
        both = object.__new__(Sweep)
        both.configs = tuple(dict.fromkeys(self.configs + other.configs))
        return both

    def __len__(self) -> int:
        return len(self.configs)

    def __iter__(self) -> Iterator[RunConfig]:
        return iter(self.configs)


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        keys: key of every run, in the sweep's order.
        cached: keys whose results are stored.
        batches: the rest, as batches of runs that share a program and a horizon.
    """

    keys: tuple[str, ...]
    cached: frozenset[str]
    batches: tuple[tuple[RunConfig, ...], ...]

    def __str__(self) -> str:
        programs = len({program_of(batch[0]) for batch in self.batches})
        todo = sum(len(batch) for batch in self.batches)
        return (
            f"{len(self.keys)} runs: {len(self.keys) - todo} stored, {todo} to train"
            f" in {len(self.batches)} batches of {programs} programs"
        )


def plan(sweep: Iterable[RunConfig], store: Store | None = None) -> Plan:
    """Groups the runs that are not stored yet by program and horizon, and cuts them in batches."""
    configs = {config.key(load_corpus(config.corpus).fingerprint): config for config in sweep}
    cached = frozenset(configs) - set(store.missing(configs)) if store else frozenset()
    groups: dict[Any, list[RunConfig]] = {}
    for key, config in configs.items():
        if key not in cached:
            groups.setdefault((program_of(config), config.steps), []).append(config)
    batches = [batch for group in groups.values() for batch in _evenly(group)]
    return Plan(tuple(configs), cached, tuple(batches))


def run(
    sweep: Sweep | RunConfig,
    store: Store | str | os.PathLike[str] | None = "default",
    progress: bool = True,
) -> pl.DataFrame:
    """Runs a sweep and returns one frame, a row a run in the sweep's order.

    Finished batches are stored as they come, so an interrupted sweep goes on where it stopped.

    Args:
        sweep: a sweep, or a single config.
        store: where results are kept: a Store, a path, None to keep nothing, or "default" for
            :func:`default_store`.
        progress: print the plan and a bar with steps done, rate and time left.

    Returns:
        Every field of :class:`isolab.RunConfig` (the optimizer's defaults filled in), ``key``,
        ``corpus_fingerprint``, the curve in list columns, the outcome, and provenance.
    """
    configs = (sweep,) if isinstance(sweep, RunConfig) else sweep.configs
    if store == "default":
        store = default_store()
    kept = store if isinstance(store, Store) or store is None else Store(store)
    planned = plan(configs, kept)
    frames = []
    if planned.cached and kept:
        frames.append(kept.runs(pl.col("key").is_in(list(planned.cached))))
    total = sum(len(batch) * batch[0].steps for batch in planned.batches)
    if progress and total:
        tqdm.write(str(planned))
    with tqdm(total=total, unit="step", disable=not (progress and total)) as bar:
        for batch in planned.batches:
            frame = results_frame(train(batch, on_progress=_advance(bar, batch)))
            if kept:
                kept.append(frame)
            frames.append(frame)
    table = pl.concat(frames, how="diagonal_relaxed")
    order = pl.DataFrame({"key": planned.keys})
    return order.join(table, on="key", how="left", maintain_order="left").select(table.columns)


def results_frame(results: Sequence[Result]) -> pl.DataFrame:
    """Returns a row per result: config, key, curve, outcome and provenance."""
    about = provenance()
    rows = []
    for result in results:
        fingerprint = load_corpus(result.config.corpus).fingerprint
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


def default_store() -> Store:
    """Returns the store at ``$ISOLAB_RUNS``, or in this checkout or the user's data folder.

    That is ``data/runs`` of a checkout, and ``isolab/runs`` of the data folder for an installed
    package.
    """
    named = os.environ.get("ISOLAB_RUNS")
    if named:
        return Store(named)
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return Store(root / "data" / "runs")
    from platformdirs import user_data_path

    return Store(user_data_path("isolab") / "runs")


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("b1", "b2", "eps", "weight_decay"), pl.Float64),
    "curve_step": pl.List(pl.Int32),
    "curve_train_loss": pl.List(pl.Float32),
    "curve_validation_loss": pl.List(pl.Float32),
    "divergence_step": pl.Int64,
}


def _evenly(group: list[RunConfig]) -> list[tuple[RunConfig, ...]]:
    """Cuts a group in batches of nearly equal size: each size is compiled anew."""
    count = -(-len(group) // BATCH_RUNS)
    size = -(-len(group) // count)
    return [tuple(group[i : i + size]) for i in range(0, len(group), size)]


def _plain(values: Iterable[Any]) -> list[Any]:
    """NumPy scalars as Python's own, so that configs hold plain values."""
    return [value.item() if hasattr(value, "item") else value for value in values]


def _advance(bar: Any, batch: Sequence[RunConfig]) -> Any:
    def on_progress(report: Report) -> None:
        bar.update(len(batch) * batch[0].evaluate_every)
        bar.set_postfix_str(f"{batch[0].optimizer} best {float(report.validation_loss.min()):.3f}")

    return on_progress
