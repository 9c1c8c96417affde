"""One run that trains in a thread while the notebook stays free, and tells how it goes.

    RunConfig -> Live, a thread: isolab.training.train.train -> News, again and again -> whoever
    draws

The numbers are those of :func:`isolab.run` to the bit: what looks inside works on copies.  Between
two evaluations no Python runs, so that is how long a stop takes to be heard.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isolab.lab.extras import Extras, in_words, operations_per_window
from isolab.measure.inside import Inside
from isolab.model.corpus import Corpus, load_corpus
from isolab.results.store import Store
from isolab.training.config import RunConfig
from isolab.training.result import Result
from isolab.training.train import Snapshot, arguments_of, train

if TYPE_CHECKING:
    import polars as pl

ENDS = ("finished", "stopped", "diverged", "failed")
"""States of a run that has ended."""

FIRST_WINDOWS = 8
"""Validation windows behind the first point, until all are evaluated."""

LONG_OPERATIONS = 2e10
"""Multiplications of an evaluation that takes long enough to begin with a few windows."""

EXIT_SECONDS = 2.0
"""Longest that the end of the program waits for a run that it stops."""

OnNews = Callable[["News"], None]


@dataclass(frozen=True)
class News:
    """What is known of a run; immutable, and complete each time.

    Attributes:
        config: the run.
        state: "compiling", "training", or how it ended: "finished", "stopped", "diverged" or
            "failed".
        step: updates done.
        steps: updates in all.
        curve_step: steps of the curve so far, from 0.
        curve_train_loss: as in :class:`isolab.training.result.Result`; NaN at step 0 until the
            first
            interval is over, and wherever a diverged run has it.
        curve_validation_loss: nats/token.
        message: how it goes, or how it ended and why, in words.
        inside: the newest look inside, if any.
        before: text that the untrained model writes; None where it has not been asked, or the
            corpus is no text.
        after: text that the trained model writes, at the end.
        row: the run's row in a frame of results, once it is finished or has diverged.
    """

    config: RunConfig
    state: str
    step: int
    steps: int
    curve_step: tuple[int, ...] = ()
    curve_train_loss: tuple[float, ...] = ()
    curve_validation_loss: tuple[float, ...] = ()
    message: str = ""
    inside: Inside | None = None
    before: str | None = None
    after: str | None = None
    row: pl.DataFrame | None = None


class Live:
    """A run in a thread of its own.

    A run that ends by itself is stored; one that is stopped is partial, and is not.

    Args:
        config: what to train.
        on_news: called with each :class:`News`, one call at a time and in order, in the run's
            thread: at the start, after the evaluation at step 0 and after each interval, when
            there is something new inside, and once at the end; where an evaluation takes long,
            also after the first ``FIRST_WINDOWS`` windows of the one at step 0.  What it raises is
            told in the last message and disturbs nothing.
        store: where the result is kept; None to keep nothing.
        inspect: look inside now and then; may be changed while it runs.
        sample: let the model write before and after.

    Attributes:
        news: the newest.
        inspect: see above.
    """

    def __init__(
        self,
        config: RunConfig,
        on_news: OnNews,
        store: Store | None = None,
        inspect: bool = True,
        sample: bool = True,
    ) -> None:
        self.inspect = inspect
        self.news = News(config, "compiling", 0, config.steps, message="compiling")
        self._on_news = on_news
        self._store = store
        self._extras = Extras(config, lambda: self.inspect, sample, self._tell)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isolab-live", daemon=True)

    def start(self) -> None:
        """Starts to train, and returns at once.

        Raises:
            RuntimeError: it was started before.
        """
        _end_with_program()
        self._thread.start()
        _started.add(self)

    def stop(self) -> None:
        """Asks the run to stop after the interval in hand, and returns at once."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        """Waits until the run has ended, at most ``timeout`` seconds."""
        self._thread.join(timeout)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread.is_alive()

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that work for this run now."""
        own = [self._thread] if self.running else []
        return [*own, *self._extras.compiling]

    def _run(self) -> None:
        config, started = self.news.config, time.perf_counter()
        try:
            self._tell()
            corpus = load_corpus(config.corpus)

            def seen(snapshot: Snapshot) -> None:
                self._record(snapshot, time.perf_counter() - started)
                if self._stop.is_set() and snapshot.step < config.steps:
                    raise _Stopped
                self._extras.see(snapshot, corpus)

            if config.validation_windows * operations_per_window(config) > LONG_OPERATIONS:
                self._estimate(corpus)
            (result,) = train([config], corpus, on_snapshot=seen)
            ended = self._kept(result, time.perf_counter() - started)
            self._extras.finish(self._stop.is_set)
            self._tell(**ended)
        except (_Stopped, KeyboardInterrupt):
            after = f"after {time.perf_counter() - started:.1f} s"
            done = f"stopped at step {self.news.step} of {config.steps} {after}; not stored"
            self._tell(state="stopped", message=done)
        except Exception as error:
            self._tell(state="failed", message=in_words(error))

    def _estimate(self, corpus: Corpus) -> None:
        """Tells a point at step 0 from the first windows, in place of which the whole comes."""
        windows = min(FIRST_WINDOWS, self.news.config.validation_windows)
        few = dataclasses.replace(self.news.config, validation_windows=windows)
        program, (traced, _, validation) = arguments_of([few], corpus)
        _, (loss,) = program.init(traced, validation)
        told = f"step 0: {windows} of {self.news.config.validation_windows} validation windows"
        self._tell(
            state="training",
            curve_step=(0,),
            curve_train_loss=(math.nan,),
            curve_validation_loss=(float(loss),),
            message=told,
        )

    def _record(self, seen: Snapshot, seconds: float) -> None:
        """Adds a point to the curve, and tells it."""
        now, steps = self.news, self.news.steps
        if seen.step == 0:  # in place of an estimate
            now = dataclasses.replace(now, curve_step=(), curve_validation_loss=())
        losses = seen.losses[0]
        train_loss: tuple[float, ...] = (math.nan,)
        if losses.size:
            before = now.curve_train_loss if seen.step > losses.size else (float(losses[0]),)
            train_loss = (*before, float(losses.mean()))
        self._tell(
            state="training",
            step=seen.step,
            curve_step=(*now.curve_step, seen.step),
            curve_train_loss=train_loss,
            curve_validation_loss=(*now.curve_validation_loss, float(seen.validation_loss[0])),
            message=f"step {seen.step} of {steps}, {seconds:.1f} s",
        )

    def _kept(self, result: Result, seconds: float) -> dict[str, Any]:
        """Stores a result, and returns what the last news tells of it."""
        from isolab.sweeps.batch import results_frame

        row = results_frame([result])
        stored = "not stored"
        if self._store is not None:
            try:  # a Store of its own: another thread may be reading that one
                store = Store(self._store.folder.path, compact_at=self._store.compact_at)
                missing = store.missing(row["key"].to_list())
                stored = "stored" if missing else "the store has had it already"
                if missing:
                    store.append(row)
            except Exception as error:
                stored = f"not stored: {in_words(error)}"
        after = f"after {seconds:.1f} s"
        loss = f"validation loss {result.final_validation_loss:.3f}"
        message = f"finished {after}: {loss}; {stored}"
        if result.diverged:
            message = f"diverged at step {result.divergence_step}, ended {after}; {stored}"
        return {
            "state": "diverged" if result.diverged else "finished",
            "step": result.curve_step[-1],
            "curve_step": tuple(result.curve_step),
            "curve_train_loss": tuple(result.curve_train_loss),
            "curve_validation_loss": tuple(result.curve_validation_loss),
            "message": message,
            "row": row,
        }

    def _tell(self, **changes: Any) -> None:
        """Makes news, and gives it out."""
        if changes.get("state") in ENDS:
            changes["message"] = "; ".join([changes["message"], *self._extras.notes])
        self.news = dataclasses.replace(self.news, **changes)
        try:
            self._on_news(self.news)
        except Exception as error:
            self._extras.failed("showing news", error)


class _Stopped(Exception):
    """Raised to leave a run that was asked to stop."""


_started: weakref.WeakSet[Live] = weakref.WeakSet()


@functools.cache
def _end_with_program() -> None:
    """Registers, once and after JAX's own, what to do with runs when the program ends."""
    atexit.register(_end_runs)


def _end_runs() -> None:
    """Stops all runs; leaves at once where a device or the compiler does not stop in time.

    A thread that comes back from there to a Python that has ended would crash it.
    """
    until = time.monotonic() + EXIT_SECONDS
    lives = list(_started)
    for live in lives:
        live.stop()
    threads = [thread for live in lives for thread in live.threads]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(hasattr(sys, "last_value")))
