"""Numbers with intervals: which of their ends can be drawn, and how far an axis must reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from isolab.charts.parts import bound, finite, signed

_MISSING = "none"


def with_intervals(
    frame: pl.DataFrame, columns: Sequence[str], ends: Sequence[str], digits: int = 4
) -> pl.DataFrame:
    """Keeps ``columns`` and adds ``value``, ``low``, ``high`` and ``interval`` (in words).

    ``ends`` names the columns of a value and of its interval's ends.
    Numbers that are not finite are null; ``lost`` says that the value itself is infinite or NaN.

    Raises:
        ValueError: for missing columns or no rows.
    """
    value, low, high = ends
    kept = finite(frame, columns, {"value": value, "low": low, "high": high})
    lost = frame[value].cast(pl.Float64).is_finite().not_().fill_null(False)
    said = [
        _words(*its, digits)
        for its in zip(kept["low"].to_list(), kept["high"].to_list(), strict=True)
    ]
    return kept.with_columns(
        lost.alias("lost"), pl.Series("interval", said, dtype=pl.String)
    ).with_columns(
        # An interval that is open at both ends says nothing, so that no bar is drawn.
        (pl.col("low").is_not_null() | pl.col("high").is_not_null()).alias("bar"),
    )


def reach(frame: pl.DataFrame, *others: float, least: float = 0.0) -> tuple[float, float]:
    """Returns where an axis starts and ends: all values, and ends of bars unless far away.

    An end counts up to as far from the values as they are from each other, or up to ``least``.
    """
    values = [v for v in frame["value"].to_list() if v is not None] + list(others)
    if not values:
        return 0.0, 1.0
    bottom, top = min(values), max(values)
    span = max(top - bottom, 0.05 * abs(top), least, 1e-6)
    low = bound(frame["low"], "min", default=bottom)
    high = bound(frame["high"], "max", default=top)
    return max(min(low, bottom), bottom - span), min(max(high, top), top + span)


def bars(frame: pl.DataFrame, bottom: float, top: float) -> pl.DataFrame:
    """Returns the rows with a bar; an open end lies where the axis ends."""
    return frame.filter(pl.col("bar") & pl.col("value").is_not_null()).with_columns(
        pl.col("low").fill_null(bottom).clip(bottom, top),
        pl.col("high").fill_null(top).clip(bottom, top),
    )


def beyond(frame: pl.DataFrame, bottom: float, top: float) -> list[str]:
    """Returns what to say of bars that do not end on the axis; nothing if all do."""
    out = frame.filter(pl.col("bar") & pl.col("value").is_not_null()).filter(
        pl.col("low").is_null()
        | pl.col("high").is_null()
        | (pl.col("low") < bottom)
        | (pl.col("high") > top)
    )
    return [] if out.is_empty() else ["A bar that ends at the frame goes on beyond it."]


def _words(low: float | None, high: float | None, digits: int) -> str:
    ends = [f"{signed(end, digits)}" if end is not None else "open" for end in (low, high)]
    return " to ".join(ends) if low is not None or high is not None else _MISSING


def short(low: float | None, high: float | None) -> str:
    """Returns an interval in brackets, or nothing where both ends are open.

    Example:
        >>> short(-1.25, -0.75), short(None, 1.0), short(None, None)
        (' [−1.25, −0.75]', ' [open, 1]', '')
    """
    ends = [None if end is None or not math.isfinite(end) else end for end in (low, high)]
    if ends == [None, None]:
        return ""
    return " [" + ", ".join("open" if end is None else signed(end) for end in ends) + "]"
