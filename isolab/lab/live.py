"""One run that trains in a thread while the notebook stays free, and reports its state.

The numbers are those of :func:`isolab.run` to the bit: inspections work on copies.  Between two
evaluations no Python runs, so that is how long it takes until a stop is noticed.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.lab.inspection import Inspections, operations_per_window
from isolab.lab.words import error_line
from isolab.measure.inside import Inside
from isolab.model.corpus import Corpus, load_corpus
from isolab.results.store import Store
from isolab.sweeps.batch import results_frame
from isolab.training.config import RunConfig
from isolab.training.program import arguments_of
from isolab.training.train import Result, Snapshot, train

FIRST_WINDOWS = 8  # validation windows behind the first point, until all are evaluated
LONG_OPERATIONS = 2e10  # multiplications of an evaluation that begins with a few windows
EXIT_SECONDS = 2.0  # longest that the end of the program waits for a run that it stops


@dataclass(frozen=True)
class RunState:
    """What is known of a run; immutable, and complete each time."""

    config: RunConfig
    number: int = 1  # of the session's runs
    state: str = "compiling"  # then "training", at last finished, stopped, diverged or failed
    step: int = 0  # updates done
    curve_step: tuple[int, ...] = ()  # from 0
    curve_train_loss: tuple[float, ...] = ()  # nats/token; at 0 NaN until an interval is over
    curve_validation_loss: tuple[float, ...] = ()  # nats/token
    message: str = "compiling"  # how it goes, or how it ended and why
    inside: Inside | None = None  # the newest inspection
    before: str | None = None  # what the untrained model writes, where the corpus is text
    after: str | None = None  # what the trained model writes
    row: pl.DataFrame | None = None  # of a frame of results, once finished or diverged

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("compiling", "training")

    @property
    def diverged(self) -> bool:
        """Whether its losses ended, or ended above where they began."""
        losses = self.curve_validation_loss
        return self.state == "diverged" or any(not math.isfinite(loss) for loss in losses)

    @property
    def outcome(self) -> str:
        """How far it is, in a few words."""
        if self.diverged:
            return "diverged"
        if not self.curve_step:
            return "no loss yet"
        return f"loss {self.curve_validation_loss[-1]:.3f} at step {self.curve_step[-1]}"


class Live(threading.Thread):
    """The thread of a run; one that ends by itself is stored, one that is stopped is not.

    ``on_change`` is called in that thread with each :class:`RunState`, in order: at the start,
    after each evaluation, with a new inspection, and once at the end; where an evaluation takes
    long, also after the first windows of the one at step 0.  What it raises is noted in the last
    message and disturbs nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        on_change: Callable[[RunState], None],
        store: Store | None = None,
        number: int = 1,
    ) -> None:
        super().__init__(name="isolab-live", daemon=True)
        self.now = RunState(config, number)  # the newest state
        self.inspections = Inspections(config, self._report)
        self._on_change, self._store = on_change, store
        self._stopping = threading.Event()
        _made.add(self)

    def stop(self) -> None:
        """Asks the run to stop after the interval in hand, and returns at once."""
        self._stopping.set()

    def run(self) -> None:
        """Trains, in the thread."""
        config, started = self.now.config, time.perf_counter()
        try:
            self._report()
            corpus = load_corpus(config.corpus)
            if config.validation_windows * operations_per_window(config) > LONG_OPERATIONS:
                self._estimate(corpus)

            def on_snapshot(snapshot: Snapshot) -> None:
                self._record(snapshot, time.perf_counter() - started)
                if self._stopping.is_set() and snapshot.step < config.steps:
                    raise _Stopped
                self.inspections.follow(snapshot, corpus)

            (result,) = train([config], corpus, on_snapshot=on_snapshot)
            ended = self._outcome(result, time.perf_counter() - started)
            self.inspections.finish(self._stopping.is_set)
            self._report(**ended)
        except (_Stopped, KeyboardInterrupt):
            after = f"after {time.perf_counter() - started:.1f} s"
            done = f"stopped at step {self.now.step} of {config.steps} {after}; not stored"
            self._report(state="stopped", message=done)
        except Exception as error:
            self._report(state="failed", message=error_line(error))

    def _estimate(self, corpus: Corpus) -> None:
        """Reports a point at step 0 from the first windows, until the whole replaces it."""
        every = self.now.config.validation_windows
        few = dataclasses.replace(self.now.config, validation_windows=min(FIRST_WINDOWS, every))
        program, (traced, _, validation) = arguments_of([few], corpus)
        _, (loss,) = program.init(traced, validation)
        message = f"step 0: {few.validation_windows} of {every} validation windows"
        self._report(state="training", message=message, **_curve([0], [math.nan], [float(loss)]))

    def _record(self, snapshot: Snapshot, seconds: float) -> None:
        """Adds a point to the curve, and reports it."""
        now, losses, step = self.now, snapshot.losses[0], snapshot.step
        if step == 0:  # in place of an estimate
            now = RunState(now.config)
        train_losses = [math.nan]
        if losses.size:
            before = now.curve_train_loss if step > losses.size else (float(losses[0]),)
            train_losses = [*before, float(losses.mean())]
        validation_losses = [*now.curve_validation_loss, float(snapshot.validation_loss[0])]
        curve = _curve([*now.curve_step, step], train_losses, validation_losses)
        message = f"step {step} of {now.config.steps}, {seconds:.1f} s"
        self._report(state="training", message=message, **curve)

    def _outcome(self, result: Result, seconds: float) -> dict[str, Any]:
        """Stores a result, and returns what the last state says of it."""
        row = results_frame([result])
        stored = "not stored"
        if self._store is not None:
            try:  # a Store of its own: another thread may be reading that one
                store = Store(self._store.folder.path, compact_at=self._store.compact_at)
                stored = "the store has had it already"
                if store.keys().isdisjoint(row["key"]):
                    store.append(row)
                    stored = "stored"
            except Exception as error:
                stored = f"not stored: {error_line(error)}"
        after = f"after {seconds:.1f} s"
        message = f"finished {after}: validation loss {result.final_validation_loss:.3f}; {stored}"
        if result.diverged:
            message = f"diverged at step {result.divergence_step}, ended {after}; {stored}"
        state = "diverged" if result.diverged else "finished"
        curve = _curve(result.curve_step, result.curve_train_loss, result.curve_validation_loss)
        return {"state": state, "message": message, "row": row, **curve}

    def _report(self, **changes: Any) -> None:
        """Makes a new state, and hands it out."""
        now = dataclasses.replace(self.now, **changes)
        if not now.live:
            message = "; ".join([now.message, *self.inspections.problems.values()])
            now = dataclasses.replace(now, message=message)
        self.now = now
        self.inspections.attempt("showing the run", self._on_change, now)


def _curve(
    steps: Sequence[int], train_losses: Sequence[float], validation_losses: Sequence[float]
) -> dict[str, Any]:
    return {
        "step": steps[-1],
        "curve_step": tuple(steps),
        "curve_train_loss": tuple(train_losses),
        "curve_validation_loss": tuple(validation_losses),
    }


class _Stopped(Exception):
    """Raised to leave a run that was asked to stop."""


_made: weakref.WeakSet[Live] = weakref.WeakSet()


@atexit.register  # after JAX's own, so called before it
def _end_runs() -> None:
    """Stops all runs; leaves at once where a device or the compiler does not stop in time.

    A thread that comes back from there to a Python that has ended would crash it.
    """
    until = time.monotonic() + EXIT_SECONDS
    runs = [run for run in _made if run.is_alive()]
    for run in runs:
        run.stop()
    threads = [thread for run in runs for thread in (run, *run.inspections.threads)]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(hasattr(sys, "last_value")))
