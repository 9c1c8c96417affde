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
from typing import Any

NAP_SECONDS = 0.002


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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt("stopped at once, at the second Ctrl-C")
        self._asked = True
        self._say()


def wait_for(array: Any) -> None:
    """Waits for a ``jax.Array`` in naps, between which Python hears of Ctrl-C.

    If that ends the program, its end does not wait for the array either, as JAX's would: nothing
    can stop a device in the midst of a computation.
    """
    try:
        while not array.is_ready():
            time.sleep(NAP_SECONDS)
    except KeyboardInterrupt:
        atexit.register(_leave, array)
        raise


def _leave(array: Any) -> None:
    if not array.is_ready():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + signal.SIGINT)
