"""Values checked in words: fields of a config by their type hints, and whole numbers.

A hint is ``int``, ``float``, ``bool``, ``str`` or a ``Literal`` of texts; it may have ``| None``
after it, and a number may stand in ``Annotated`` with one :class:`Range` or more.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

_WORDS = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both of them allowed, and how a message calls them."""

    low: float
    high: float
    words: str


Count: TypeAlias = Annotated[int, Range(1, math.inf, "a whole number of 1 or more")]
NonNegative: TypeAlias = Annotated[float, Range(0, math.inf, "0 or more")]


@dataclass(frozen=True)
class _Kind:
    """What a field's type hint allows."""

    type: type  # of a value that is not None: str, bool, int or float
    optional: bool  # whether None is allowed
    choices: tuple[str, ...]  # the only texts that are allowed; () where every text is
    ranges: tuple[Range, ...]  # a number must lie in all of them


def check(config: Any) -> None:
    """Checks every field of a config by its type hint; a whole number in a float field becomes one.

    Raises:
        ValueError: a value of another type or out of range, by field, value and what is allowed.
    """
    config_type: Any = type(config)
    for name, kind in _kinds(config_type).items():
        value = getattr(config, name)
        if isinstance(value, np.generic):  # as of a loop over np.arange
            value = value.item()
            object.__setattr__(config, name, value)
        if value is None and kind.optional:
            continue
        if kind.choices:
            require(config, name, value in kind.choices, f"one of {kind.choices}")
            continue
        types = (int, float) if kind.type is float else kind.type
        right = isinstance(value, types) and (kind.type is bool or not isinstance(value, bool))
        require(config, name, right, _WORDS[kind.type])
        if kind.type is float:
            require(config, name, math.isfinite(value), "a finite number")
            object.__setattr__(config, name, float(value))
        for limits in kind.ranges:
            require(config, name, limits.low <= value <= limits.high, limits.words)


def require(config: Any, name: str, holds: bool, allowed: str) -> None:
    """Raises ``ValueError`` by field, value and what is allowed, unless a condition holds."""
    if not holds:
        raise ValueError(f"{name} is {getattr(config, name)!r}; allowed: {allowed}")


def whole_number(name: str, value: int, low: int, high: float = math.inf) -> int:
    """Returns the value as a plain int.

    Raises:
        ValueError: not a whole number of ``low`` to ``high``.
    """
    if not _is_whole(value, low, high):
        raise ValueError(f"{name} is {value!r}; allowed: a whole number {_range(low, high)}")
    return int(value)


def whole_numbers(
    name: str, values: Sequence[int], low: int, high: float = math.inf, at_least: int = 1
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


def _is_whole(value: Any, low: int, high: float) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and bool(low <= value <= high)


def _range(low: int, high: float) -> str:
    return f"of {low} or more" if high == math.inf else f"from {low} to {high}"


@cache
def _kinds(config: Hashable) -> dict[str, _Kind]:
    """Returns what each field of a dataclass allows, by the field's name."""
    hints = get_type_hints(config, include_extras=True)
    return {name: _kind(hint) for name, hint in hints.items()}


def _kind(hint: Any) -> _Kind:
    if get_origin(hint) is Annotated:
        inner, *ranges = get_args(hint)
        return _Kind(inner, False, (), tuple(ranges))
    if get_origin(hint) is Literal:
        return _Kind(str, False, get_args(hint), ())
    if NoneType in get_args(hint):
        (inner,) = (arg for arg in get_args(hint) if arg is not NoneType)
        kind = _kind(inner)
        return _Kind(kind.type, True, kind.choices, kind.ranges)
    return _Kind(hint, False, (), ())
