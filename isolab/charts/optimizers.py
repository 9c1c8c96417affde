"""The optimizers themselves: step times, invariances, updates, and the rates that theory gives."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.charts.channels import axis, names_axis, offset_by, padded, scaled, tips, width_axis
from isolab.charts.figure import Chart, Panel, facets, figure
from isolab.charts.frames import POSITIVE, decades, extent, log_domain
from isolab.charts.layers import Plot
from isolab.charts.series import series_of
from isolab.charts.theme import BAR, HEIGHT, LINE, POINT, TICK_1E, fraction, panel_width

_DASHES = {"full alignment": [1, 0], "no alignment": [5, 4]}
_APART = 2.6  # pixels between lines that coincide
# 1/32 rather than 0.03125
_RATIO = "datum.value < 1 ? '1/' + format(1 / datum.value, 'd') : format(datum.value, 'd')"


def step_time(frame: pl.DataFrame) -> Chart:
    """Draws milliseconds per step against width, and beside it, where there is one, over Adam's.

    Args:
        frame: a row per measurement; ``optimizer``, ``width`` and ``step_ms``. Several rows of one
            optimizer and width give a point at the median and a bar from lowest to highest.
    """
    values = {"step_ms": "step_ms"}
    series = series_of(frame, "optimizer", kept=["width"], values=values, allowed=POSITIVE)
    points, median = series.points, pl.col("step_ms").median()
    times = series.spread(points, ["width"], "step_ms", "repeats", median=median)
    on = ["width", *series.keys[1:]]
    base = times.filter(optimizer="adam").select(*on, base="median")
    times = times.join(base, on=on, how="left").with_columns(
        ratio=pl.col("median") / pl.col("base")
    )
    of_time: list[Any] = [*series.keys, "width", ("median", ".3f", "median (ms)")]
    of_time += [("low", ".3f", "lowest (ms)"), ("high", ".3f", "highest (ms)")]
    tooltip = tips(*of_time, ("ratio", ".3f", "ratio to adam"), "repeats")
    x, ends = width_axis(times["width"]), log_domain("step_ms", points["step_ms"])
    y = axis("median", "ms a step (log10 axis)", ends, 10, format="~g", tickCount=5)
    plot = Plot(x, y, series)
    layers = plot.draw(times, BAR, y="low", y2="high") + plot.means(times, tooltip, 60)
    panels = [Panel("milliseconds", layers, panel_width(2), HEIGHT)]
    notes = ["Point: median of the repeats; bar: lowest to highest."]
    if not base.is_empty():
        ratios = times.drop_nulls("ratio")
        ends = padded(*extent(pl.concat([ratios["ratio"], pl.Series([1.0])])))
        plot = Plot(x, axis("ratio", "step time over adam's", ends), series)
        layers = plot.means(ratios, tooltip, 60)
        panels.append(Panel("ratio to adam", layers, panel_width(2), HEIGHT))
        notes.append("Ratio to adam: of the medians, at the same width.")
    return figure(panels, "Time of a training step", notes, series, len(panels))


def invariance(frame: pl.DataFrame) -> Chart:
    """Draws how much an update changes when a layer's inputs or outputs are transformed.

    A point a draw, a bar at the median, per condition and optimizer, on a log10 axis. A change of
    exactly 0 is a triangle at the left edge.

    Args:
        frame: a row per draw; columns ``optimizer``, ``condition`` (in words, drawn in the order of
            the frame) and ``relative_change`` (finite, 0 or above; of singular values or norms).

    Raises:
        ValueError: for a change that is negative or not finite.
    """
    values, allowed = {"change": "relative_change"}, "finite and 0 or above"
    series = series_of(frame, "optimizer", kept=["condition"], values=values, allowed=allowed)
    points, keys = series.points, [*series.keys, "condition"]
    positive = points.filter(pl.col("change") > 0)
    zeros = points.filter(pl.col("change") == 0).group_by(keys).agg(draws=pl.len())
    zeros = zeros.with_columns(pl.lit("exactly 0").alias("at the left edge"))
    median = pl.col("change").median()
    medians = series.spread(positive, ["condition"], "change", "draws", median=median)
    low, high = decades(positive["change"], 1e-9, 1.0)
    low -= 0 if zeros.is_empty() else 1
    ticks = [10.0**k for k in range(high, low - 1, -math.ceil((high - low) / 8))]
    named, domain = "relative change (log10 axis)", [10.0**low, 10.0**high]
    x = axis("change", named, domain, 10, values=ticks, labelExpr=TICK_1E)
    conditions = points["condition"].unique(maintain_order=True).to_list()
    title_y = "condition number of the transformation"
    y = names_axis("condition", conditions, title_y, labelLimit=320, bandPosition=0)
    y["scale"] |= {"paddingInner": 0.15, "paddingOuter": 0.1}
    offset = offset_by("optimizer", points["optimizer"])
    plot = Plot(x, y, series)
    dot, of_draw = POINT | {"size": 40}, tips(*keys, ("change", ".3e"))
    layers = plot.draw(positive, dot, 0.35, tooltip=of_draw, **offset)
    of_median = tips(*keys, ("median", ".3e"), ("low", ".3e"), ("high", ".3e"), "draws")
    tick = {"type": "tick", "thickness": 3, "size": 15}
    layers += plot.draw(medians, tick, x="median", tooltip=of_median, **offset)
    triangle, at_edge = POINT | {"shape": "triangle-left", "size": 80}, "at the left edge"
    note, of_zero = "Triangle at the left edge: exactly 0", tips(*keys, at_edge, "draws")
    layers += plot.draw(zeros, triangle, note=note, x=8, tooltip=of_zero, **offset)
    height = max(len(conditions) * (18 * points["optimizer"].n_unique() + 14), 120)
    heading = "Change of the update under transformations"
    return facets(series, layers, heading, ["Point: a draw; bar: the median"], height, zoom=False)


def theory_rates(frame: pl.DataFrame) -> Chart:
    """Draws how each role's rate must follow the width, for every parameterization and rule.

    Lines of different roles that coincide are drawn side by side. The number at the right end of a
    line is its power of the width.

    Args:
        frame: a row per point, as of :func:`isolab.theory.tables.rate_lines`:
            ``parameterization``, ``rule``, ``alignment`` ("full" or "none"), ``role``, ``width``
            and ``factor`` (rate over the rate at the base width).
    """
    kept, values = ["alignment", "width"], {"factor": "factor"}
    panels = "parameterization", "rule"
    series = series_of(frame, "role", *panels, kept, values, allowed=POSITIVE, unique=kept)
    each, width = [*panels, "alignment", "role"], pl.col("width").cast(pl.Float64)
    points = series.points.with_columns(width).sort(*each, "width")
    factor, width = (pl.col(n).last().log() - pl.col(n).first().log() for n in ("factor", "width"))
    power = (factor / width).over(each).fill_nan(None)  # null where there is one width only
    points = points.with_columns(power=power.map_elements(fraction, return_dtype=pl.String))
    roles, kinds = (points[n].unique().sort().to_list() for n in ("role", "alignment"))
    x = width_axis(points["width"], share=0.12)  # for the powers, right of the lines
    lowest, highest = extent(points["factor"])
    domain = lowest / 2.5, highest * 2.5
    y = axis("factor", "rate / base rate", domain, 2, labelExpr=_RATIO, tickCount=5)
    plot = Plot(x, y, series)
    dash = scaled("alignment", {k: _DASHES.get(k, [2, 2]) for k in kinds}, "alignment")
    tooltip = tips(*each, ("width", "d"), ("factor", ".4~g"), "power")
    layers = []
    for i, role in enumerate(roles):
        mark = LINE | {"yOffset": _APART * (i - (len(roles) - 1) / 2)}
        its = points.filter(pl.col("role") == role)
        layers += plot.draw(its, mark, strokeDash=dash, tooltip=tooltip)
    ends = points.group_by(each, maintain_order=True).last()
    once = ends.unique([*panels, "power"], maintain_order=True)
    font: Any = {"color": "#333333", "fontSize": 11, "align": "left"}
    layers += plot.labels(once, "power", None, dy=4, dx=5, **font)
    notes = [
        "Both axes are log2; the number at a line's end is its power of the width.",
        "Lines side by side have the same rate; a line with no dashed one beside it has the same "
        "rate at either alignment.",
    ]
    heading = "Largest stable learning rate against width, by theory"
    return facets(series, layers, heading, notes, 150)


def update_function(frame: pl.DataFrame) -> Chart:
    """Draws Adam's and Adam-atan2's updates as functions of m / sqrt(v); Adam's are dashed.

    Args:
        frame: from :func:`isolab.theory.update_function.update_function`.
    """
    in_order = pl.Enum(frame["function"].unique(maintain_order=True))
    frame = frame.with_columns(pl.col("function").cast(in_order))
    kept, values = ["optimizer", "ratio", "update", "slope"], {"bound": "bound"}
    series = series_of(frame, "function", kept=kept, values=values, unique=["ratio"])
    points = series.points
    far = 1.05 * extent(points["update"].abs())[1]
    x = axis("ratio", "m / √v", extent(points["ratio"]), format="~g")
    plot = Plot(x, axis("update", "update, before the rate", [-far, far]), series)
    dash = scaled("optimizer", {"adam": [6, 4], "adam_atan2": [1, 0]}) | {"legend": None}
    numbers_of = ("ratio", ".2f"), ("update", ".3f"), ("slope", ".3f")
    tooltip = tips("function", *numbers_of, ("bound", ".3f", "largest update"))
    layers = plot.draw(points, LINE | {"strokeWidth": 2.2}, strokeDash=dash, tooltip=tooltip)
    for along in ("x", "y"):
        layers += plot.rules([0.0], along, color="#999999", strokeDash=[1, 0])
    notes = ["Dashed: Adam. A ratio of 1: a gradient that never changes."]
    return facets(series, layers, "Update against the ratio of moments", notes)
