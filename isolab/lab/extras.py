"""What is looked at beside training: the inside of a run, and text that its model writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from isolab.measure.inside import inspect_run, prepare_inspection
from isolab.model.corpus import Corpus
from isolab.training.config import RunConfig
from isolab.training.train import Snapshot, TrainState
from isolab.training.writing import is_text, prepare_writing, write

LOOK_SECONDS = 1.0
"""Least time from one look inside to the next."""

LOOK_SHARE = 0.2
"""Largest share of a run's time that looks inside take, but for the last."""

PROMPT_SECONDS = 0.05
"""How long training waits for programs that may have been compiled before."""

SAMPLE_LENGTH = 160
SAMPLE_OPERATIONS = 2e10
"""A sample is shorter where it would take more multiplications than this."""


class Extras:
    """Looks and samples of one run, made on copies of its state between two intervals of training.

    Their programs are compiled in threads of their own, so that training does not wait for them;
    until they are compiled there is nothing to see.  What fails here is noted, and ends nothing.

    Args:
        config: the run.
        inspects: asked each time whether to look inside.
        samples: write before and after training, where the corpus is text.
        tell: called with ``inside``, ``before`` or ``after`` as they come.

    Attributes:
        notes: what failed, in words.
    """

    def __init__(
        self,
        config: RunConfig,
        inspects: Callable[[], bool],
        samples: bool,
        tell: Callable[..., None],
    ) -> None:
        self.notes: list[str] = []
        self._config = config
        self._inspects = inspects
        self._samples = samples
        self._tell = tell
        self._length = sample_length(config)
        self._compiling: dict[str, threading.Thread] = {}
        self._failed: set[str] = set()
        self._first: Any = None  # parameters, until they have written
        self._last: tuple[int, TrainState] | None = None
        self._due = 0.0  # when to look again
        self._looked = -1

    def see(self, snapshot: Snapshot, corpus: Corpus) -> None:
        """Looks at a run after an interval, where it is time to."""
        self._corpus = corpus
        self._samples &= is_text(corpus)
        if snapshot.step == 0 and self._samples:
            self._first = snapshot.run().params
        if snapshot.step == self._config.steps:
            self._last = snapshot.step, snapshot.run()
        if self._ready("sample", self._samples):
            self._write_first()
        if self._ready("look inside", self._inspects()) and time.monotonic() >= self._due:
            self._look(snapshot.step, snapshot.run())

    def finish(self, given_up: Callable[[], bool]) -> None:
        """Looks at what was reached, once the programs for it are compiled, unless given up."""
        if self._last is None:  # the run became NaN before its end
            return
        (step, state), self._last = self._last, None
        self._ready("look inside", self._inspects())
        while self.compiling and not given_up():
            time.sleep(0.02)
        if given_up():
            return
        if self._ready("look inside", self._inspects()) and self._looked < step:
            self._look(step, state)
        if self._ready("sample", self._samples):
            self._write_first()
            self._write("after", state.params)

    @property
    def compiling(self) -> list[threading.Thread]:
        """The threads that compile programs."""
        return [thread for thread in self._compiling.values() if thread.is_alive()]

    def failed(self, what: str, error: Exception) -> None:
        """Notes a failure; of one kind, the first."""
        if what not in self._failed:
            self._failed.add(what)
            self.notes.append(f"{what} failed: {in_words(error)}")

    def _ready(self, what: str, wanted: bool) -> bool:
        """Is it wanted, and its program compiled?  If not yet, it is begun."""
        if not wanted or what in self._failed:
            return False
        if what not in self._compiling:
            thread = threading.Thread(target=self._compile, args=(what,), daemon=True)
            self._compiling[what] = thread
            thread.start()
            thread.join(PROMPT_SECONDS)
        return not self._compiling[what].is_alive() and what not in self._failed

    def _compile(self, what: str) -> None:
        try:
            if what == "sample":
                prepare_writing(self._config, self._length, self._corpus)
            else:
                prepare_inspection(self._config, self._corpus)
        except Exception as error:
            self.failed(what, error)

    def _look(self, step: int, state: TrainState) -> None:
        begun = time.monotonic()
        try:
            inside = inspect_run(self._config, state, step, self._corpus)
        except Exception as error:
            self.failed("look inside", error)
            return
        self._looked, now = step, time.monotonic()
        self._due = now + max(LOOK_SECONDS, (now - begun) * (1 / LOOK_SHARE - 1))
        self._tell(inside=inside)

    def _write_first(self) -> None:
        if self._first is not None:
            params, self._first = self._first, None
            self._write("before", params)

    def _write(self, when: str, params: Any) -> None:
        try:
            text = write(self._config, params, length=self._length, corpus=self._corpus)
        except Exception as error:
            self.failed("sample", error)
        else:
            self._tell(**{when: printable(text)})


def sample_length(config: RunConfig) -> int:
    """Returns how many bytes a sample of this run's model has.

    Example:
        >>> sample_length(RunConfig(width=64)), sample_length(RunConfig(width=512))
        (160, 49)
    """
    return max(40, min(SAMPLE_LENGTH, int(SAMPLE_OPERATIONS / operations_per_window(config))))


def operations_per_window(config: RunConfig) -> int:
    """Returns how many multiplications the layers' matrices make for one window of context.

    Example:
        >>> operations_per_window(RunConfig(width=64, depth=2, context=64))
        6291456
    """
    matrices = (4 + 2 * config.mlp_ratio) * config.width**2
    return config.context * config.depth * matrices


def printable(text: str) -> str:
    r"""Returns a text with a mark, as for wrong bytes, in place of what cannot be shown.

    Example:
        >>> printable("a\x00b\n") == "a\ufffdb\n"
        True
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def in_words(error: BaseException, most: int = 500) -> str:
    """Returns an error as one line, ``ValueError: what was wrong``.

    Example:
        >>> in_words(KeyError("width"))
        "KeyError: 'width'"
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"
