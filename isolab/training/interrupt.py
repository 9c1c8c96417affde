"""Ctrl-C that waits for work worth keeping."""

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

NAP_SECONDS = 0.002
INSISTED = "stopped at once, at the second Ctrl-C"


class Interrupt:
    """Takes note of Ctrl-C (SIGINT) inside a ``with`` block; a second one stops at once.

    In another thread than the main one, or where SIGINT is ignored, it changes nothing.  The former
    handler is back after the block.

    Args:
        say: called at the first Ctrl-C.
        heed: False to leave Ctrl-C as it is.

    Raises:
        KeyboardInterrupt: from wherever the second Ctrl-C finds the program.

    Example:
        >>> with Interrupt(lambda: print("one moment")) as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.asked()
        one moment
        True
    """

    insisted = False
    """Was there a second Ctrl-C?  Its KeyboardInterrupt alone can be lost: Python swallows what is
    raised inside a garbage collector's callback, and JAX has one."""

    def __init__(self, say: Callable[[], None], heed: bool = True) -> None:
        self._asked = False
        self._say = say
        self._heed = heed
        self._former: Any = None

    def asked(self) -> bool:
        """Returns whether there was a Ctrl-C."""
        return self._asked

    def __enter__(self) -> Interrupt:
        former = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if self._heed and main and former not in (None, signal.SIG_IGN):
            self._former = former
            Interrupt.insisted = False
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
            Interrupt.insisted = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            Interrupt.insisted = True
            raise KeyboardInterrupt(INSISTED)
        self._asked = True
        self._say()


def when_ready(dispatch: Callable[[], T]) -> T:
    """Dispatches work to a device and waits in naps, between which Python hears of Ctrl-C.

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
            if Interrupt.insisted:
                raise KeyboardInterrupt(INSISTED)
            time.sleep(NAP_SECONDS)
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
