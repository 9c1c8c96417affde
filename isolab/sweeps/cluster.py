"""Batches on the workers of a dask cluster; rows come back as they are finished."""

from __future__ import annotations

import contextlib
import queue
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.results.provenance import PACKAGE
from isolab.sweeps.batch import Batch, keys_of, train_batch
from isolab.sweeps.plan import batch_operations
from isolab.training.interrupt import check_interrupt
from isolab.training.program import program_of

CONNECT_SECONDS = 5  # longest wait for a scheduler before it counts as unreachable
LOST = (
    "the dask scheduler is gone, or has cancelled a batch; what came back is kept, and the same"
    " call goes on from there"
)


class ClusterError(RuntimeError):
    """Raised when a batch could not be trained by another process; says which, and why."""


def connect(address: str, seconds: float | None = None) -> Any:
    """Returns a dask client of the scheduler at an address, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ClusterError: not an address, or no scheduler answers there within ``CONNECT_SECONDS``.
    """
    import distributed

    client: Any = distributed.Client
    try:
        return client(address, timeout=seconds or CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
        raise ClusterError(
            f"no dask scheduler answers at {address!r} ({str(error) or type(error).__name__});"
            " allowed: an address such as 'tcp://10.0.0.1:8786', as `dask scheduler` prints it"
        ) from None


def slots(client: Any, resources: Mapping[str, float] | None) -> int:
    """Returns how many batches the cluster's present workers can train at the same time."""
    needs = {name: number for name, number in (resources or {}).items() if number > 0}
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(
        int(min([w["nthreads"], *(w["resources"].get(n, 0) // needs[n] for n in needs)]))
        for w in workers
    )


def train_on_client(
    client: Any,
    batches: Sequence[Batch],
    memory_bytes: int | None,
    stop: Callable[[], bool],
    on_progress: Callable[[Batch, float, np.ndarray], None],
    resources: Mapping[str, float] | None = None,
    processes: int | None = None,
) -> Generator[tuple[Batch, pl.DataFrame]]:
    """Trains batches on a dask client's workers and yields each with its rows, when finished.

    A batch whose worker dies is trained by another.  One that fails does not keep the others from
    being finished.

    Args:
        client: see :func:`connect`.
        batches, memory_bytes, resources: see :func:`isolab.run`.
        stop: asked all the time; when True, batches that no worker has begun are given up.
        on_progress: called, in the caller's thread, after each evaluation interval with the batch,
            the share of it that is done, and its runs' validation losses.
        processes: how many workers there are, if all are on one machine and share its memory; each
            then stays with the programs that it has compiled.

    Raises:
        ClusterError: batches that failed, after all others were yielded; or a lost scheduler.
        KeyboardInterrupt: the second Ctrl-C.
    """
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (number of a batch, progress or None)
    topic = f"isolab-{secrets.token_hex(8)}"
    client.subscribe_topic(topic, lambda event: news.put(event[1]))
    waiting = Waiting(batches)
    running: dict[int, Any] = {}  # futures
    failures: list[str] = []
    stopping = False

    def submit(worker: str | None) -> None:
        number = waiting.take(worker)
        batch = batches[number]
        task = (batch, keys_of(batch), memory_bytes, processes or 1, (topic, number))
        options = {"key": f"{topic}-{number}", "resources": dict(resources or {}), "pure": False}
        running[number] = client.submit(train_task, *task, **options)
        running[number].add_done_callback(lambda _: news.put((number, None)))

    try:
        for _ in range(min(processes or len(batches), len(batches))):
            submit(None)
        while running:
            check_interrupt()
            if stop() and not stopping:
                stopping = True
                waiting.clear()
                _cancel_what_waits(client, running)
            try:
                number, progress = news.get(timeout=0.2)
            except queue.Empty:
                if client.status not in ("running", "connecting"):
                    raise ClusterError(LOST) from None
                continue
            if number not in running:  # given up
                continue
            if progress is not None:
                on_progress(batches[number], progress[0], np.array(progress[1]))
                continue
            future = running.pop(number)
            if future.status == "finished":
                worker, frame = future.result()
                waiting.finished(number, worker)
                if waiting:
                    submit(worker)
                yield batches[number], frame
            elif future.status == "error":
                failures.append(_failure(batches[number], future.exception()))
                if waiting:
                    submit(None)
            else:
                raise ClusterError(LOST)
    finally:
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing to cancel
            client.cancel(list(running.values()))
    if failures:
        raise ClusterError(f"{len(failures)} of {len(batches)} batches failed: {failures[0]}")


def train_task(
    batch: Batch,
    keys: list[str],
    memory_bytes: int | None,
    processes: int,
    news: tuple[str, int],
) -> tuple[str, pl.DataFrame]:
    """Trains a batch on a dask worker; returns its address and the rows, and tells of progress.

    Raises:
        ValueError: the corpus and code here give other keys than the caller's.
    """
    from distributed import get_worker

    worker, (topic, number) = get_worker(), news

    def report(share: float, losses: np.ndarray) -> None:
        worker.log_event(topic, (number, (share, losses.tolist())))

    if keys_of(batch) != keys:
        raise ValueError(
            f"the corpus {batch[0].corpus!r} (or isolab, at {PACKAGE}) of this"
            " worker is not the caller's: the same Python, isolab and files are needed on both"
        )
    return worker.address, train_batch(batch, memory_bytes, report, processes)


class Waiting:
    """Numbers of batches that wait for a worker.

    The costliest come first, but a worker stays with the programs that it has compiled; the next
    program is the one with most work left for each worker that has it.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._programs = [(program_of(batch[0]), len(batch)) for batch in batches]
        self._costs = [batch_operations(batch) for batch in batches]
        self._numbers = sorted(range(len(batches)), key=lambda number: -self._costs[number])
        self._compiled: defaultdict[str | None, set[Any]] = defaultdict(set)  # by worker
        self._holders: Counter[Any] = Counter()  # workers that have a program
        self.clear = self._numbers.clear

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, worker: str | None) -> int:
        """Removes and returns the batch that a worker should train next; None: one unknown yet."""
        left: defaultdict[Any, float] = defaultdict(float)
        for number in self._numbers:
            program = self._programs[number]
            if program in self._compiled[worker]:
                break
            left[program] += self._costs[number]
        else:
            program = max(left, key=lambda p: left[p] / (1 + self._holders[p]))
            number = next(n for n in self._numbers if self._programs[n] == program)
            self._holders[program] += 1
        self._numbers.remove(number)
        return number

    def finished(self, number: int, worker: str) -> None:
        """Takes note that a worker has trained a batch."""
        self._compiled[worker].add(self._programs[number])


def _cancel_what_waits(client: Any, running: dict[int, Any]) -> None:
    """Cancels and drops the futures that no worker is at."""
    stacks = client.call_stack(list(running.values())).values()
    begun = {key for tasks in stacks for key in tasks}
    for number, future in list(running.items()):
        if future.key not in begun and not future.done():
            running.pop(number).cancel()


def _failure(batch: Batch, error: Any) -> str:
    """Returns what to tell of a batch that failed elsewhere: which runs, and why."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        deaths = error.allowed_failures + 1
        error = ClusterError(f"{deaths} workers died over it (perhaps memory ran out)")
    first, kind = batch[0], type(error).__name__
    return (
        f"{len(batch)} runs of {first.optimizer} at width {first.width}, {first.steps} steps:"
        f" {kind}: {str(error).strip() or kind}"
    )
