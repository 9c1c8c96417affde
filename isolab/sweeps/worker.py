"""How a dask worker's process is set up before it takes a batch.

JAX counts its cores when it is loaded, so that nothing here loads it before they are chosen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import distributed


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
        """Sets up the worker's process."""
        cores = self._cores[worker.name]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        else:
            os.environ["NPROC"] = str(len(cores))  # XLA asks for it
        import jax

        for name, value in self._config.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
