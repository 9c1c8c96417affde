"""Arguments that must be whole numbers, checked in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def whole_number(name: str, value: int, low: int, high: int | None = None) -> int:
    """Returns the value as a plain int.

    Raises:
        ValueError: not a whole number of ``low`` to ``high``.
    """
    if not _is_whole(value, low, high):
        raise ValueError(f"{name} is {value!r}; allowed: a whole number {_range(low, high)}")
    return int(value)


def whole_numbers(
    name: str, values: Sequence[int], low: int, high: int | None = None, at_least: int = 1
) -> list[int]:
    """Returns the values as a sorted list of plain ints.

    Raises:
        ValueError: not whole numbers of ``low`` to ``high``, too few, or one given twice.

    Example:
        >>> whole_numbers("widths", [64, 32], low=1, at_least=2)
        [32, 64]
    """
    listed = list(values) if isinstance(values, Sequence | np.ndarray) else [None]
    right = all(_is_whole(value, low, high) for value in listed)
    if not right or len(set(listed)) < max(len(listed), at_least):
        raise ValueError(
            f"{name} is {values!r}; allowed: {at_least} or more different whole numbers"
            f" {_range(low, high)}"
        )
    return sorted(map(int, listed))


def _is_whole(value: Any, low: int, high: int | None) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and low <= value and (high is None or value <= high)


def _range(low: int, high: int | None) -> str:
    return f"of {low} or more" if high is None else f"from {low} to {high}"
