"""Ctrl-C that lets the work in hand be finished."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

import jax

T = TypeVar("T")

POLL_SECONDS = 0.002


class Interrupt:
    """Takes note of Ctrl-C (SIGINT) inside a ``with`` block; a second one stops at once.

    In another thread than the main one, or where SIGINT is ignored, it changes nothing.  The former
    handler is back after the block.

    Args:
        on_first: called at the first Ctrl-C.
        enabled: False to leave Ctrl-C as it is.

    Raises:
        KeyboardInterrupt: from wherever the second Ctrl-C finds the program.

    Example:
        >>> with Interrupt(lambda: print("one moment")) as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.requested()
        one moment
        True
    """

    _second = False  # of the whole process: signals are

    def __init__(self, on_first: Callable[[], None], enabled: bool = True) -> None:
        self._requested = False
        self._on_first = on_first
        self._enabled = enabled
        self._former: Any = None

    def requested(self) -> bool:
        """Returns whether there was a Ctrl-C."""
        return self._requested

    @staticmethod
    def check() -> None:
        """Raises the second Ctrl-C's KeyboardInterrupt again, which may have been lost.

        Python swallows what is raised inside a garbage collector's callback, and JAX has one.
        """
        if Interrupt._second:
            raise KeyboardInterrupt("stopped at once, at the second Ctrl-C")

    def __enter__(self) -> Interrupt:
        former = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if self._enabled and main and former not in (None, signal.SIG_IGN):
            self._former = former
            Interrupt._second = False
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            Interrupt._second = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            Interrupt._second = True
            self.check()
        self._requested = True
        self._on_first()


def when_ready(dispatch: Callable[[], T]) -> T:
    """Dispatches work to a device and polls until it is done, so that Python hears of Ctrl-C.

    If Ctrl-C ends the program, its end does not wait for the device either, as JAX's would: nothing
    can stop a device in the midst of a computation.

    Args:
        dispatch: returns a pytree of ``jax.Array`` that may still be computed.

    Returns:
        The pytree, all of it ready.
    """
    result: T | None = None
    try:
        result = dispatch()
        while not _is_ready(result):
            Interrupt.check()
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
