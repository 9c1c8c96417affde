"""Frames made ready to draw: cleaned, checked, with intervals in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.theme import signed

EDGE_MARK = "at the top edge"
MAX_ROWS = 5000  # Altair's own limit for one data set
POSITIVE = "finite and above 0"
_LEAST = {"finite and 0 or above": 0.0, POSITIVE: math.ulp(0.0)}


def require_rows(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Raises ValueError for missing columns or no rows."""
    require_columns(frame, columns)
    if frame.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")


def finite(
    frame: pl.DataFrame, columns: Sequence[str], values: Mapping[str, str], allowed: str = ""
) -> pl.DataFrame:
    """Keeps ``columns`` and ``values`` (new name -> column), infinity and NaN turned into null.

    Raises:
        ValueError: for missing columns, no rows, and a value that is not as ``allowed``.
    """
    require_rows(frame, [*columns, *values.values()])
    for column in values.values() if allowed else ():
        check_numbers(column, frame[column], allowed)
    numbers = {name: pl.col(column).cast(pl.Float64) for name, column in values.items()}
    clean = [pl.when(its.is_finite()).then(its).alias(name) for name, its in numbers.items()]
    return frame.select(*dict.fromkeys(columns), *clean)


def check_numbers(name: str, values: pl.Series, allowed: str = POSITIVE) -> None:
    """Raises ValueError for a number that is not as ``allowed``: one of :data:`_LEAST`."""
    numbers = values.cast(pl.Float64)
    fine = numbers.is_finite() & (numbers >= _LEAST[allowed])
    bad = values.filter(~fine.fill_null(False))
    if len(bad):
        raise ValueError(f"{name} must be {allowed}, got {bad[0]}")


def thinned(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Keeps every k-th value of ``column`` and its last, at most :data:`MAX_ROWS` rows."""
    if len(frame) <= MAX_ROWS:
        return frame
    values = frame[column].unique().sort()
    stride = math.ceil(len(frame) / (MAX_ROWS - len(frame) / len(values)))
    some = pl.DataFrame(values.gather_every(stride).append(values[-1:]).unique())
    return frame.join(some, on=column, how="semi", maintain_order="left")


def some_of(rows: Any) -> Any:
    """Keeps :data:`MAX_ROWS` of a frame's or a list's rows, evenly spaced in their order."""
    places = np.linspace(0, len(rows) - 1, MAX_ROWS).astype(int)
    return rows[places] if isinstance(rows, pl.DataFrame) else [rows[i] for i in places]


def extent(values: pl.Series, low: float = math.nan, high: float = math.nan) -> tuple[float, float]:
    """Returns the lowest and highest number of a series, or the defaults where it has none."""
    numbers = values.cast(pl.Float64).drop_nulls().to_numpy()
    return (float(np.min(numbers)), float(np.max(numbers))) if len(numbers) else (low, high)


def ceiling(means: pl.Series, losses: pl.Series) -> float:
    """Returns where to cut the loss axis: the highest loss, unless it would flatten the rest.

    It would where it lies more than 5 times as far above the lowest mean as the median mean does.
    """
    highest = extent(losses, high=1.0)[1]
    best = extent(means, low=highest)[0]
    middle = float(np.median(means.to_numpy())) if len(means) else highest
    return min(highest, best + 5 * (middle - best)) if middle > best else highest


def log_domain(column: str, values: pl.Series) -> list[float]:
    """Returns the ends of a log axis, a little beyond all values, which must be positive."""
    check_numbers(column, values)
    low, high = extent(values)
    pad = (high / low) ** 0.05 if high > low else 1.5
    return [low / pad, high * pad]


def decades(values: pl.Series, low: float = 1e-3, high: float = 1e-1) -> tuple[int, int]:
    """Returns the powers of ten around positive values, or around the defaults; one apart."""
    first, last = extent(values, low, high)
    bottom = math.floor(math.log10(first))
    return bottom, max(math.ceil(math.log10(last)), bottom + 1)


def with_intervals(frame: pl.DataFrame, columns: Sequence[str], name: str) -> pl.DataFrame:
    """Keeps ``columns`` and adds ``value``, ``low``, ``high`` and ``interval`` (in words).

    They are null where not finite; ``lost`` says that the value itself is infinite or NaN, ``bar``
    that an end is known. A null or empty ``note`` becomes "none".
    """
    ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    cleaned = finite(frame, columns, ends)
    texts = []
    for both in cleaned.select("low", "high").rows():
        words = [signed(end, 4) if end is not None else "open" for end in both]
        texts.append("none" if both == (None, None) else " to ".join(words))
    if "note" in cleaned.columns:
        cleaned = cleaned.with_columns(pl.col("note").fill_null("").replace("", "none"))
    return cleaned.with_columns(
        frame[name].cast(pl.Float64).is_finite().not_().fill_null(False).alias("lost"),
        pl.Series("interval", texts, dtype=pl.String),
        (pl.col("low").is_not_null() | pl.col("high").is_not_null()).alias("bar"),
    )


def rate_interval_text(low: float | None, high: float | None) -> str:
    """Returns an interval of rates; an end that is None or not finite lies beyond the grid."""
    bottom = f"{low:.3g}" if low else "below the grid"
    top = f"{high:.3g}" if high is not None and math.isfinite(high) else "above the grid"
    return f"{bottom} to {top}"


def reach(frame: pl.DataFrame, *others: float, least: float = 0.0) -> tuple[float, float]:
    """Returns where an axis starts and ends: all values, and ends of bars unless far away.

    An end counts up to as far from the values as they are from each other, or up to ``least``.
    """
    values = [v for v in frame["value"].to_list() if v is not None] + list(others)
    if not values:
        return 0.0, 1.0
    bottom, top = min(values), max(values)
    span = max(top - bottom, 0.05 * abs(top), least, 1e-6)
    low, high = extent(frame["low"], low=bottom)[0], extent(frame["high"], high=top)[1]
    return max(min(low, bottom), bottom - span), min(max(high, top), top + span)


def bars(frame: pl.DataFrame, bottom: float, top: float) -> tuple[pl.DataFrame, str]:
    """Returns the rows with a bar, ends within the axis, and what to say of those cut there."""
    drawn = frame.filter(pl.col("bar") & pl.col("value").is_not_null())
    inside = pl.col("low").ge(bottom) & pl.col("high").le(top)
    cut = not drawn.select(inside.fill_null(False).all()).item()
    ends = pl.col("low").fill_null(bottom), pl.col("high").fill_null(top)
    note = "A bar that ends at the frame goes on beyond it." if cut else ""
    return drawn.with_columns(end.clip(bottom, top) for end in ends), note
