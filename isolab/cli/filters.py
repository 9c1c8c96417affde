"""Conditions on the columns of stored runs, as typed on a command line; nothing is evaluated.

    NAME OP VALUE          OP is one of = != < <= > >=
    NAME in VALUE,VALUE    any of these
    NAME, not NAME         a column of true and false

A value has its column's type: a number may be a power (``2**-7``), a time is UTC (``2026-01-31``,
``2026-01-31T18:30``), and ``null`` is the absence of a value.
"""

from __future__ import annotations

import datetime
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import polars as pl

_CONDITION: Final = re.compile(
    r"\s*(?P<name>\w+)\s*(?:(?P<operator><=|>=|!=|==?|<|>|\bin\b)\s*(?P<value>.*?))?\s*", re.DOTALL
)
_NEGATED: Final = re.compile(r"\s*not\s+(?P<name>\w+)\s*")
_POWER: Final = re.compile(r"\s*([^*]+?)\s*\*\*\s*([^*]+?)\s*")
_ORDER: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SHOWN: Final = 12  # of the values that a column holds, in a message
_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Filter:
    """One condition.

    Attributes:
        column: name of a column.
        operator: "=", "!=", "<", "<=", ">", ">=" or "in".
        values: one value, or any number of them for "in"; None for ``null``.
    """

    column: str
    operator: str
    values: tuple[Any, ...]

    def expression(self) -> pl.Expr:
        """Returns the condition as a boolean polars expression without nulls.

        A row whose value is null satisfies no order, ``= null`` and any ``!=`` but ``!= null``.
        """
        column = pl.col(self.column)
        if self.operator in _ORDER:
            ordered: pl.Expr = _ORDER[self.operator](column, self.values[0])
            return ordered.fill_null(False)
        equal = functools.reduce(
            operator.or_, (column.eq_missing(pl.lit(value)) for value in self.values)
        )
        return ~equal if self.operator == "!=" else equal

    def unmatched(self, frame: pl.DataFrame) -> str | None:
        """Returns what the column holds, where it holds none of the texts that were asked for.

        Only for text and "=" or "in", where a value that was never stored may be a slip.
        """
        texts = [value for value in self.values if isinstance(value, str)]
        if self.operator not in ("=", "in") or not texts:
            return None
        stored = sorted(frame[self.column].drop_nulls().unique())
        if set(texts) & set(stored):
            return None
        if len(stored) > SHOWN:
            stored = get_close_matches(texts[0], stored) or [*stored[:SHOWN], "..."]
        return f"no {self.column} is {' or '.join(map(repr, texts))}; {_suggest(texts[0], stored)}"


def parse_filter(text: str, schema: Mapping[str, pl.DataType]) -> Filter:
    """Returns the condition that a text states about columns of given types.

    Args:
        text: see the module's docstring.
        schema: type by column, such as a frame's ``schema``.

    Raises:
        ValueError: another form, an unknown column (with the nearest one), a value that the column
            cannot hold, an order on text or truth, or a column of lists.

    Example:
        >>> runs = pl.DataFrame({"width": [32, 64, 128], "diverged": [False, True, False]})
        >>> runs.filter(parse_filter("width >= 2**6", runs.schema).expression())["width"].to_list()
        [64, 128]
        >>> runs.filter(parse_filter("not diverged", runs.schema).expression())["width"].to_list()
        [32, 128]
        >>> parse_filter("widht=64", runs.schema)
        Traceback (most recent call last):
        ValueError: no column 'widht'; did you mean width?
    """
    negated = _NEGATED.fullmatch(text)
    match = negated or _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a condition; allowed: NAME OP VALUE with = != < <= > >=, "
            "NAME in VALUE,VALUE, NAME, not NAME"
        )
    name = match["name"]
    check_columns([name], schema)
    dtype = schema[name]
    if dtype.is_nested():
        raise ValueError(f"{name} holds a list in each run; allowed: columns of single values")
    symbol = None if negated else match["operator"]
    if symbol is None:
        if dtype != pl.Boolean:
            raise ValueError(f"{text!r} lacks a comparison, such as {name}=VALUE")
        return Filter(name, "=", (not negated,))
    symbol = symbol.replace("==", "=")
    texts = match["value"].split(",") if symbol == "in" else [match["value"]]
    values = tuple(_value(name, value.strip(), dtype) for value in texts)
    if symbol in _ORDER:
        if dtype in (pl.String, pl.Boolean, pl.Null):
            raise ValueError(f"{name} has no order, so {symbol} says nothing; allowed: = != in")
        if values[0] is None:
            raise ValueError(f"{text!r}: null has no order; allowed: {name}=null, {name}!=null")
    return Filter(name, symbol, values)


def check_columns(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first name that is not known, with the nearest ones that are."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"no column {name!r}; {_suggest(name, known)}")


def _suggest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


def _value(name: str, text: str, dtype: pl.DataType) -> Any:
    """Returns a text as a value of the column's type, None for ``null``."""
    if text.lower() == "null":
        return None
    try:
        if dtype == pl.Boolean:
            return _WORDS[text.lower()]
        if dtype.is_numeric():
            return _number(text, dtype)
        if dtype == pl.String:
            return _unquoted(text)
        if dtype == pl.Datetime:
            return _time(text)
    except (ValueError, KeyError, OverflowError, ZeroDivisionError):
        pass
    words = {
        pl.Boolean: "true, false",
        pl.String: "text",
        pl.Datetime: "a UTC time, such as 2026-01-31 or 2026-01-31T18:30",
        pl.Null: "null (no run has a value)",
    }
    allowed = next(
        (w for kind, w in words.items() if dtype == kind), "a number, such as 64 or 2**6"
    )
    raise ValueError(f"{name}: {text!r} is not allowed; allowed: {allowed}")


def _number(text: str, dtype: pl.DataType) -> int | float:
    power = _POWER.fullmatch(text)
    try:
        whole = int(text)
        if abs(whole) < 2**63:
            return whole if dtype.is_integer() else float(whole)
    except ValueError:
        pass
    number = math.pow(float(power[1]), float(power[2])) if power else float(text)
    if dtype.is_integer() and number.is_integer() and abs(number) < 2**63:
        return int(number)
    return number


def _unquoted(text: str) -> str:
    if not text:
        raise ValueError("empty")
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _time(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text)
    return time.astimezone(datetime.UTC).replace(tzinfo=None) if time.tzinfo else time
