"""Result frames made ready to draw: cleaned, checked, with intervals, best rates and edge marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from isolab.analysis.optimum import optimum
from isolab.analysis.seeds import require_columns
from isolab.charts.theme import NAMES, signed, value_text

EDGE_MARK = "at the top edge"
MAX_ROWS = 5000  # Altair's own limit for one data set
ORIGINS = tuple(NAMES["origin"])
"""Values of the column "origin", which a frame may have."""


def finite(
    frame: pl.DataFrame,
    columns: Sequence[str],
    values: dict[str, str],
    lossless: bool = False,
    zero: bool = False,
) -> pl.DataFrame:
    """Keeps ``columns`` and ``values`` (new name -> column), infinity and NaN turned into null.

    Args:
        lossless: raise instead, also at negative values, and at 0 unless ``zero``.

    Raises:
        ValueError: for missing columns, no rows, or as ``lossless`` says.
    """
    require_columns(frame, [*columns, *values.values()])
    if frame.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    numbers = [pl.col(column).cast(pl.Float64) for column in values.values()]
    clean = [pl.when(n.is_finite()).then(n).alias(name) for n, name in zip(numbers, values)]  # noqa: B905
    cleaned = frame.select(*dict.fromkeys(columns), *clean)
    for name, column in values.items() if lossless else ():
        low = pl.col(name) < 0 if zero else pl.col(name) <= 0
        bad = frame.filter(cleaned.select(pl.col(name).is_null() | low).to_series())
        if not bad.is_empty():
            allowed = "finite and 0 or above" if zero else "finite and above 0"
            raise ValueError(f"{column} must be {allowed}, got {bad[column][0]}")
    return cleaned


def duplicates(frame: pl.DataFrame, columns: Sequence[str], advice: str = "") -> None:
    """Raises ValueError where several rows share ``columns``: their mean would mix settings."""
    columns = list(dict.fromkeys(columns))
    twice = frame.group_by(columns).len().filter(pl.col("len") > 1).sort(columns)
    if not twice.is_empty():
        row = twice.row(0, named=True)
        count = row.pop("len")
        advice = advice or "keep one configuration, or colour by the column that differs"
        raise ValueError(f"{count} runs share {row}: {advice}")


def origins(frame: pl.DataFrame) -> list[str]:
    """Returns the column by which rows of two origins must be told apart, or none.

    Raises:
        ValueError: for a value of ``origin`` that is not one of :data:`ORIGINS`.
    """
    if "origin" not in frame.columns:
        return []
    unknown = [v for v in frame["origin"].unique().to_list() if v not in ORIGINS]
    if unknown:
        raise ValueError(f"unknown origin {unknown[0]!r}; known: {list(ORIGINS)}")
    return ["origin"]


def thinned(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Keeps every k-th value of ``column`` and its last, at most :data:`MAX_ROWS` rows."""
    if len(frame) <= MAX_ROWS:
        return frame
    values = frame[column].unique().sort()
    stride = math.ceil(len(frame) / (MAX_ROWS - len(frame) / len(values)))
    some = pl.DataFrame(values.gather_every(stride).append(values[-1:]).unique())
    return frame.join(some, on=column, how="semi", maintain_order="left")


def bound(values: pl.Series, which: Literal["min", "max"], default: float = math.nan) -> float:
    """Returns the lowest or highest number of a series, or ``default`` where it has none."""
    numbers = values.cast(pl.Float64).drop_nulls()
    if numbers.is_empty():
        return default
    return float(np.min(numbers.to_numpy()) if which == "min" else np.max(numbers.to_numpy()))


def ceiling(means: pl.Series, losses: pl.Series) -> float:
    """Returns where to cut the loss axis: the highest loss, unless it would flatten the rest.

    It would where it lies more than 5 times as far above the lowest mean as the median mean does.
    """
    highest = bound(losses, "max", default=1.0)
    best = bound(means, "min", default=highest)
    middle = float(np.median(means.to_numpy())) if len(means) else highest
    return min(highest, best + 5 * (middle - best)) if middle > best else highest


