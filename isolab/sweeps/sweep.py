"""Many runs as one table: a grid of configs, grouped by program, trained in batches, stored.

Sweep(base, **axes) -> RunConfigs -> plan: programs and batches -> train -> store, frame
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections import ChainMap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal

import numpy as np
import polars as pl

from isolab.results.folder import runs_folder
from isolab.results.store import Store
from isolab.sweeps.batch import Batch, rows_of, train_batch
from isolab.sweeps.cluster import connect, slots, train_on_client
from isolab.sweeps.local import local_client, process_count
from isolab.sweeps.plan import plan
from isolab.sweeps.progress import Progress, say
from isolab.training.config import RunConfig, with_later_fields
from isolab.training.interrupt import interrupt
from isolab.training.program import keep_compiled_programs


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
        groups = [*zipped, *({name: values} for name, values in axes.items())]
        for name, values in itertools.chain.from_iterable(group.items() for group in groups):
            if name not in known:
                raise ValueError(f"unknown axis {name!r}; allowed: {known}")
            if sum(name in group for group in groups) > 1:
                raise ValueError(f"axis {name!r} is given twice")
            if isinstance(values, str) or not isinstance(values, Sized) or not len(values):
                raise ValueError(f"axis {name} is {values!r}; allowed: one value or more, listed")
        for group in groups:
            lengths = {name: len(values) for name, values in group.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"zipped axes have lengths {lengths}; allowed: equal ones")
        points = [
            [dict(zip(group, point, strict=True)) for point in zip(*group.values(), strict=True)]
            for group in groups
        ]
        self.configs = tuple(
            dataclasses.replace(base, **{k: _plain(v) for k, v in ChainMap(*row).items()})
            for row in itertools.product(*points)
        )

    @classmethod
    def union(cls, sweeps: Iterable[Iterable[RunConfig]]) -> Sweep:
        """Returns a sweep of the runs of all, each once, in order."""
        whole = object.__new__(cls)
        whole.configs = tuple(dict.fromkeys(itertools.chain.from_iterable(sweeps)))
        return whole

    def __add__(self, other: Sweep) -> Sweep:
        return self.union([self, other])

    def __len__(self) -> int:
        return len(self.configs)

    def __iter__(self) -> Iterator[RunConfig]:
        return iter(self.configs)


def run(
    sweep: Sweep | RunConfig,
    store: Store | str | os.PathLike[str] | None = "default",
    progress: bool = True,
    *,
    scheduler: str | None = None,
    resources: Mapping[str, float] | None = None,
    memory_bytes: int | None = None,
    processes: int | Literal["auto"] | None = None,
) -> pl.DataFrame:
    """Runs a sweep and returns one frame, a row a run in the sweep's order.

    Finished batches are stored as they come, so an interrupted sweep goes on where it stopped, and
    gives the rows of an uninterrupted one.  Ctrl-C finishes and stores the batch in hand before it
    stops; a second one stops at once.

    Args:
        sweep: a sweep, or a single config.
        store: where results are kept: a Store, a path, None to keep nothing, or "default" for
            :func:`isolab.results.folder.runs_folder`.
        progress: print the plan and a bar with steps done and time left.
        scheduler: address of a dask scheduler, on whose workers the batches are trained.
        resources: what a batch takes of a worker's resources, such as ``{"GPU": 1}``.
        memory_bytes: what training may take on each device; by default all memory of an
            accelerator, half of what is free for a CPU.  Batches that take more are trained in
            parts.
        processes: how many processes of this machine train batches at the same time, each on its
            share of the cores; None for this one alone, "auto" for one a core, or this one alone
            with an accelerator.  On a CPU small models train more runs a second this way.  A batch
            whose process is killed is trained by another.

    Returns:
        Every field of :class:`isolab.RunConfig` (the optimizer's defaults filled in), ``key``,
        ``corpus_fingerprint``, the curve in list columns, the outcome, and provenance.

    Raises:
        ValueError: ``processes`` below 1, with a scheduler, or above 1 with an accelerator;
            ``resources`` without a scheduler.
        MemoryError: a single run takes more than ``memory_bytes``.
        KeyboardInterrupt: after Ctrl-C, with what is stored and how to go on.
        isolab.sweeps.cluster.ClusterError: no scheduler at the address, or processes that cannot
            be started (before anything is done); batches that failed (after all others are stored).
    """
    if scheduler is not None and processes is not None:
        raise ValueError(
            f"processes={processes!r} with a scheduler; allowed: one of them, as the cluster's"
            " workers are the processes"
        )
    if scheduler is None and resources:
        raise ValueError(f"resources={dict(resources)!r} without a scheduler")
    several = process_count(processes)
    keep_compiled_programs()  # also of what the caller compiles next
    with contextlib.ExitStack() as stack:
        client = None if scheduler is None else stack.enter_context(connect(scheduler))
        configs = (sweep,) if isinstance(sweep, RunConfig) else sweep.configs
        if store is not None and not isinstance(store, Store):
            store = Store(runs_folder() if store == "default" else store)
        planned = plan(configs, store, several)
        frames = []
        if planned.stored and store:
            frames.append(store.runs(pl.col("key").is_in(list(planned.stored))))
        if planned.batches:
            stop = stack.enter_context(interrupt(_finishing, enabled=store is not None))
            several = min(several, len(planned.batches))
            at_once = several if client is None else slots(client, resources)
            shown = stack.enter_context(Progress(planned, store, at_once, progress))
            arguments = (planned.batches, memory_bytes, stop, shown.update)
            if client is not None:
                trained = train_on_client(client, *arguments, resources=resources)
            elif several > 1:
                client = stack.enter_context(local_client(several))
                trained = train_on_client(client, *arguments, processes=several)
            else:
                trained = _train_here(*arguments)
            for batch, frame in stack.enter_context(contextlib.closing(trained)):
                if store is not None:
                    store.append(frame)
                frames.append(frame)
                shown.update(batch, 1.0, frame["final_validation_loss"].to_numpy())
            if store is not None and stop():
                raise KeyboardInterrupt(shown.stopped(store.folder.path))
    table = with_later_fields(pl.concat(frames, how="diagonal_relaxed"))
    return rows_of(configs, table)


def _finishing() -> None:
    say("Ctrl-C: finishing and storing the batch in hand; again to stop at once")


def _train_here(
    batches: Iterable[Batch],
    memory_bytes: int | None,
    stop: Callable[[], bool],
    on_progress: Callable[[Batch, float, np.ndarray], None],
) -> Generator[tuple[Batch, pl.DataFrame]]:
    """Trains batches in this process, see :func:`isolab.sweeps.cluster.train_on_client`."""
    for batch in batches:
        if stop():
            return
        yield batch, train_batch(batch, memory_bytes, functools.partial(on_progress, batch))


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own, so that configs hold plain values."""
    return value.item() if hasattr(value, "item") else value
