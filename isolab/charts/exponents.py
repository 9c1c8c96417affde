"""Best learning rates against width, with the powers fitted to them."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.intervals import bars, beyond, reach, short, with_intervals
from isolab.charts.origins import origins, series
from isolab.charts.panels import Place, panel_columns, small_multiples
from isolab.charts.parts import (
    duplicates,
    fraction,
    label,
    signed,
    spelled,
    summarized,
    tip,
)

_LOGS = {"rate": "log_rate", "rate_low": "log_low", "rate_high": "log_high"}
_SHAPES = {"inside": "circle", "lowest": "triangle-down", "highest": "triangle-up"}
_EDGES = {"low": "lowest", "high": "highest"}
_HEIGHT, _LINE = 190, 15  # pixels of a panel without texts, and of a line of text


def best_rate_vs_width(
    optima: pl.DataFrame,
    exponents: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
    title: str = "Best learning rate against width",
) -> alt.ConcatChart:
    """Draws best rates with their intervals, the power law fitted to them, and theory's.

    Each panel names the fitted powers of the width, with intervals, in the colours of their lines.
    Theory's line is dotted and starts at the smallest width's best rate.

    Args:
        optima: a row per group and width, as of :func:`~isolab.analysis.optimum.optima`: ``width``,
            ``rate``, ``rate_low``, ``rate_high``, ``edge``, and the group's columns: ``color``,
            ``rows``, ``columns`` and, where there is one, ``origin`` ("reference" or "yours").
        exponents: a row per group, as of :func:`~isolab.analysis.exponent.exponents`: the group's
            columns, ``exponent``, ``exponent_low``, ``exponent_high``, ``intercept`` and, where
            theory has one, ``theory``: its power of the width.

    Raises:
        ValueError: for missing columns, no rows, no rate at all, two rates of one group and width,
            an unknown origin, or a width that is not positive.
    """
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(optima)]))
    require_columns(optima, [*keys, "width", "edge", *_LOGS])
    logs = [pl.col(name).cast(pl.Float64).log(2).alias(log) for name, log in _LOGS.items()]
    columns_of = [*keys, "width", "edge", "rate"]
    points = with_intervals(optima.with_columns(logs), columns_of, tuple(_LOGS.values()))
    look = series(spelled(points), color)
    groups = list(dict.fromkeys([*panel, *look.columns]))
    duplicates(look.frame, [*groups, "width"])
    points = look.apart(look.frame)
    x = look.width_axis(points)
    points, notes = _placed(points, keys)
    laws = _laws(points, exponents, keys, groups)
    lines = max((len(its) for _, its in laws.group_by(panel or [pl.lit(0)])), default=0)
    height = _HEIGHT + _LINE * lines
    drawn_to = laws.select("first", "last", "by_theory").unpivot()["value"].drop_nulls()
    bottom, top = reach(points, *drawn_to, least=2.0)
    unit = (top - bottom) / (height - 26 - _LINE * lines)
    low, high = bottom - unit * (18 + _LINE * lines), top + unit * 8
    y = (
        alt.Y("rate:Q", title="best learning rate (log2 axis)")
        .scale(type="log", base=2, domain=[2**low, 2**high], nice=False)
        .axis(format=".2~g", values=_ticks(bottom, top))
    )
    said_of_bars = beyond(points, low, high)
    intervals = bars(points, low, high).with_columns(_power("low", "high"))
    tips = [*map(tip, keys), tip("width", "d"), tip("rate", ".4~g", "best rate")]
    tips += [tip("rates", name="rate, 95% interval"), tip("edge", name="in the grid of rates")]

    def draw(place: Place) -> list[alt.Chart]:
        def drawn(frame: pl.DataFrame, opacity: float = 1) -> alt.Chart:
            hue = {"color": look.color, "opacity": look.faded(opacity)}
            return alt.Chart(place.of(frame)).encode(x=place.x(x), y=place.y(y), **hue)

        layers = [
            drawn(its).mark_line(clip=True, strokeWidth=2, **dashed)
            for its, dashed, _ in look.parts(_lines(laws, groups, "last"))
        ]
        theory = drawn(_lines(laws, groups, "by_theory")).encode(detail=list(look.columns))
        layers.append(theory.mark_line(clip=True, strokeWidth=2, strokeDash=[1.5, 3.5]))
        bar = drawn(intervals, 0.55).mark_rule(clip=True, strokeWidth=2)
        layers.append(bar.encode(y=alt.Y("low:Q"), y2="high:Q"))
        for its, _, hollow in look.parts(points):
            for (edge,), at in its.group_by(["edge"], maintain_order=True):
                mark: dict[str, Any] = {"shape": _SHAPES[str(edge)], "size": 70, **hollow}
                layers.append(
                    drawn(at).mark_point(clip=True, strokeWidth=2, **mark).encode(tooltip=tips)
                )
        texts = place.of(laws)
        for line in range(len(texts)):
            text = alt.Chart(texts[line : line + 1]).encode(
                x=alt.value(7),
                y=alt.value(height - 6 - _LINE * (len(texts) - 1 - line)),
                color=look.color,
                opacity=look.faded(1),
            )
            layers += label(text, "text", dy=0, size=11, align="left")
        return layers

    said = []
    if exponents is not None:
        said = ["Line: a power law fitted to the best rates; below: its power [95% interval]."]
    if laws["by_theory"].is_not_null().any():
        said.append("Dotted: theory's power, from the best rate of the smallest width.")
    if (points["edge"] != "inside").any():
        said.append("Triangle: the best rate is the lowest (down) or highest (up) of the grid.")
    said += [*look.note, *said_of_bars, *summarized(notes)]
    return small_multiples(points, rows, columns, draw, title, said, look.pick, height)


def _placed(points: pl.DataFrame, keys: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns the points that have a rate, and what to say of widths without one."""
    points = points.with_columns(
        pl.col("edge").replace(_EDGES).fill_null("inside"),
        pl.struct("low", "high").map_elements(_rates, return_dtype=pl.String).alias("rates"),
    )
    none = points.filter(pl.col("value").is_null()).sort(*keys, "width")
    notes = [
        f"No best rate for {', '.join(map(_said, row[:-1]))}, width {row[-1]:g}: all diverged."
        for row in none.select(*keys, "width").rows()
    ]
    kept = points.filter(pl.col("value").is_not_null()).sort(*keys, "width")
    if kept.is_empty():
        raise ValueError("nothing to draw: no row has a rate that is positive and finite")
    return kept, notes


