"""Ctrl-C that lets the work in hand be finished."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")

POLL_SECONDS = 0.002

_second: list[int] = []  # the second Ctrl-C; of the whole process, as signals are


@contextlib.contextmanager
def interrupt(on_first: Callable[[], None], enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Takes note of Ctrl-C (SIGINT), and yields a function that says whether there was one.

    A second one raises KeyboardInterrupt from wherever it finds the program.  In another thread
    than the main one, where SIGINT is ignored, or where it is not enabled, nothing changes.

    Example:
        >>> with interrupt(lambda: print("one moment")) as requested:
        ...     signal.raise_signal(signal.SIGINT)
        ...     requested()
        one moment
        True
    """
    heard: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if heard:
            _second.append(number)
            check_interrupt()
        heard.append(number)
        on_first()

    former = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (enabled and main) or former in (None, signal.SIG_IGN):
        yield lambda: False
        return
    _second.clear()
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, former)
        _second.clear()


def check_interrupt() -> None:
    """Raises the second Ctrl-C's KeyboardInterrupt again, which may have been lost.

    Python swallows what is raised inside a garbage collector's callback, and JAX has one.
    """
    if _second:
        raise KeyboardInterrupt("stopped at once, at the second Ctrl-C")


def when_ready(dispatch: Callable[[], T]) -> T:
    """Dispatches work to a device and polls until it is done, so that Python hears of Ctrl-C.

    If Ctrl-C ends the program, its end does not wait for the device either, as JAX's would: nothing
    can stop a device in the midst of a computation.

    ``dispatch`` returns a pytree of ``jax.Array`` that may still be computed; what is returned here
    is ready.
    """
    result: T | None = None
    try:
        result = dispatch()
        while not _is_ready(result):
            check_interrupt()
            time.sleep(POLL_SECONDS)
        return result
    except KeyboardInterrupt:
        atexit.register(_leave, result)
        raise


def _is_ready(result: Any) -> bool:
    return all(array.is_ready() for array in jax.tree.leaves(result))


def _leave(result: Any) -> None:
    if result is None or not _is_ready(result):  # None: stopped while dispatching
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGINT)
