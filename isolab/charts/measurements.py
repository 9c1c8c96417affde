"""What was measured of optimizers apart from losses: step times and invariances."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.charts.channels import axis, names_axis, padded, tips, width_axis
from isolab.charts.figure import Chart, Panel, facets, figure
from isolab.charts.frames import bound, decades, finite, log_domain, origins, spread_of, thinned
from isolab.charts.layers import Plot, look_of
from isolab.charts.theme import BAR, HEIGHT, LINE, POINT, TICK_1E, Spec, panel_width, spelled


def step_time(
    frame: pl.DataFrame, baseline: str = "adam", title: str = "Time of a training step"
) -> Chart:
    """Draws milliseconds per step against width, and beside it the ratio to the baseline's.

    Args:
        frame: a row per measurement; columns ``optimizer``, ``width``, ``step_ms`` and, where there
            is one, ``origin``. Several rows of one optimizer and width give a point at the median
            and a bar from lowest to highest.
        baseline: the optimizer to divide by; without it in the frame the second panel is left out.

    Raises:
        ValueError: for missing columns, no rows, or a width or time that is not positive.
    """
    keys = ["optimizer", *origins(frame)]
    points = finite(frame, [*keys, "width"], {"step_ms": "step_ms"}, lossless=True)
    times = spread_of(spelled(points), [*keys, "width"], "step_ms", "repeats", "median")
    base = times.filter(pl.col("optimizer") == baseline)
    times = times.join(
        base.select(*keys[1:], "width", base="median"), on=[*keys[1:], "width"], how="left"
    ).with_columns((pl.col("median") / pl.col("base")).alias("ratio"))
    look = look_of(times, "optimizer")
    of_time: list[Any] = [*keys, "width", ("median", ".3f", "median (ms)")]
    of_time += [("low", ".3f", "lowest (ms)"), ("high", ".3f", "highest (ms)")]
    of_time += [("ratio", ".3f", f"ratio to {baseline}"), "repeats"]
    tooltip, dot = tips(*of_time), POINT | {"size": 60}
    x, wide = width_axis(times["width"]), panel_width(2)
    y = axis("median", "ms a step (log10 axis)", log_domain("step_ms", points["step_ms"]), 10,
             format="~g", tickCount=5)  # fmt: skip
    plot = Plot(x, y, look)
    layers = plot.draw(times, LINE)
    layers += plot.draw(times, BAR, y="low", y2="high") + plot.draw(times, dot, tooltip=tooltip)
    panels = [Panel("milliseconds", layers, wide, HEIGHT)]
    notes = ["Point: median of the repeats; bar: lowest to highest.", *look.note]
    if not base.is_empty():
        ratios = times.filter(pl.col("ratio").is_not_null())
        ends = [bound(ratios["ratio"], "min"), bound(ratios["ratio"], "max"), 1.0]
        domain = padded(min(ends), max(ends))
        plot = Plot(x, axis("ratio", f"step time over {baseline}'s", domain), look)
        layers = plot.draw(ratios, LINE) + plot.draw(ratios, dot, tooltip=tooltip)
        panels.append(Panel(f"ratio to {baseline}", layers, wide, HEIGHT))
        notes.append(f"Ratio to {baseline}: of the medians, at the same width.")
    return figure(panels, title, notes, look, len(panels))


def invariance(
    frame: pl.DataFrame, title: str = "Change of the update under transformations"
) -> Chart:
    """Draws how much an update changes when a layer's inputs or outputs are transformed.

    A point a draw, a bar at the median, per condition and optimizer, on a log10 axis. A change of
    exactly 0 is a triangle at the left edge.

    Args:
        frame: a row per draw; columns ``optimizer``, ``condition`` (in words, drawn in the order of
            the frame) and ``relative_change`` (finite, 0 or above; of singular values or norms).

    Raises:
        ValueError: for missing columns, no rows, or a change that is negative or not finite.
    """
    keys = ["optimizer", "condition"]
    points = finite(frame, keys, {"change": "relative_change"}, lossless=True, zero=True)
    positive, zero = points.filter(pl.col("change") > 0), points.filter(pl.col("change") == 0)
    zeros = zero.group_by(keys).agg(pl.len().alias("draws"))
    zeros = zeros.with_columns(pl.lit("exactly 0").alias("at the left edge"))
    medians = spread_of(positive, keys, "change", "draws", "median")
    low, high = decades(positive["change"], 1e-9, 1.0)
    low -= 0 if zeros.is_empty() else 1
    ticks = [10.0**k for k in range(high, low - 1, -math.ceil((high - low) / 8))]
    x = axis("change", "relative change (log10 axis)", [10.0**low, 10.0**high], 10,
             values=ticks, labelExpr=TICK_1E)  # fmt: skip
    conditions = points["condition"].unique(maintain_order=True).to_list()
    optimizers = points["optimizer"].unique().sort().to_list()
    title_y = "condition number of the transformation"
    y = names_axis("condition", conditions, title_y, labelLimit=320, bandPosition=0)
    y["scale"] |= {"paddingInner": 0.15, "paddingOuter": 0.1}
    offset: Spec = {"yOffset": {"field": "optimizer", "type": "nominal", "sort": optimizers}}
    plot = Plot(x, y, look_of(points, "optimizer"))
    of_median = [("median", ".3e"), ("low", ".3e"), ("high", ".3e"), "draws"]
    dot, tick = POINT | {"size": 40}, {"type": "tick", "thickness": 3, "size": 15}
    of_draw = tips(*keys, ("change", ".3e"))
    layers = plot.draw(thinned(positive, "change"), dot, 0.35, tooltip=of_draw, **offset)
    layers += plot.draw(medians, tick, x="median", tooltip=tips(*keys, *of_median), **offset)
    notes = ["Point: a draw; bar: the median"]
    if not zeros.is_empty():
        notes.append("Triangle at the left edge: exactly 0")
        triangle = POINT | {"shape": "triangle-left", "size": 80}
        at_edge = tips(*keys, "at the left edge", "draws")
        layers += plot.draw(zeros, triangle, x=8, tooltip=at_edge, **offset)
    height = max(len(conditions) * (18 * len(optimizers) + 14), 120)
    return facets(points, layers, title, notes, plot.look, height=height, zoom=False)
