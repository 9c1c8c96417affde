"""Conditions on the columns of stored runs, as typed on a command line: SQL, read by polars.

optimizer = 'isoadam' AND width >= 128
learning_rate < POWER(2.0, -7) OR b1 IS NULL
NOT diverged AND stored_at < DATE '2026-01-31'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import polars as pl

EXAMPLE = "optimizer = 'adam' AND learning_rate < POWER(2.0, -7)"
SHOWN = 12  # of the values that a column holds, in a message
COMPARABLE = {
    pl.String: "text in single quotes, such as 'adam'",
    pl.Boolean: "true or false",
    pl.Datetime: "a UTC time, such as DATE '2026-01-31' or TIMESTAMP '2026-01-31T18:30'",
    pl.List: "a list in each run",
}
"""What columns may be compared with, where it is no number."""


def matching(frame: pl.DataFrame, conditions: Sequence[str]) -> pl.DataFrame:
    """Returns the rows that satisfy every condition, a polars SQL expression over the columns.

    As in SQL, a comparison with NULL is not satisfied.

    Raises:
        ValueError: no expression, one that names no column or one that is not there (with the
            nearest), or that the columns' types do not allow.

    Example:
        >>> runs = pl.DataFrame({"width": [32, 64, 128], "diverged": [False, True, False]})
        >>> matching(runs, ["NOT diverged", "width >= POWER(2.0, 6)"])["width"].to_list()
        [128]
    """
    for text in conditions:
        names: set[str] = set()
        try:
            expression = pl.sql_expr(text)
            names |= set(expression.meta.root_names())
            check_columns(names, frame.columns)
            if not names:
                raise ValueError("it names no column")
            frame = frame.filter(expression)
        except (pl.exceptions.PolarsError, ValueError) as error:
            types = {name: kind.base_type() for name, kind in frame.schema.items() if name in names}
            number = "a number, such as 64 or POWER(2.0, -7)"
            allowed = [f"{name} is {COMPARABLE.get(t, number)}" for name, t in types.items()]
            known = "; ".join(allowed) or f"allowed: SQL over columns, such as {EXAMPLE}"
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{text!r}: {reason}; {known}") from error
    return frame


def check_columns(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for a name that is not known, with the nearest ones that are."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"no column {name!r}; {hint}")


def stored_texts(frame: pl.DataFrame, conditions: Iterable[str]) -> list[str]:
    """Returns what the columns of text hold that conditions name, for one that matched nothing."""
    named = {name for text in conditions for name in pl.sql_expr(text).meta.root_names()}
    found = []
    for values in frame.select(sorted(named)).select(pl.col(pl.String)).iter_columns():
        texts = [repr(text) for text in values.drop_nulls().unique().sort()]
        rest = ["..."] if len(texts) > SHOWN else []
        found.append(f"{values.name} is one of {', '.join(texts[:SHOWN] + rest)}")
    return found
