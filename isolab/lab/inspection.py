"""What is measured inside a run while it trains, and the text that its model writes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from isolab.lab.words import error_line
from isolab.measure.inside import inspect_run, prepare_inspection
from isolab.model.corpus import Corpus
from isolab.training import writing
from isolab.training.config import RunConfig
from isolab.training.program import TrainState
from isolab.training.train import Snapshot

INSPECTION_SECONDS = 1.0  # least time from one inspection to the next
INSPECTION_SHARE = 0.2  # largest share of a run's time that inspections take, but for the last
PROMPT_SECONDS = 0.05  # how long training waits for a program that may have been compiled before
SAMPLE_LENGTH = 160  # bytes
SAMPLE_OPERATIONS = 2e10  # a sample is shorter where it would take more multiplications


class Inspections:
    """Inspections and samples of one run, made on copies of its state between two intervals.

    Their programs are compiled in threads of their own, so that training does not wait for them;
    until they are compiled there is nothing to see.  What fails here is noted, and ends nothing.
    """

    def __init__(self, config: RunConfig, report: Callable[..., None]) -> None:
        self.problems: dict[str, str] = {}  # what failed, in words; of one kind, the first
        self._config = config
        self._report = report  # called with ``inside``, ``before`` or ``after`` as they come
        self._length = sample_length(config)
        self._compilations: dict[str, threading.Thread] = {}
        self._corpus: Corpus | None = None
        self._writers: dict[str, Any] = {}  # parameters that are still to write
        self._last: TrainState | None = None
        self._due = 0.0  # when to inspect again
        self._inspected = -1  # the step at which it was

    def follow(self, snapshot: Snapshot, corpus: Corpus) -> None:
        """Inspects a run after an interval, where it is time to."""
        if snapshot.step == 0:
            self._corpus = corpus
            if writing.is_text(corpus):
                self._writers["before"] = snapshot.run().params
                sample = self._config, self._length, corpus
                self._compile("sample", writing.prepare_writing, *sample)
            self._compile("inspection", prepare_inspection, self._config, corpus)
        if snapshot.step == self._config.steps:
            self._last = snapshot.run()
        self._write()
        if self._ready("inspection") and time.monotonic() >= self._due:
            self._inspect(snapshot.step, snapshot.run())

    def finish(self, given_up: Callable[[], bool]) -> None:
        """Inspects what was reached, once the programs for it are compiled, unless given up."""
        if self._last is None:  # the run became NaN before its end
            return
        while self.threads and not given_up():
            time.sleep(0.02)
        if given_up():
            return
        if self._inspected < self._config.steps and self._ready("inspection"):
            self._inspect(self._config.steps, self._last)
        self._writers["after"] = self._last.params
        self._write()

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that are compiling."""
        return [thread for thread in list(self._compilations.values()) if thread.is_alive()]

    def attempt(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what a function returns; None, and the problem noted, where it raises."""
        try:
            return function(*arguments)
        except Exception as error:
            self.problems.setdefault(what, f"{what} failed: {error_line(error)}")
            return None

    def _compile(self, what: str, *call: Any) -> None:
        thread = threading.Thread(target=self.attempt, args=(what, *call), daemon=True)
        self._compilations[what] = thread
        thread.start()
        thread.join(PROMPT_SECONDS)

    def _ready(self, what: str) -> bool:
        compilation = self._compilations.get(what)
        return bool(compilation and not compilation.is_alive() and what not in self.problems)

    def _inspect(self, step: int, state: TrainState) -> None:
        begun = time.monotonic()
        inside = self.attempt("inspection", inspect_run, self._config, state, step, self._corpus)
        if inside is not None:
            self._inspected, now = step, time.monotonic()
            pause = (now - begun) * (1 / INSPECTION_SHARE - 1)
            self._due = now + max(INSPECTION_SECONDS, pause)
            self._report(inside=inside)

    def _write(self) -> None:
        """Lets the parameters write that have not yet, if their program is compiled."""
        while self._writers and self._ready("sample"):
            when = next(iter(self._writers))
            write = functools.partial(writing.write, length=self._length, corpus=self._corpus)
            text = self.attempt("sample", write, self._config, self._writers.pop(when))
            if text is not None:
                self._report(**{when: printable(text)})


def sample_length(config: RunConfig) -> int:
    """Returns how many bytes a sample of this run's model has: fewer of a large model.

    Example:
        >>> sample_length(RunConfig(width=64)), sample_length(RunConfig(width=512))
        (160, 49)
    """
    return max(40, min(SAMPLE_LENGTH, int(SAMPLE_OPERATIONS / operations_per_window(config))))


def operations_per_window(config: RunConfig) -> int:
    """Returns how many multiplications the layers' matrices make for one window of context."""
    matrices = (4 + 2 * config.mlp_ratio) * config.width**2
    return config.context * config.depth * matrices


def printable(text: str) -> str:
    """Returns a text with a mark, as for wrong bytes, in place of what cannot be shown."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
