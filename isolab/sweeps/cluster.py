"""Sweeps on a dask.distributed cluster: a batch is a task; rows come back as they are finished."""

from __future__ import annotations

import contextlib
import queue
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from isolab.sweeps.batch import Batch

CONNECT_SECONDS = 5
"""Longest wait for a scheduler before it counts as unreachable."""

LOST = (
    "the dask scheduler is gone, or has cancelled a batch; what came back is kept, and the same"
    " call goes on from there"
)


class ClusterError(RuntimeError):
    """Raised when a batch could not be trained on the cluster; says which, and why."""


def connect(address: str) -> Any:
    """Returns a dask client of the scheduler at an address, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ImportError: dask.distributed is not installed.
        ClusterError: not an address, or no scheduler answers there within seconds.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "scheduler= needs dask.distributed: pip install 'isolab[cluster]'"
        ) from error
    client: Any = distributed.Client
    try:
        return client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
        raise ClusterError(
            f"no dask scheduler answers at {address!r} ({str(error) or type(error).__name__});"
            " allowed: an address such as 'tcp://10.0.0.1:8786', as `dask scheduler` prints it"
        ) from None


def slots(client: Any, resources: Mapping[str, float] | None) -> int:
    """Returns how many batches the cluster's present workers can train at the same time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    wanted = {name: number for name, number in (resources or {}).items() if number > 0}
    return sum(
        min(
            worker["nthreads"],
            *(int(worker["resources"].get(name, 0) // wanted[name]) for name in wanted),
        )
        if wanted
        else worker["nthreads"]
        for worker in workers
    )


def train_on_cluster(
    client: Any,
    batches: Sequence[Batch],
    resources: Mapping[str, float] | None = None,
    memory_bytes: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Batch, pl.DataFrame]]:
    """Trains batches on a cluster's workers and yields each with its rows, as they are finished.

    A batch whose worker dies is trained by another.  One that fails does not keep the others from
    being finished.

    Args:
        client: see :func:`connect`.
        batches: what to train.
        resources: what a batch needs of a worker's resources, such as ``{"GPU": 1}``.
        memory_bytes: see :func:`isolab.run`.
        stop: asked all the time; when True, batches that no worker has begun are given up.

    Raises:
        ClusterError: batches that failed, after all others were yielded; or a lost scheduler.
    """
    from isolab.sweeps.batch import failure, keys_of

    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waiting = {}
    for number, batch in enumerate(batches):
        future = client.submit(
            _task,
            batch,
            keys_of(batch),
            memory_bytes,
            key=f"isolab-{batch[0].optimizer}-{number}-{secrets.token_hex(8)}",
            resources=dict(resources or {}),
            pure=False,
        )
        waiting[future.key] = (batch, future)
        future.add_done_callback(finished.put)
    failures: list[str] = []
    stopping = False
    try:
        while waiting:
            if stop() and not stopping:
                stopping = True
                begun = _begun(client, [future for _, future in waiting.values()])
                for key, (_, future) in list(waiting.items()):
                    if key not in begun and not future.done():
                        del waiting[key]
                        future.cancel()
                continue
            try:
                future = finished.get(timeout=0.2)
            except queue.Empty:
                if client.status not in ("running", "connecting"):
                    raise ClusterError(LOST) from None
                continue
            if future.key not in waiting:  # given up
                continue
            batch, _ = waiting.pop(future.key)
            if future.status == "finished":
                yield batch, future.result()
            elif future.status == "error":
                failures.append(failure(batch, future.exception()))
            else:
                raise ClusterError(LOST)
            future.release()
    finally:
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing to cancel
            client.cancel([future for _, future in waiting.values()])
    if failures:
        raise ClusterError(f"{len(failures)} of {len(batches)} batches failed: {failures[0]}")


def _task(batch: Batch, keys: list[str], memory_bytes: int | None) -> pl.DataFrame:
    """What a worker does; JAX is loaded here, and by no process that merely passes tasks on."""
    from isolab.sweeps.batch import check_keys, train_batch

    check_keys(batch, keys)
    return train_batch(batch, memory_bytes=memory_bytes)


def _begun(client: Any, futures: list[Any]) -> set[str]:
    """Keys of the tasks that some worker is at."""
    return {key for tasks in client.call_stack(futures).values() for key in tasks}
