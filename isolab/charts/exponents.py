"""Best learning rates and gradients against width, with the powers fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns, require_unique
from isolab.charts.channels import axis, pixels, power_ticks, spread, tips, width_axis
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import POSITIVE, bars, log_domain, rate_interval_text, reach
from isolab.charts.layers import Plot
from isolab.charts.series import Series, keys_of, series_of
from isolab.charts.theme import BAR, LINE, POINT, fraction, signed, spelled, summarized, value_text

_RATES = ("rate", "rate_low", "rate_high")
_POWER = ("exponent", "exponent_low", "exponent_high", "intercept", "theory")
_IN_GRID = {"low": "lowest", "high": "highest", None: "inside"}
_SHAPES = {"lowest": "triangle-down", "highest": "triangle-up", "inside": "circle"}
_PANEL, _LINE = 190, 15  # pixels of a panel without texts, and of a line of text
_GRADIENTS, _TEXT = 260, 85  # pixels that a panel of gradients is tall, that its texts are wide


def best_rate_vs_width(
    optima: pl.DataFrame,
    exponents: pl.DataFrame,
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
            ``exponent``, ``exponent_low``, ``exponent_high``, ``intercept`` and ``theory``:
            theory's power of the width, or null.

    Raises:
        ValueError: if no row has a rate.
    """
    require_columns(optima, [*keys_of(optima, rows, columns, color), "width", "edge", *_RATES])
    logs = {name.replace("rate", "log"): pl.col(name).cast(pl.Float64).log(2) for name in _RATES}
    optima, kept = optima.with_columns(**logs), ["width", "edge", "rate"]
    series = series_of(optima, color, rows, columns, kept, interval="log", unique=["width"])
    moved = series.moved()
    x = width_axis(moved["width"], moved["at"])
    points, lost = _with_rates(moved, series.keys)
    points = _with_laws(points, exponents, series)
    texts = points.filter(pl.col("text").is_not_null()).unique(series.groups, keep="first")
    whole = pl.concat_str(series.panel) if series.panel else pl.lit(0)
    line = pl.int_range(pl.len()).over(whole)
    texts = texts.sort(series.groups).with_columns(line=line, lines=pl.len().over(whole).cast(int))
    most = max(texts["lines"], default=0)
    height = _PANEL + _LINE * most
    ends = points.select("fitted", "by_theory").unpivot()["value"].drop_nulls()
    bottom, top = reach(points, *ends, least=2.0)
    unit = (top - bottom) / (height - 26 - _LINE * most)
    low, high = bottom - unit * (18 + _LINE * most), top + unit * 8
    ticks = [2.0**k for k in power_ticks(math.ceil(bottom), math.floor(top))]
    named = "best learning rate (log2 axis)"
    y = axis("rate", named, [2**low, 2**high], 2, format=".2~g", values=ticks)
    plot = Plot(x, y, series)
    of_point = [*series.keys, ("width", "d"), ("rate", ".4~g", "best rate")]
    of_point += [("rates", "", "rate, 95% interval"), ("in_grid", "", "in the grid of rates")]
    intervals, cut = bars(points, low, high)

    fitted = points.filter(pl.col("fitted").is_not_null()).with_columns(rate=_power("fitted"))
    layers = plot.draw(fitted, LINE)
    theory = points.filter(pl.col("by_theory").is_not_null()).with_columns(rate=_power("by_theory"))
    dotted = LINE | {"strokeDash": [1.5, 3.5]}
    note = "Dotted: theory's power, from the best rate of the smallest width."
    layers += plot.draw(theory, dotted, split=False, note=note, detail=series.apart)
    intervals = intervals.with_columns(_power("low", "high"))
    layers += plot.draw(intervals, BAR, 0.55, note=cut, y="low", y2="high")
    for (where,), at in points.group_by(["in_grid"], maintain_order=True):
        mark = POINT | {"shape": _SHAPES[str(where)], "size": 70, "strokeWidth": 2}
        edge = "Triangle: the best rate is the lowest (down) or highest (up) of the grid."
        note = "" if where == "inside" else edge
        layers += plot.draw(at, mark, note=note, tooltip=tips(*of_point))
    from_bottom = _LINE * (pl.col("lines") - 1 - pl.col("line"))
    texts = texts.with_columns((height - 6 - from_bottom).alias("pixel"))
    layers += plot.labels(texts, "text", x=7, y=pixels("pixel"), fontSize=11, align="left")
    law = "Line: a power law fitted to the best rates; below: its power [95% interval]."
    heading = "Best learning rate against width"
    return facets(series, layers, heading, [law, *summarized(lost)], height)


