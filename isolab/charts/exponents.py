"""Best learning rates against width, with the powers fitted to them."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, pixels, power_ticks, tips, width_axis
from isolab.charts.figure import Chart, facets, panel_columns
from isolab.charts.frames import (
    bars,
    bound,
    duplicates,
    origins,
    rate_interval_text,
    reach,
    short_interval,
    with_intervals,
)
from isolab.charts.layers import Plot, look_of
from isolab.charts.theme import LINE, POINT, fraction, signed, spelled, summarized, value_text

_LOGS = {"rate": "log_rate", "rate_low": "log_low", "rate_high": "log_high"}
_TRIANGLES = {"low": ("lowest", "triangle-down"), "high": ("highest", "triangle-up")}
_PANEL, _LINE = 190, 15  # pixels of a panel without texts, and of a line of text


def best_rate_vs_width(
    optima: pl.DataFrame,
    exponents: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
    title: str = "Best learning rate against width",
) -> Chart:
    """Draws best rates with their intervals, the power law fitted to them, and theory's.

    Each panel names the fitted powers of the width, with intervals, in the colours of their lines.
    Theory's line is dotted and starts at the smallest width's best rate.

    Args:
        optima: a row per group and width, as of :func:`~isolab.analysis.optimum.optima`: ``width``,
            ``rate``, ``rate_low``, ``rate_high``, ``edge``, and the group's columns: ``color``,
            ``rows``, ``columns`` and, where there is one, ``origin`` ("reference" or "yours").
        exponents: a row per group, as of :func:`~isolab.analysis.transfer.exponents`: the group's
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
    names = [*keys, "width", "edge", "rate"]
    look = look_of(
        spelled(with_intervals(optima.with_columns(logs), names, tuple(_LOGS.values()))), color
    )
    groups = list(dict.fromkeys([*panel, *look.columns]))
    duplicates(look.frame, [*groups, "width"])
    points = look.apart(look.frame)
    x = width_axis(points["width"], points["at"])
    points, notes = _with_rates(points, keys)
    laws = _laws(points, exponents, keys, groups, panel)
    most = int(bound(laws["line"], "max", -1)) + 1
    height = _PANEL + _LINE * most
    ends = laws.select("first", "last", "by_theory").unpivot()["value"].drop_nulls()
    bottom, top = reach(points, *ends, least=2.0)
    unit = (top - bottom) / (height - 26 - _LINE * most)
    low, high = bottom - unit * (18 + _LINE * most), top + unit * 8
    ticks = [2.0**k for k in power_ticks(math.ceil(bottom), math.floor(top))]
    y = axis("rate", "best learning rate (log2 axis)", [2**low, 2**high], 2, format=".2~g",
             values=ticks)  # fmt: skip
    plot = Plot(x, y, look)
    of_point = [*keys, ("width", "d"), ("rate", ".4~g", "best rate")]
    of_point += [("rates", "", "rate, 95% interval"), ("in_grid", "", "in the grid of rates")]
    intervals, cut = bars(points, low, high)
    intervals = intervals.with_columns(_power("low", "high"))

    layers = plot.draw(_lines(laws, groups, "first", "last"), LINE)
    dotted = LINE | {"strokeDash": [1.5, 3.5]}
    theory = _lines(laws, groups, "anchor", "by_theory")
    layers += plot.draw(theory, dotted, split=False, detail=list(look.columns))
    layers += plot.draw(intervals, {"type": "rule", "clip": True, "strokeWidth": 2}, 0.55,
                        y="low", y2="high")  # fmt: skip
    for (shape,), at in points.group_by(["shape"], maintain_order=True):
        mark = POINT | {"shape": shape, "size": 70, "strokeWidth": 2}
        layers += plot.draw(at, mark, tooltip=tips(*of_point))
    from_bottom = _LINE * (pl.col("lines").cast(int) - 1 - pl.col("line"))
    texts = laws.with_columns((height - 6 - from_bottom).alias("pixel"))
    where = {"x": 7, "y": pixels("pixel")}
    layers += plot.labels(texts, "text", channels=where, fontSize=11, align="left")
    said = []
    if exponents is not None:
        said = ["Line: a power law fitted to the best rates; below: its power [95% interval]."]
    if laws["by_theory"].is_not_null().any():
        said.append("Dotted: theory's power, from the best rate of the smallest width.")
    if (points["in_grid"] != "inside").any():
        said.append("Triangle: the best rate is the lowest (down) or highest (up) of the grid.")
    said += [*look.note, *cut, *summarized(notes)]
    return facets(points, layers, title, said, look, rows, columns, height)


