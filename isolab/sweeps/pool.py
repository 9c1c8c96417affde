"""Sweeps on several processes of this machine: each trains whole batches on cores of its own.

XLA's threads cost more than they bring while products are small, so that N processes of one core
train more runs a second than one process of N cores.

    caller, a thread for each worker  -- batch ------------------------------>  worker's stdin
                                      <- ("step" | "done" | "failed", value) -  worker's stdout

A worker is this file started anew, and never loads the caller's main module: notebooks and scripts
without a guard can be the caller.  It does not hear Ctrl-C, and ends where its stdin does: when
nothing is left to do, or the caller is gone, however that came.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the worker chooses its cores before it loads JAX, which counts them
    import polars as pl

    from isolab.sweeps.batch import Batch
    from isolab.training.train import Report

    Job = tuple[Batch, list[str]]  # and the keys of its runs

ATTEMPTS = 3
"""Workers that may die over a batch before it is given up."""

END_SECONDS = 10
"""Longest wait for a worker to end by itself."""

WORKER = (
    "import sys; sys.path[:] = sys.argv[2:]; from isolab.sweeps.pool import work; work(sys.argv[1])"
)


class PoolError(RuntimeError):
    """Raised when a batch could not be trained in a process of its own; says which, and why."""


def process_count(processes: int | Literal["auto"] | None, batches: int | None = None) -> int:
    """Returns how many processes train batches; None asks for this one alone.

    "auto" is one for each core, but no more than there are batches; one with an accelerator, which
    runs side by side fill by themselves.

    Args:
        processes: what was asked for.
        batches: how many there are to train, where that is known.

    Raises:
        ValueError: no whole number of 1 or more, or more than one where there is an accelerator.

    Example:
        >>> process_count(None), process_count(3), process_count("auto", batches=1)
        (1, 3, 1)
    """
    import jax

    if processes is None:
        return 1
    if processes == "auto":
        cores = len(own_cores()) if jax.default_backend() == "cpu" else 1
        return cores if batches is None else max(1, min(cores, batches))
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise ValueError(
            f"processes is {processes!r}; allowed: None, 'auto', or a whole number of 1 or more"
        )
    if processes > 1 and jax.default_backend() != "cpu":
        raise ValueError(
            f"processes is {processes} with a {jax.default_backend()} backend; allowed: 1, since"
            " processes cannot share an accelerator (one trains runs side by side there)"
        )
    return processes


def own_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shares(cores: Sequence[int], processes: int) -> list[Sequence[int]]:
    """Deals cores out to processes; where they are too few, some processes share one.

    Example:
        >>> shares([0, 1, 2, 3, 4], 2), shares([4, 5], 3)
        ([[0, 1], [2, 3, 4]], [[4], [4], [5]])
    """
    cuts = [i * len(cores) // processes for i in range(processes + 1)]
    return [cores[start : max(end, start + 1)] for start, end in itertools.pairwise(cuts)]


def train_in_processes(
    batches: Sequence[Batch],
    processes: int,
    memory_bytes: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Batch, float, Report], None] | None = None,
) -> Generator[tuple[Batch, pl.DataFrame]]:
    """Trains batches in processes and yields each with its rows, as they are finished.

    The costliest come first, but a process stays with the programs that it has compiled.  A batch
    whose process dies is trained by another.  One that fails does not keep the others from being
    finished.  A generator that is closed, or left by an exception, kills its processes.

    Args:
        batches: what to train.
        processes: how many train at the same time; each on its share of this process's cores.
        memory_bytes: what all of them together may take, see :func:`isolab.run`.
        stop: asked all the time; when True, batches that no process has begun are given up.
        on_progress: called, in the caller's thread, after each evaluation interval with the batch,
            the share of it that is done, and the interval's report.

    Raises:
        PoolError: batches that failed, or whose process died ``ATTEMPTS`` times, after all others
            were yielded; or at once, where processes cannot be started.
        KeyboardInterrupt: the second Ctrl-C.
    """
    from isolab.training.interrupt import INSISTED, Interrupt

    pool = _Pool(batches, min(processes, len(batches)), memory_bytes)
    failures: list[str] = []
    try:
        pool.start()
        while pool.serving:
            if Interrupt.insisted:
                raise KeyboardInterrupt(INSISTED)
            if stop():
                pool.give_up()
            try:
                kind, number, value = pool.news.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind == "step" and on_progress is not None:
                on_progress(batches[number], *value)
            elif kind == "done":
                yield batches[number], value
            elif kind == "failed":
                failures.append(value)
            elif kind == "broken":
                raise value
            elif kind == "end":
                pool.serving -= 1
    finally:
        pool.kill()
    if failures:
        raise PoolError(f"{len(failures)} of {len(batches)} batches failed: {failures[0]}")


class _Pool:
    """Batches that wait, and a thread for each worker that feeds it, hears it and replaces it.

    Attributes:
        news: what the threads tell: (kind, number of the batch, value).
        serving: threads that have not told their end yet.
    """

    def __init__(self, batches: Sequence[Batch], processes: int, memory_bytes: int | None) -> None:
        import jax

        from isolab.sweeps.batch import keys_of
        from isolab.sweeps.plan import batch_operations
        from isolab.training.train import program_of

        self.news: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.serving = 0
        self._batches = batches
        self._keys = [keys_of(batch) for batch in batches]
        self._programs = [(program_of(batch[0]), len(batch)) for batch in batches]
        self._cost = [batch_operations(batch) for batch in batches]
        self._waiting = sorted(range(len(batches)), key=lambda number: -self._cost[number])
        self._deaths = [0] * len(batches)
        self._compiled: list[set[Any]] = [set() for _ in range(processes)]
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopping = self._killed = False
        self._lock = threading.Lock()
        here = jax.config.values
        plain = (bool, int, float, str, type(None))
        self._settings = {
            "config": {name: here[name] for name in here if isinstance(here[name], plain)},
            "memory_bytes": memory_bytes,
            "processes": processes,
        }

    def start(self) -> None:
        """Starts the threads, and with them the workers."""
        for place, share in enumerate(shares(own_cores(), len(self._compiled))):
            threading.Thread(target=self._serve, args=(place, share), daemon=True).start()
            self.serving += 1

    def give_up(self) -> None:
        """Drops what no worker has begun."""
        with self._lock:
            self._stopping = True
            self._waiting.clear()

    def kill(self) -> None:
        """Ends everything at once; no worker is left when it returns."""
        self.give_up()
        with self._lock:
            self._killed = True
            for worker in self._workers:
                worker.kill()
        while self.serving:
            self.serving -= self.news.get()[0] == "end"

    def _serve(self, place: int, cores: Sequence[int]) -> None:
        if hasattr(signal, "pthread_sigmask"):  # inherited, so no worker hears Ctrl-C ever
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker = None
        try:
            while (number := self._take(place)) is not None:
                if worker is None:
                    worker = self._hire(cores)
                try:
                    for kind, value in _train(worker, (self._batches[number], self._keys[number])):
                        self.news.put((kind, number, value))
                except (EOFError, OSError, pickle.UnpicklingError):
                    code, worker = self._dismiss(worker), None
                    self._compiled[place].clear()
                    self._died(number, code)
        except BaseException as error:
            self.news.put(("broken", -1, error))
        finally:
            if worker is not None:
                self._dismiss(worker)
            self.news.put(("end", -1, None))

    def _take(self, place: int) -> int | None:
        """A waiting batch: of a program compiled there, else of the one with most left a worker."""
        with self._lock:
            left: dict[Any, float] = {}
            for number in self._waiting:
                program = self._programs[number]
                if program in self._compiled[place]:
                    break
                left[program] = left.get(program, 0.0) + self._cost[number]
            else:
                if not left:
                    return None
                having = {p: 1 + sum(p in compiled for compiled in self._compiled) for p in left}
                program = max(left, key=lambda p: left[p] / having[p])
                number = next(n for n in self._waiting if self._programs[n] == program)
                self._compiled[place].add(program)
            self._waiting.remove(number)
            return number

    def _hire(self, cores: Sequence[int]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, ",".join(map(str, cores)), *map(str, sys.path)]
        pipe = subprocess.PIPE
        with self._lock:
            worker = subprocess.Popen(command, stdin=pipe, stdout=pipe)
            self._workers.append(worker)
            if self._killed:  # all others are; nobody else would kill this one
                worker.kill()
        with contextlib.suppress(OSError):  # it is dead: the first batch will tell
            _write(worker.stdin, self._settings)
        return worker

    def _dismiss(self, worker: subprocess.Popen[bytes]) -> int:
        """Lets a worker end, and returns its exit code; below 0 it is that of a signal."""
        with contextlib.suppress(OSError):  # what was written to a dead worker
            if worker.stdin is not None:
                worker.stdin.close()
        try:
            code = worker.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()
        with self._lock:
            self._workers.remove(worker)
        return code

    def _died(self, number: int, code: int) -> None:
        """Takes note of a batch whose worker is dead."""
        from isolab.sweeps.batch import failure

        if code == 1:  # Python's own, where it cannot load isolab; work() catches what comes later
            raise PoolError(
                f"a process for batches, started by {sys.executable!r}, ended at once; what it"
                " wrote to standard error says why"
            )
        self._deaths[number] += 1
        if self._deaths[number] < ATTEMPTS:
            with self._lock:
                if not self._stopping:
                    self._waiting.insert(0, number)
            return
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error = PoolError(
            f"{ATTEMPTS} processes died over it, the last {how} (9: perhaps memory ran out)"
        )
        self.news.put(("failed", number, failure(self._batches[number], error)))


def _train(worker: subprocess.Popen[bytes], job: Job) -> Iterator[tuple[str, Any]]:
    """Sends a batch, with its keys, and yields what the worker tells until it is done with it.

    Raises:
        EOFError, OSError, pickle.UnpicklingError: the worker is dead.
    """
    assert worker.stdout is not None
    _write(worker.stdin, job)
    kind = "step"
    while kind == "step":
        kind, value = pickle.load(worker.stdout)
        yield kind, value


def _write(file: Any, message: Any) -> None:
    pickle.dump(message, file)
    file.flush()


def work(cores: str) -> None:
    """What a worker does until its stdin ends; ``cores`` are its own, as ``"0,1"``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    else:
        os.environ["NPROC"] = str(len(cores.split(",")))  # XLA asks for it
    jobs = os.fdopen(os.dup(0), "rb")
    news = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # no library reads the batches,
    os.dup2(2, 1)  # or writes among the answers
    try:
        settings = pickle.load(jobs)
    except EOFError:
        return
    import jax

    for name, value in settings["config"].items():
        if jax.config.values[name] != value:
            jax.config.update(name, value)
    from isolab.sweeps.batch import check_keys, failure, train_batch

    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs, waiting), daemon=True).start()

    def tell(kind: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the end of stdin comes next
            _write(news, (kind, value))

    while True:
        batch, keys = waiting.get()
        try:
            check_keys(batch, keys)  # isolab's files may have changed since the caller loaded them
            frame = train_batch(
                batch,
                settings["memory_bytes"],
                lambda _, share, report: tell("step", (share, report)),
                settings["processes"],
            )
        except Exception as error:
            tell("failed", failure(batch, error))
        else:
            tell("done", frame)


def _listen(jobs: Any, waiting: queue.SimpleQueue[Job]) -> None:
    """Passes batches on, and ends the process with them, also in the midst of training."""
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            waiting.put(pickle.load(jobs))
    sys.stderr.flush()
    os._exit(0)