def _with_rates(points: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns the points that have a rate, and what to say of widths without one."""
    ends = points.select(_power("low", "high")).rows()
    texts = ["none" if its == (None, None) else rate_interval_text(*its) for its in ends]
    points = points.with_columns(
        pl.col("edge").replace_strict(_IN_GRID, return_dtype=pl.String).alias("in_grid"),
        pl.Series("rates", texts, dtype=pl.String),
    ).sort(*keys, "width")
    notes = [
        f"No best rate for {', '.join(map(value_text, row[:-1]))}, width {row[-1]:g}: all diverged."
        for row in points.filter(pl.col("value").is_null()).select(*keys, "width").rows()
    ]
    drawn = points.drop_nulls("value")
    if drawn.is_empty():
        raise ValueError("nothing to draw: no row has a rate that is positive and finite")
    return drawn, notes


def _with_laws(points: pl.DataFrame, exponents: pl.DataFrame, series: Series) -> pl.DataFrame:
    """Adds log2 of the ``fitted`` rate and ``by_theory``, and the law's ``text``, of its group."""
    on = [name for name in series.groups if name in series.keys]
    require_columns(exponents, _POWER)
    require_unique(exponents, on, "keep one law for each series")
    laws = spelled(exponents).select(*on, *_POWER)
    texts = [_law_text(row) for row in laws.iter_rows(named=True)]
    laws = laws.with_columns(
        pl.Series("text", texts, dtype=pl.String),
        *(pl.col(name).cast(points.schema[name]) for name in on),
    )
    log, value = pl.col("width").log(2), pl.col("value")
    octaves = log - log.first().over(series.groups)
    return (
        points.join(laws, on=on, how="left", maintain_order="left")
        .with_columns(
            fitted=pl.col("intercept") + pl.col("exponent") * log,
            by_theory=value.first().over(series.groups) + pl.col("theory") * octaves,
        )
        .drop(_POWER)  # they may be infinite, and are in the text
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


def _power(*logs: str) -> pl.Expr:
    return (pl.col(*logs) * math.log(2)).exp()


def gradient_sizes(gradients: pl.DataFrame, exponents: pl.DataFrame) -> Chart:
    """Draws each role's gradient against width, log-log, and theory's slope beside it.

    A panel a parameterization. A point a seed, a line through their geometric means, and a thin
    dashed line of theory's slope from the narrowest width. The number at a line's end is the fitted
    power of the width, theory's in brackets; tooltips hold the interval.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`, of one step.
        exponents: from :func:`isolab.measure.gradients.gradient_exponents`, of the same frame.
            Both have ``origin`` where one has it.

    Raises:
        ValueError: for a gradient that is not positive and finite.
    """
    group = [*keys_of(gradients, "parameterization", "step"), "role"]
    require_columns(exponents, [*group, "exponent", "exponent_low", "exponent_high", "theory"])
    one, kept = ["width", "seed"], ["step", "width", "seed"]
    panels, size = (None, "parameterization"), {"size": "gradient_rms"}
    series = series_of(gradients, "role", *panels, kept, size, allowed=POSITIVE, unique=one)
    points, means = series.points, _with_powers(series.points, exponents, group)
    share = _TEXT / (series.width - _TEXT)  # for powers, right of the lines
    domain = log_domain("gradient", pl.concat([points["size"], means["by theory"].drop_nulls()]))
    y = axis("size", "rms of the gradient (log10 axis)", domain, 10, format=".0e", tickCount=6)
    plot = Plot(width_axis(points["width"], share=share), y, series)
    where = [*group, ("width", "d")]
    of_mean = [("size", ".3~e", "geometric mean"), ("power", ".3f", "fitted power")]
    tooltip = tips(*where, *of_mean, ("interval", "", "95% interval"))
    layers = plot.draw(means, LINE, tooltip=tooltip)
    of_point = tips(*where, ("size", ".3~e"), "seed")
    layers += plot.draw(points, POINT | {"size": 22}, 0.55, tooltip=of_point)
    theory = LINE | {"strokeWidth": 1.2, "strokeDash": [4, 3]}
    layers += plot.draw(means, theory, 0.9, split=False, y="by theory")
    ends = means.group_by(group, maintain_order=True).last()
    decade = _GRADIENTS / math.log10(domain[1] / domain[0])  # in pixels
    for _, its in ends.group_by("parameterization", maintain_order=True):
        down = [(0.0, -math.log10(size) * decade) for size in its["size"]]
        moved = [round(d - y) for d, (_, y) in zip(spread(down, 1, 13), down, strict=True)]
        its = its.with_columns(pl.Series("dy", moved, dtype=pl.Int64))
        layers += plot.moved_labels(its, "text", ["dy"], dx=6, fontSize=11, align="left")
    notes = [
        "Point: a seed. Line: their geometric mean. Dashed: theory's slope, from the narrowest"
        " width.",
        "The number at a line's end is its power of the width, fitted, and by theory in brackets.",
    ]
    heading = "Root mean square of the gradient against width"
    return facets(series, layers, heading, notes, _GRADIENTS)


def _with_powers(points: pl.DataFrame, exponents: pl.DataFrame, group: list[str]) -> pl.DataFrame:
    """Returns geometric means over seeds, the fitted ``power``, its ``interval`` and ``text``."""
    texts = [
        "no fit" if exponent is None else f"{signed(-exponent)} ({fraction(-theory)})"
        for exponent, theory in exponents.select("exponent", "theory").rows()
    ]
    ends = [(-pl.col(name)).round(2) for name in ("exponent_high", "exponent_low")]
    numbers = {"power": -pl.col("exponent"), "interval": pl.format("{} to {}", *ends)}
    fits = exponents.with_columns(text=pl.Series(texts, dtype=pl.String), **numbers)
    fits = spelled(fits).select(*group, "theory", *numbers, "text")
    fits = fits.cast({name: points.schema[name] for name in group})
    means = points.group_by(*group, "width").agg(pl.col("size").log().mean().exp())
    means = means.sort(*group, "width").join(fits, on=group, how="left", maintain_order="left")
    octaves = pl.col("width").log() - pl.col("width").log().first().over(group)
    by_theory = pl.col("size").first().over(group) * (-pl.col("theory") * octaves).exp()
    return means.with_columns(by_theory.alias("by theory")).drop("theory")
