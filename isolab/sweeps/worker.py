"""What runs on a worker of a dask cluster: a batch, after its process is set up for it.

JAX counts its cores when it is loaded, so that nothing here loads it before they are chosen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import distributed

if TYPE_CHECKING:
    import polars as pl

    from isolab.sweeps.batch import Batch


class Setup(distributed.WorkerPlugin):
    """Gives each worker process its cores, and the caller's settings of JAX.

    Args:
        cores: of each worker, whose name is its place in the list.
    """

    def __init__(self, cores: Sequence[Sequence[int]]) -> None:
        import jax

        here = jax.config.values
        plain = (bool, int, float, str, type(None))
        self._cores = cores
        self._config = {name: here[name] for name in here if isinstance(here[name], plain)}

    def setup(self, worker: Any) -> None:
        """Sets up the worker's process, before it takes a batch."""
        cores = self._cores[worker.name]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        else:
            os.environ["NPROC"] = str(len(cores))  # XLA asks for it
        import jax

        for name, value in self._config.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)


def train_task(
    batch: Batch,
    keys: list[str],
    memory_bytes: int | None,
    processes: int,
    news: tuple[str, int],
) -> tuple[str, pl.DataFrame]:
    """Trains a batch and returns the worker's address and the rows; tells of each interval."""
    from isolab.sweeps.batch import check_keys, train_batch

    worker = distributed.get_worker()
    topic, number = news

    def report(share: float, losses: Any) -> None:
        worker.log_event(topic, (number, (share, losses.tolist())))

    check_keys(batch, keys)
    return worker.address, train_batch(batch, memory_bytes, report, processes)