def log_domain(column: str, values: pl.Series) -> list[float]:
    """Returns the ends of a log axis, a little beyond the lowest and highest value.

    Raises:
        ValueError: for a value that is not a positive number.
    """
    levels = values.cast(pl.Float64)
    bad = levels.filter(levels.is_null() | ~levels.is_finite() | (levels <= 0))
    if len(bad):
        raise ValueError(f"{column} must be positive and finite, got {bad[0]}")
    low, high = bound(levels, "min"), bound(levels, "max")
    pad = (high / low) ** 0.05 if high > low else 1.5
    return [low / pad, high * pad]


def decades(values: pl.Series, low: float = 1e-3, high: float = 1e-1) -> tuple[int, int]:
    """Returns the powers of ten around positive values, or around the defaults; one apart."""
    bottom = math.floor(math.log10(bound(values, "min", low)))
    return bottom, max(math.ceil(math.log10(bound(values, "max", high))), bottom + 1)


def with_intervals(
    frame: pl.DataFrame, columns: Sequence[str], ends: Sequence[str], digits: int = 4
) -> pl.DataFrame:
    """Keeps ``columns`` and adds ``value``, ``low``, ``high`` and ``interval`` (in words).

    ``ends`` names the columns of a value and of its interval's ends. Numbers that are not finite
    are null; ``lost`` says that the value itself is infinite or NaN, ``bar`` that an end is known.
    A null or empty ``note`` becomes "none".

    Raises:
        ValueError: for missing columns or no rows.
    """
    value, low, high = ends
    cleaned = finite(frame, columns, {"value": value, "low": low, "high": high})
    ends_of = cleaned.select("low", "high").rows()
    texts = [interval_text(low, high, digits) for low, high in ends_of]
    if "note" in cleaned.columns:
        note = pl.col("note").fill_null("").replace("", "none")
        cleaned = cleaned.with_columns(note)
    return cleaned.with_columns(
        frame[value].cast(pl.Float64).is_finite().not_().fill_null(False).alias("lost"),
        pl.Series("interval", texts, dtype=pl.String),
        (pl.col("low").is_not_null() | pl.col("high").is_not_null()).alias("bar"),
    )


def interval_text(low: float | None, high: float | None, digits: int) -> str:
    """Returns an interval in words.

    Example:
        >>> interval_text(-1.0, None, 2), interval_text(None, None, 2)
        ('−1 to open', 'none')
    """
    ends = [signed(end, digits) if end is not None else "open" for end in (low, high)]
    return " to ".join(ends) if low is not None or high is not None else "none"


def short_interval(low: float | None, high: float | None) -> str:
    """Returns an interval in brackets, or nothing where both ends are open.

    Example:
        >>> short_interval(-1.25, -0.75), short_interval(None, 1.0), short_interval(None, None)
        (' [−1.25, −0.75]', ' [open, 1]', '')
    """
    ends = [None if end is None or not math.isfinite(end) else end for end in (low, high)]
    if ends == [None, None]:
        return ""
    return " [" + ", ".join("open" if end is None else signed(end) for end in ends) + "]"


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
    low = bound(frame["low"], "min", default=bottom)
    high = bound(frame["high"], "max", default=top)
    return max(min(low, bottom), bottom - span), min(max(high, top), top + span)


def bars(frame: pl.DataFrame, bottom: float, top: float) -> tuple[pl.DataFrame, list[str]]:
    """Returns the rows with a bar, ends within the axis, and what to say of those cut there."""
    drawn = frame.filter(pl.col("bar") & pl.col("value").is_not_null())
    inside = pl.col("low").ge(bottom) & pl.col("high").le(top)
    cut = not drawn.select(inside.fill_null(False).all()).item()
    ends = pl.col("low").fill_null(bottom), pl.col("high").fill_null(top)
    note = ["A bar that ends at the frame goes on beyond it."] if cut else []
    return drawn.with_columns(end.clip(bottom, top) for end in ends), note


