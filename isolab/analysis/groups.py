"""Groups: a statistic for each group of rows, as a frame with intervals, notes and reasons.

Every frame of this room has a row per group of the columns ``by`` (or per group and width). A
statistic ``x`` comes with its interval over seeds in ``x_low`` and ``x_high``, infinite where open;
``note`` says what to know of the row, or "", and ``reason``, where it is not null, why a claim
built on it must be inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, TypeVar

import polars as pl

from isolab.analysis.seeds import require_columns

T = TypeVar("T")
ONE_SEED = "one seed: no interval"
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(["edge", "note", "reason"], pl.String),
    **dict.fromkeys(["rank", "scales", "seeds", "widths"], pl.Int64),
}


class Options(TypedDict, total=False):
    """What a metric hands on: names of columns, and the intervals' confidence and resamples."""

    rate: str
    loss: str
    seed: str
    confidence: float
    resamples: int


def each_group(
    runs: pl.DataFrame, by: Sequence[str], function: Callable[[dict[str, Any], pl.DataFrame], T]
) -> list[T]:
    """Applies ``function`` to the values of ``by`` and the rows of each group, sorted by ``by``.

    Raises:
        ValueError: missing columns, no columns, no rows, and whatever the function refuses, with
            the group's values in front.
    """
    require_columns(runs, by)
    if not len(by) or runs.is_empty():
        raise ValueError(f"nothing to group: by={list(by)}, {len(runs)} runs")
    found = []
    for values, group in runs.sort(by).group_by(by, maintain_order=True):
        name = dict(zip(by, values, strict=True))
        try:
            found.append(function(name, group))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def group_frame(
    rows: Iterable[dict[str, Any]], runs: pl.DataFrame, by: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame:
    """Returns the columns ``by``, with the dtypes of ``runs``, and ``columns`` of all rows.

    A column that a row lacks is null. Counts are Int64, texts String, all others Float64.
    """
    schema: dict[str, Any] = {name: runs.schema[name] for name in by}
    schema |= {name: _DTYPES.get(name, pl.Float64) for name in columns}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def ends(name: str) -> tuple[str, str, str]:
    """Returns the columns of a statistic and of its interval.

    Example:
        >>> ends("regret")
        ('regret', 'regret_low', 'regret_high')
    """
    return name, f"{name}_low", f"{name}_high"


def joined(notes: Iterable[str | None]) -> str:
    """Returns the notes that are not empty, once each, with semicolons between."""
    return "; ".join(dict.fromkeys(note for note in notes if note))


def told(reasons: Iterable[str], notes: Iterable[str] = ()) -> dict[str, str | None]:
    """Returns a row's ``note``, its reasons first, and its ``reason``."""
    reason = joined(reasons)
    return {"note": joined([reason, *notes]), "reason": reason or None}