def _with_rates(points: pl.DataFrame, keys: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns the points that have a rate, and what to say of widths without one."""
    ends = points.select(pl.col("low", "high")).rows()
    rates = [
        rate_interval_text(*(None if e is None else 2**e for e in its)) if its != (None, None)
        else "none"
        for its in ends
    ]  # fmt: skip
    inside = {edge: name for edge, (name, _) in _TRIANGLES.items()}
    shapes = {edge: shape for edge, (_, shape) in _TRIANGLES.items()}
    points = points.with_columns(
        pl.col("edge").replace(inside).fill_null("inside").alias("in_grid"),
        pl.col("edge").replace(shapes).fill_null("circle").alias("shape"),
        pl.Series("rates", rates, dtype=pl.String),
    ).sort(*keys, "width")
    none = points.filter(pl.col("value").is_null()).select(*keys, "width")
    notes = [
        f"No best rate for {', '.join(map(value_text, row[:-1]))}, width {row[-1]:g}: all diverged."
        for row in none.rows()
    ]
    drawn = points.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        raise ValueError("nothing to draw: no row has a rate that is positive and finite")
    return drawn, notes


def _laws(
    points: pl.DataFrame,
    exponents: pl.DataFrame | None,
    keys: list[str],
    groups: list[str],
    panel: list[str],
) -> pl.DataFrame:
    """Returns a row per group: its line's ends, theory's end (log2 of rates), and its text.

    ``line`` numbers the texts of a panel, ``lines`` counts them.
    """
    power = ["exponent", "exponent_low", "exponent_high", "intercept", "theory"]
    if exponents is None:
        exponents = points.select(groups).head(0).with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in power
        )  # fmt: skip
    else:
        require_columns(exponents, [*keys, *power[:-1]])
        duplicates(exponents, keys)
        exponents = spelled(exponents)
    if "theory" not in exponents.columns:
        exponents = exponents.with_columns(pl.lit(None, pl.Float64).alias("theory"))
    on = [name for name in groups if name in keys]
    its = exponents.select(*on, *power, pl.lit(True).alias("fitted")).with_columns(
        pl.col(name).cast(points.schema[name]) for name in on
    )
    at, width = pl.col("at"), pl.col("width").log(2)
    ends = points.group_by(groups, maintain_order=True).agg(
        at.first().alias("at_first"),
        at.last().alias("at_last"),
        width.first().alias("from"),
        width.last().alias("to"),
        pl.col("value").first().alias("anchor"),
    )
    start, slope = pl.col("intercept"), pl.col("exponent")
    laws = ends.join(its, on=on, how="left", maintain_order="left").with_columns(
        (start + slope * pl.col("from")).alias("first"),
        (start + slope * pl.col("to")).alias("last"),
        (pl.col("anchor") + pl.col("theory") * (pl.col("to") - pl.col("from"))).alias("by_theory"),
    )
    texts = [_law_text(row) for row in laws.iter_rows(named=True)]
    laws = laws.with_columns(pl.Series("text", texts, dtype=pl.String))
    counted = pl.lit(0).alias("panel") if not panel else pl.concat_str(panel).alias("panel")
    laws = laws.filter(pl.col("text") != "").sort(groups).with_columns(counted)
    # The fit's own columns may be infinite, and are in the text.
    return laws.drop(*power, "fitted").with_columns(
        pl.int_range(pl.len()).over("panel").alias("line"), pl.len().over("panel").alias("lines")
    )


def _law_text(row: dict[str, Any]) -> str:
    """Returns the fitted power with its interval, and theory's."""
    if row["fitted"] is None:
        return ""
    parts = ["no fit"]
    if row["exponent"] is not None:
        interval = short_interval(row["exponent_low"], row["exponent_high"])
        parts = [signed(row["exponent"]) + interval]
    if row["theory"] is not None:
        parts.append(f"theory {fraction(row['theory'])}")
    yours = "yours: " if row.get("origin") == "yours" else ""
    return yours + ", ".join(parts)


def _lines(laws: pl.DataFrame, groups: list[str], begin: str, end: str) -> pl.DataFrame:
    """Returns two points a law, from one of its columns to another; none where there is no end."""
    there = laws.filter(pl.col(end).is_not_null())
    both = [
        there.select(*groups, pl.col(at).alias("at"), _power(name).alias("rate"))
        for at, name in (("at_first", begin), ("at_last", end))
    ]
    return pl.concat(both)


def _power(*logs: str) -> pl.Expr:
    return (pl.col(*logs) * math.log(2)).exp()