def spread_of(
    points: pl.DataFrame,
    on: Sequence[str],
    value: str,
    count: str = "seeds",
    middle: Literal["mean", "median"] = "mean",
) -> pl.DataFrame:
    """Returns a row per group: mean or median, ``low`` and ``high`` of a column, and a count."""
    its = pl.col(value)
    center = its.mean() if middle == "mean" else its.median()
    ends = its.min().alias("low"), its.max().alias("high")
    rows = points.group_by(on).agg(center.alias(middle), *ends, pl.len().alias(count))
    return rows.sort(on)


def seed_means(points: pl.DataFrame, groups: Sequence[str], x: str) -> pl.DataFrame:
    """Returns means of ``loss`` over seeds; ``segment`` numbers the parts between lost seeds."""
    return (
        points.group_by(*groups, x)
        .agg(pl.col("loss").mean().alias("mean"), pl.col("loss").is_null().any().alias("diverged"))
        .sort(*groups, x)
        .with_columns(pl.col("diverged").cum_sum().over(groups).alias("segment"))
        .filter(~pl.col("diverged"))
    )


def best_rates(
    points: pl.DataFrame, groups: Sequence[str], rate: str, seed: str
) -> tuple[pl.DataFrame, list[str]]:
    """Returns a row per group that has an optimum, and what to say of the others.

    ``low`` and ``high`` are the ends of the rate's interval within the grid: the rate itself where
    one seed says nothing of it.
    """
    first, last = bound(points[rate], "min"), bound(points[rate], "max")
    rows, notes = [], []
    for values, its in points.sort(groups).group_by(groups, maintain_order=True):
        named = dict(zip(groups, values, strict=True))
        who = ", ".join(value_text(v, name) for name, v in named.items() if name != "series")
        try:
            best = optimum(its.with_columns(pl.col("loss").fill_null(math.inf)), rate, "loss", seed)
        except ValueError as error:
            notes.append(f"No best rate for {who}: {error}")
            continue
        if best.edge:
            end = "lowest" if best.edge == "low" else "highest"
            notes.append(f"{who}: the best rate is the {end} of the grid.")
        low, high = best.rate_interval if best.seeds > 1 else (best.rate, best.rate)
        interval = rate_interval_text(*best.rate_interval)
        row: dict[str, Any] = {
            rate: best.rate,
            "loss": best.loss,
            "low": max(low, first),
            "high": min(high, last),
        }
        row |= {"interval": interval if best.seeds > 1 else "none: one seed"}
        row |= {"grid_rate": best.grid_rate, "seeds": best.seeds, "edge": best.edge}
        rows.append(named | row | {"note": best.note or "none"})
    schema: dict[str, Any] = {name: points.schema[name] for name in groups}
    schema |= dict.fromkeys([rate, "loss", "low", "high"], pl.Float64) | {"interval": pl.String}
    schema |= {"grid_rate": pl.Float64, "seeds": pl.Int64, "edge": pl.String, "note": pl.String}
    return pl.DataFrame(rows, schema=schema), notes


def edge_marks(
    points: pl.DataFrame, groups: Sequence[str], lines_of: Sequence[str], x: str, seed: str,
    top: float,
) -> tuple[pl.DataFrame, int]:  # fmt: skip
    """Returns a mark per group and ``x`` with runs beyond the axis, and the number of its lines.

    ``lines_of`` names the columns of a series, which has a ``line`` of its own, the same in every
    panel. ``seeds`` lists the seeds, ``of`` counts all, ``loss`` is the mean of those above.
    """
    lost = pl.when(pl.col("loss").is_null()).then(pl.lit("diverged"))
    kind = lost.when(pl.col("loss") > top).then(pl.lit("above the axis")).alias(EDGE_MARK)
    marks = (
        points.with_columns(kind, pl.len().over([*groups, x]).alias("of"))
        .filter(pl.col(EDGE_MARK).is_not_null())
        .group_by(*groups, x, EDGE_MARK, "of")
        .agg(
            pl.col(seed).sort().cast(pl.String).str.join(", ").alias("seeds"), pl.col("loss").mean()
        )
        .sort(*groups, x, EDGE_MARK)
    )
    order = marks.select(lines_of).unique().sort(lines_of).with_row_index("line")
    return marks.join(order, on=lines_of, how="left", maintain_order="left"), len(order)