def _laws(
    points: pl.DataFrame, exponents: pl.DataFrame | None, keys: list[str], groups: list[str]
) -> pl.DataFrame:
    """Returns a row per group: its line's ends, theory's end (log2 of rates), and a text."""
    ends = points.group_by(groups, maintain_order=True).agg(
        pl.col("at").first().alias("at_first"),
        pl.col("at").last().alias("at_last"),
        pl.col("width").first().log(2).alias("from"),
        pl.col("width").last().log(2).alias("to"),
        pl.col("value").first().alias("anchor"),
    )
    power = ["exponent", "exponent_low", "exponent_high", "intercept"]
    if exponents is None:
        exponents = (
            points.select(groups)
            .head(0)
            .with_columns(pl.lit(None, pl.Float64).alias(name) for name in power)
        )
    else:
        require_columns(exponents, [*keys, *power])
        duplicates(exponents, keys)
        exponents = spelled(exponents)
    if "theory" not in exponents.columns:
        exponents = exponents.with_columns(pl.lit(None, pl.Float64).alias("theory"))
    on = [name for name in groups if name in keys]
    its = exponents.select(*on, *power, "theory", pl.lit(True).alias("fitted")).with_columns(
        pl.col(name).cast(points.schema[name]) for name in on
    )
    slope, start = pl.col("exponent"), pl.col("intercept")
    laws = ends.join(its, on=on, how="left", maintain_order="left").with_columns(
        (start + slope * pl.col("from")).alias("first"),
        (start + slope * pl.col("to")).alias("last"),
        (pl.col("anchor") + pl.col("theory") * (pl.col("to") - pl.col("from"))).alias("by_theory"),
    )
    texts = [_text(row) for row in laws.iter_rows(named=True)]
    laws = laws.with_columns(pl.Series("text", texts, dtype=pl.String))
    # The fit's own columns may be infinite, and are in the text.
    return laws.filter(pl.col("text") != "").sort(groups).drop(*power, "theory", "fitted")


def _text(row: dict[str, Any]) -> str:
    """Returns the fitted power with its interval, and theory's."""
    if row["fitted"] is None:
        return ""
    parts = ["no fit"]
    if row["exponent"] is not None:
        parts = [signed(row["exponent"]) + short(row["exponent_low"], row["exponent_high"])]
    if row["theory"] is not None:
        parts.append(f"theory {fraction(row['theory'])}")
    yours = "yours: " if row.get("origin") == "yours" else ""
    return yours + ", ".join(parts)


def _lines(laws: pl.DataFrame, groups: list[str], end: str) -> pl.DataFrame:
    """Returns two points a law; ``end`` is "last" (the fit) or "by_theory"."""
    begin = "first" if end == "last" else "anchor"
    both = [
        laws.select(*groups, pl.col(at).alias("at"), _power(name).alias("rate"))
        for at, name in (("at_first", begin), ("at_last", end))
    ]
    kept = laws.filter(pl.col(end).is_not_null()).select(groups)
    return pl.concat(both).join(kept, on=groups, how="semi", maintain_order="left")


def _power(*logs: str) -> pl.Expr:
    return (pl.col(*logs) * math.log(2)).exp()


def _rates(ends: dict[str, float | None]) -> str:
    low, high = ends["low"], ends["high"]
    if low is None and high is None:
        return "none"
    said = ["below the grid" if low is None else f"{2**low:.3g}"]
    return " to ".join([*said, "above the grid" if high is None else f"{2**high:.3g}"])


def _said(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _ticks(bottom: float, top: float) -> list[float]:
    """Returns powers of two, seven at most."""
    first, last = math.ceil(bottom), math.floor(top)
    stride = max(1, math.ceil((last - first + 1) / 7))
    return [2.0**k for k in range(first, last + 1, stride)]
