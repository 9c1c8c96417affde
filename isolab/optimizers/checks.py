"""Ranges of hyperparameters, checked where they are plain numbers; traced values pass."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, Final

_Range = tuple[Callable[[Any], bool], str]
_DECAY: Final[_Range] = (lambda x: 0 <= x < 1, "0 or more, below 1")
_SIZE: Final[_Range] = (lambda x: 0 <= x < float("inf"), "0 or more")
_WHOLE: Final[_Range] = (lambda x: x >= 1 and x % 1 == 0, "a whole number of 1 or more")
_ALLOWED: Final = {
    "b1": _DECAY,
    "b2": _DECAY,
    "momentum": _DECAY,
    "eps": _SIZE,
    "damping": _SIZE,
    "refresh_every": _WHOLE,
    "max_side": _WHOLE,
}


def check(**hyperparameters: Any) -> None:
    """Refuses plain numbers out of their range, and a learning rate of None.

    Example:
        >>> check(b1=1.0)
        Traceback (most recent call last):
        ValueError: b1 is 1.0; allowed: 0 or more, below 1
    """
    for name, value in hyperparameters.items():
        if name == "learning_rate" and value is None:
            raise ValueError("learning_rate is None; allowed: a number, a scalar or a schedule")
        if name in _ALLOWED and isinstance(value, numbers.Number):
            fits, allowed = _ALLOWED[name]
            if not fits(value):
                raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
