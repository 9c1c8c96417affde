"""What a sweep will do: which runs are stored, which are trained together, how long it may take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.results.provenance import provenance
from isolab.results.store import Store
from isolab.sweeps.batch import Batch, evenly, fingerprints_of
from isolab.training.config import TRACED, RunConfig
from isolab.training.devices import device_count
from isolab.training.train import program_of

BATCH_RUNS = 8
"""Runs trained side by side on each device, at most."""

BATCHES_EACH = 4
"""Batches for each of several processes, at least, so that all of them are busy to the end."""


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        keys: key of every run, in the sweep's order, each once.
        stored: every key, present or former, of the runs whose results are stored.
        batches: the rest, as batches of runs that share a program and a horizon.
    """

    keys: tuple[str, ...]
    stored: frozenset[str]
    batches: tuple[Batch, ...]

    def __str__(self) -> str:
        programs = len({program_of(batch[0]) for batch in self.batches})
        todo = sum(len(batch) for batch in self.batches)
        return (
            f"{len(self.keys)} runs: {len(self.keys) - todo} stored, {todo} to train"
            f" in {len(self.batches)} batches of {programs} programs"
        )


def plan(sweep: Iterable[RunConfig], store: Store | None = None, processes: int = 1) -> Plan:
    """Groups the runs by program and horizon, cuts them in batches, and drops those stored.

    The cut does not depend on what is stored.  So a sweep that was interrupted, which has stored
    whole batches, resumes with the batches of an uninterrupted one, and gives the same bits.

    Args:
        sweep: the runs.
        store: where some of them may be.
        processes: how many train batches at the same time; batches for several are cut so small
            that none costs more than a process's share of the whole over ``BATCHES_EACH``.
    """
    listed = list(sweep)
    fingerprints = fingerprints_of(listed)
    spelled = {config: config.keys(fingerprints[config.corpus]) for config in listed}
    configs: dict[str, RunConfig] = {}
    for config, keys in spelled.items():
        configs.setdefault(keys[0], config)
    every = [key for keys in spelled.values() for key in keys]
    stored = frozenset(every) - set(store.missing(every)) if store else frozenset()
    cached = {keys[0] for keys in spelled.values() if not stored.isdisjoint(keys)}
    groups: dict[Any, list[str]] = {}
    for key, config in configs.items():
        groups.setdefault((program_of(config), config.steps), []).append(key)
    limits = _limits({group: len(keys) for group, keys in groups.items()}, processes)
    batches = [
        tuple(configs[key] for key in keys if key not in cached)
        for (program, _), group in groups.items()
        for keys in evenly(group, limits[program])
    ]
    return Plan(tuple(configs), stored, tuple(batch for batch in batches if batch))


def _limits(runs: Mapping[tuple[RunConfig, int], int], processes: int) -> dict[RunConfig, int]:
    """Runs of a batch at most, by program: its horizons share a size, which is compiled once."""
    most = BATCH_RUNS * device_count()
    if processes == 1:
        return {program: most for program, _ in runs}
    costs = {(program, steps): steps * operations(program) for program, steps in runs}
    share = sum(costs[group] * runs[group] for group in runs) / (BATCHES_EACH * processes)
    limits: dict[RunConfig, int] = {}
    for (program, _), cost in costs.items():
        limits[program] = min(limits.get(program, most), max(1, int(share / cost)))
    return limits


def seconds_per_step(batches: Iterable[Batch], store: Store | None) -> dict[RunConfig, float]:
    """Returns step_seconds (a step of one run) by program, where such runs are stored.

    A run is like another if it shares its program and was trained on this kind of device; the
    median of theirs is taken.
    """
    programs = dict.fromkeys(program_of(batch[0]) for batch in batches)
    if store is None or not programs:
        return {}
    stored = store.runs()
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name not in TRACED]
    if not {*names, "step_seconds", "device", "cpu"} <= set(stored.columns):
        return {}
    here = {name: value for name, value in provenance().items() if name in ("device", "cpu")}
    found = {}
    for program in programs:
        same = {name: getattr(program, name) for name in names} | here
        alike = stored.filter(*(pl.col(name) == value for name, value in same.items()))
        seconds = alike["step_seconds"].median()
        if isinstance(seconds, float):
            found[program] = seconds
    return found


class Clock:
    """Time that a sweep takes, revised as it goes.

    Before anything is measured it is the sum over stored runs alike; then the time that went by,
    over the share of the work that is done.  Work is in seconds where runs alike are stored for
    every batch, else in arithmetic operations.

    Args:
        batches: what is to be done.
        known: seconds of a step of one run, by program, see :func:`seconds_per_step`.
        beside: batches that are trained at the same time.
        now: the time, in seconds.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        known: Mapping[RunConfig, float],
        beside: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.measured = all(program_of(batch[0]) in known for batch in batches)
        self._cost = {
            batch: sum(config.steps for config in batch) * known[program_of(batch[0])]
            if self.measured
            else batch_operations(batch)
            for batch in batches
        }
        self._total = sum(self._cost.values())
        self._done = dict.fromkeys(batches, 0.0)
        self._beside = max(1, min(beside, len(batches)))
        self._now = now
        self._started = now()

    def advance(self, batch: Batch, share: float) -> None:
        """Takes note that this share of a batch, from 0 to 1, is done."""
        self._done[batch] = share * self._cost[batch]

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the sweep is done, or None where nothing is known yet."""
        done = sum(self._done.values())
        if done:
            return (self._now() - self._started) * (self._total - done) / done
        return self._total / self._beside if self.measured else None

    def __str__(self) -> str:
        seconds = self.seconds_left
        if seconds is None:
            return "time: told after the first interval"
        return f"about {duration(seconds)}"


def operations(config: RunConfig) -> float:
    """Returns the floating-point operations of a training step, but for optimizer and vocabulary.

    With B sequences of L tokens, width D, depth N and an MLP of M D features, forward and backward:
    :math:`6 B L N ((4 + 2 M) D^2 + 2 L D)`.

    Example:
        >>> wide, narrow = RunConfig(width=128), RunConfig(width=64)
        >>> round(operations(wide) / operations(narrow), 2)
        3.71
    """
    width, context = config.width, config.context
    layer = (4 + 2 * config.mlp_ratio) * width**2 + 2 * context * width
    return 6.0 * config.batch_size * context * config.depth * layer


def batch_operations(batch: Batch) -> float:
    """Returns the floating-point operations of training a batch, see :func:`operations`."""
    return sum(config.steps for config in batch) * operations(batch[0])


def duration(seconds: float) -> str:
    """Returns seconds in words.

    Example:
        >>> duration(0.2), duration(42), duration(200), duration(9000), duration(300000)
        ('1 s', '42 s', '3 min', '2.5 h', '3.5 days')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
