"""What a sweep will do: which runs are stored, and which are trained together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isolab.results.store import Store
from isolab.sweeps.batch import Batch, evenly, fingerprints_of
from isolab.training.config import RunConfig
from isolab.training.program import program_of
from isolab.training.runs_axis import device_count

BATCH_RUNS = 8  # trained side by side on each device, at most
BATCHES_EACH = 4  # for each of several processes, at least: all of them are busy to the end


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    keys: tuple[str, ...]  # of every run, in the sweep's order, each once
    stored: frozenset[str]  # every key, present or former, of the runs that are stored
    batches: tuple[Batch, ...]  # the rest: runs that share a program and a horizon

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
    Batches for several processes are cut so small that none costs more than a process's share of
    the whole over ``BATCHES_EACH``.
    """
    listed = list(sweep)
    fingerprints = fingerprints_of(listed)
    spelled = {config: config.keys(fingerprints[config.corpus]) for config in listed}
    configs: dict[str, RunConfig] = {}
    for config, keys in spelled.items():
        configs.setdefault(keys[0], config)
    every = [key for keys in spelled.values() for key in keys]
    stored = store.keys().intersection(every) if store else set()
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
    return Plan(tuple(configs), frozenset(stored), tuple(batch for batch in batches if batch))


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


def operations(config: RunConfig) -> float:
    """Returns the floating-point operations of a training step, but for optimizer and vocabulary.

    With B sequences of L tokens, width D, depth N and an MLP of M D features, forward and backward:
    :math:`6 B L N ((4 + 2 M) D^2 + 2 L D)`.
    """
    width, context = config.width, config.context
    layer = (4 + 2 * config.mlp_ratio) * width**2 + 2 * context * width
    return 6.0 * config.batch_size * context * config.depth * layer


def batch_operations(batch: Batch) -> float:
    """Returns the floating-point operations of training a batch, see :func:`operations`."""
    return sum(config.steps for config in batch) * operations(batch[0])
