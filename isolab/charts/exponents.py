"""Best learning rates against width, with the powers fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts import frames
from isolab.charts.channels import axis, pixels, power_ticks, tips, width_axis
from isolab.charts.figure import Chart, facets, panel_columns
from isolab.charts.layers import Plot, style_of
from isolab.charts.theme import BAR, LINE, POINT, fraction, signed, spelled, summarized, value_text

_RATES = ("rate", "rate_low", "rate_high")
_POWER = ("exponent", "exponent_low", "exponent_high", "intercept")
_IN_GRID = {"low": "lowest", "high": "highest", None: "inside"}
_SHAPES = {"low": "triangle-down", "high": "triangle-up", None: "circle"}
_PANEL, _LINE = 190, 15  # pixels of a panel without texts, and of a line of text


def best_rate_vs_width(
    optima: pl.DataFrame,
    exponents: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
) -> Chart:
    """Draws best rates with their intervals, the power law fitted to them, and theory's.

    Each panel names the fitted powers of the width, with intervals, in the colours of their lines.
    Theory's line is dotted and starts at the smallest width's best rate.

    Args:
        optima: a row per group and width, as of :func:`~isolab.analysis.optimum.optima`: ``width``,
            ``rate``, ``rate_low``, ``rate_high``, ``edge``, ``color``, ``rows`` and ``columns``.
        exponents: a row per group, as of :func:`~isolab.analysis.transfer.exponents`:
            ``exponent``, ``exponent_low``, ``exponent_high``, ``intercept`` and, where theory has
            one, ``theory``: its power of the width.

    Raises:
        ValueError: if no row has a rate.
    """
    panel = panel_columns(rows, columns)
    keys = frames.keys_of(optima, *panel, color)
    require_columns(optima, [*keys, "width", "edge", *_RATES])
    logs = {name.replace("rate", "log"): pl.col(name).cast(pl.Float64).log(2) for name in _RATES}
    names = [*keys, "width", "edge", "rate"]
    style = style_of(
        spelled(frames.with_intervals(optima.with_columns(**logs), names, "log")), color
    )
    groups = style.groups(panel)
    frames.duplicates(style.frame, [*groups, "width"])
    points = style.apart(style.frame)
    x = width_axis(points["width"], points["at"])
    points, notes = _with_rates(points, keys)
    laws = _laws(points, exponents, groups, [n for n in groups if n in keys], panel)
    most = int(frames.extent(laws["line"], high=-1)[1]) + 1
    height = _PANEL + _LINE * most
    ends = laws.select("first", "last", "by_theory").unpivot()["value"].drop_nulls()
    bottom, top = frames.reach(points, *ends, least=2.0)
    unit = (top - bottom) / (height - 26 - _LINE * most)
    low, high = bottom - unit * (18 + _LINE * most), top + unit * 8
    ticks = [2.0**k for k in power_ticks(math.ceil(bottom), math.floor(top))]
    named = "best learning rate (log2 axis)"
    y = axis("rate", named, [2**low, 2**high], 2, format=".2~g", values=ticks)
    plot = Plot(x, y, style)
    of_point = [*keys, ("width", "d"), ("rate", ".4~g", "best rate")]
    of_point += [("rates", "", "rate, 95% interval"), ("in_grid", "", "in the grid of rates")]
    intervals, cut = frames.bars(points, low, high)
    intervals = intervals.with_columns(_power("low", "high"))

    layers = plot.draw(_lines(laws, groups, "first", "last"), LINE)
    dotted = LINE | {"strokeDash": [1.5, 3.5]}
    theory = _lines(laws, groups, "anchor", "by_theory")
    layers += plot.draw(theory, dotted, split=False, detail=list(style.columns))
    layers += plot.draw(intervals, BAR, 0.55, y="low", y2="high")
    for (shape,), at in points.group_by(["shape"], maintain_order=True):
        mark = POINT | {"shape": shape, "size": 70, "strokeWidth": 2}
        layers += plot.draw(at, mark, tooltip=tips(*of_point))
    from_bottom = _LINE * (pl.col("lines").cast(int) - 1 - pl.col("line"))
    texts = laws.with_columns((height - 6 - from_bottom).alias("pixel"))
    layers += plot.labels(texts, "text", x=7, y=pixels("pixel"), fontSize=11, align="left")
    subtitle = []
    if exponents is not None:
        subtitle = ["Line: a power law fitted to the best rates; below: its power [95% interval]."]
    if laws["by_theory"].is_not_null().any():
        subtitle.append("Dotted: theory's power, from the best rate of the smallest width.")
    if (points["in_grid"] != "inside").any():
        subtitle.append("Triangle: the best rate is the lowest (down) or highest (up) of the grid.")
    subtitle += [*style.note, *cut, *summarized(notes)]
    heading = "Best learning rate against width"
    return facets(points, layers, heading, subtitle, style, rows, columns, height)


def _with_rates(points: pl.DataFrame, keys: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns the points that have a rate, and what to say of widths without one."""
    ends = points.select(_power("low", "high")).rows()
    texts = ["none" if its == (None, None) else frames.rate_interval_text(*its) for its in ends]
    points = points.with_columns(
        pl.col("edge").replace_strict(_IN_GRID, return_dtype=pl.String).alias("in_grid"),
        pl.col("edge").replace_strict(_SHAPES, return_dtype=pl.String).alias("shape"),
        pl.Series("rates", texts, dtype=pl.String),
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
    groups: list[str],
    on: list[str],
    panel: Sequence[str],
) -> pl.DataFrame:
    """Returns a row per group with a law or theory's: its line's ends, theory's end, and its text.

    Ends are log2 of rates. ``line`` numbers the texts of a panel, ``lines`` counts them.
    """
    if exponents is None:
        schema = {name: points.schema[name] for name in on}
        exponents = pl.DataFrame(schema=schema | dict.fromkeys(_POWER, pl.Float64))
    require_columns(exponents, [*on, *_POWER])
    frames.duplicates(exponents, on)
    if "theory" not in exponents.columns:
        exponents = exponents.with_columns(theory=pl.lit(None, pl.Float64))
    its = spelled(exponents).select(*on, *_POWER, "theory")
    its = its.with_columns(pl.col(name).cast(points.schema[name]) for name in on)
    at, width = pl.col("at"), pl.col("width").log(2)
    places = {"at_first": at.first(), "at_last": at.last(), "anchor": pl.col("value").first()}
    ends = points.group_by(groups, maintain_order=True).agg(
        **places, start=width.first(), end=width.last()
    )
    start, slope, octaves = pl.col("intercept"), pl.col("exponent"), pl.col("end") - pl.col("start")
    laws = ends.join(its, on=on, how="inner", maintain_order="left").with_columns(
        first=start + slope * pl.col("start"),
        last=start + slope * pl.col("end"),
        by_theory=pl.col("anchor") + pl.col("theory") * octaves,
    )
    texts = [_law_text(row) for row in laws.iter_rows(named=True)]
    whole = pl.concat_str(panel) if panel else pl.lit(0)
    laws = laws.with_columns(pl.Series("text", texts, dtype=pl.String), whole.alias("panel"))
    # The fit's own columns may be infinite, and are in the text.
    return (
        laws.drop(*_POWER, "theory")
        .sort(groups)
        .with_columns(line=pl.int_range(pl.len()).over("panel"), lines=pl.len().over("panel"))
    )


def _law_text(row: dict[str, Any]) -> str:
    """Returns the fitted power with its interval, and theory's."""
    text = "no fit"
    if row["exponent"] is not None:
        bounds = [row["exponent_low"], row["exponent_high"]]
        known = [end is not None and math.isfinite(end) for end in bounds]
        ends = [signed(end) if its else "open" for end, its in zip(bounds, known, strict=True)]
        text = signed(row["exponent"]) + (f" [{', '.join(ends)}]" if any(known) else "")
    theory = "" if row["theory"] is None else f", theory {fraction(row['theory'])}"
    return "yours: " * (row.get("origin") == "yours") + text + theory


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
