"""The optimizers themselves: step times, invariances, updates, and the rates that theory gives."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.charts import frames
from isolab.charts.channels import axis, names_axis, offset_by, padded, scaled, tips, width_axis
from isolab.charts.figure import Chart, Panel, facets, figure
from isolab.charts.layers import Plot, style_of
from isolab.charts.theme import BAR, HEIGHT, LINE, POINT, TICK_1E, fraction, panel_width, spelled

_DASHES = {"full alignment": [1, 0], "no alignment": [5, 4]}
_APART = 2.6  # pixels between lines that coincide
# 1/32 rather than 0.03125
_RATIO = "datum.value < 1 ? '1/' + format(1 / datum.value, 'd') : format(datum.value, 'd')"


def step_time(frame: pl.DataFrame, baseline: str = "adam") -> Chart:
    """Draws milliseconds per step against width, and beside it the ratio to the baseline's.

    Args:
        frame: a row per measurement; ``optimizer``, ``width`` and ``step_ms``. Several rows of one
            optimizer and width give a point at the median and a bar from lowest to highest.
        baseline: the optimizer to divide by; without it in the frame the second panel is left out.
    """
    keys = frames.keys_of(frame, "optimizer")
    points = frames.finite(frame, [*keys, "width"], {"step_ms": "step_ms"}, lossless=True)
    median = pl.col("step_ms").median()
    times = frames.spread_of(spelled(points), [*keys, "width"], "step_ms", "repeats", median=median)
    base = times.filter(pl.col("optimizer") == baseline)
    base = base.select(*keys[1:], "width", base="median")
    times = times.join(base, on=[*keys[1:], "width"], how="left")
    times = times.with_columns(ratio=pl.col("median") / pl.col("base"))
    style = style_of(times, "optimizer")
    of_time: list[Any] = [*keys, "width", ("median", ".3f", "median (ms)")]
    of_time += [("low", ".3f", "lowest (ms)"), ("high", ".3f", "highest (ms)")]
    of_time += [("ratio", ".3f", f"ratio to {baseline}"), "repeats"]
    tooltip, x, wide = tips(*of_time), width_axis(times["width"]), panel_width(2)
    domain = frames.log_domain("step_ms", points["step_ms"])
    y = axis("median", "ms a step (log10 axis)", domain, 10, format="~g", tickCount=5)
    plot = Plot(x, y, style)
    layers = plot.draw(times, BAR, y="low", y2="high") + plot.means(times, tooltip, 60)
    panels = [Panel("milliseconds", layers, wide, HEIGHT)]
    notes = ["Point: median of the repeats; bar: lowest to highest.", *style.note]
    if not base.is_empty():
        ratios = times.filter(pl.col("ratio").is_not_null())
        ends = [*frames.extent(ratios["ratio"]), 1.0]
        domain = padded(min(ends), max(ends))
        plot = Plot(x, axis("ratio", f"step time over {baseline}'s", domain), style)
        layers = plot.means(ratios, tooltip, 60)
        panels.append(Panel(f"ratio to {baseline}", layers, wide, HEIGHT))
        notes.append(f"Ratio to {baseline}: of the medians, at the same width.")
    return figure(panels, "Time of a training step", notes, style, len(panels))


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
    keys = ["optimizer", "condition"]
    points = frames.finite(frame, keys, {"change": "relative_change"}, lossless=True, zero=True)
    positive, zero = points.filter(pl.col("change") > 0), points.filter(pl.col("change") == 0)
    zeros = zero.group_by(keys).agg(pl.len().alias("draws"))
    zeros = zeros.with_columns(pl.lit("exactly 0").alias("at the left edge"))
    medians = frames.spread_of(positive, keys, "change", "draws", median=pl.col("change").median())
    low, high = frames.decades(positive["change"], 1e-9, 1.0)
    low -= 0 if zeros.is_empty() else 1
    ticks = [10.0**k for k in range(high, low - 1, -math.ceil((high - low) / 8))]
    named, domain = "relative change (log10 axis)", [10.0**low, 10.0**high]
    x = axis("change", named, domain, 10, values=ticks, labelExpr=TICK_1E)
    conditions = points["condition"].unique(maintain_order=True).to_list()
    title_y = "condition number of the transformation"
    y = names_axis("condition", conditions, title_y, labelLimit=320, bandPosition=0)
    y["scale"] |= {"paddingInner": 0.15, "paddingOuter": 0.1}
    offset = offset_by("optimizer", points["optimizer"])
    plot = Plot(x, y, style_of(points, "optimizer"))
    of_median = [("median", ".3e"), ("low", ".3e"), ("high", ".3e"), "draws"]
    dot, tick = POINT | {"size": 40}, {"type": "tick", "thickness": 3, "size": 15}
    of_draw = tips(*keys, ("change", ".3e"))
    layers = plot.draw(frames.thinned(positive, "change"), dot, 0.35, tooltip=of_draw, **offset)
    layers += plot.draw(medians, tick, x="median", tooltip=tips(*keys, *of_median), **offset)
    notes = ["Point: a draw; bar: the median"]
    if not zeros.is_empty():
        notes.append("Triangle at the left edge: exactly 0")
        triangle = POINT | {"shape": "triangle-left", "size": 80}
        at_edge = tips(*keys, "at the left edge", "draws")
        layers += plot.draw(zeros, triangle, x=8, tooltip=at_edge, **offset)
    height = max(len(conditions) * (18 * points["optimizer"].n_unique() + 14), 120)
    heading = "Change of the update under transformations"
    return facets(points, layers, heading, notes, plot.style, height=height, zoom=False)


def theory_rates(frame: pl.DataFrame) -> Chart:
    """Draws how each role's rate must follow the width, for every parameterization and rule.

    Lines of different roles that coincide are drawn side by side. The number at the right end of a
    line is its power of the width.

    Args:
        frame: a row per point, as of :func:`isolab.theory.tables.rate_lines`:
            ``parameterization``, ``rule``, ``alignment`` ("full" or "none"), ``role``, ``width``
            and ``factor`` (rate over the rate at the base width).
    """
    names = ["parameterization", "rule", "alignment", "role"]
    points = spelled(frames.finite(frame, [*names, "width"], {"factor": "factor"}, lossless=True))
    points = points.with_columns(pl.col("width").cast(pl.Float64)).sort(*names, "width")
    frames.duplicates(points, [*names, "width"])
    ends = _powers(points, names)
    points = points.join(ends.select(*names, "power"), on=names, how="left")
    style = style_of(points, "role")
    roles, kinds = (points[n].unique().sort().to_list() for n in ("role", "alignment"))
    x = width_axis(points["width"], share=0.12)  # for the powers, right of the lines
    lowest, highest = frames.extent(points["factor"])
    domain = (lowest / 2.5, highest * 2.5)
    y = axis("factor", "rate / base rate", domain, 2, labelExpr=_RATIO, tickCount=5)
    plot = Plot(x, y, style)
    dash = scaled("alignment", {k: _DASHES.get(k, [2, 2]) for k in kinds}, "alignment")
    tooltip = tips(*names, ("width", "d"), ("factor", ".4~g"), "power")
    layers = []
    for i, role in enumerate(roles):
        mark = LINE | {"yOffset": _APART * (i - (len(roles) - 1) / 2)}
        its = frames.thinned(points.filter(pl.col("role") == role), "width")
        layers += plot.draw(its, mark, strokeDash=dash, tooltip=tooltip)
    once = ends.unique(["parameterization", "rule", "power"], maintain_order=True)
    font = {"color": "#333333", "fontSize": 11, "align": "left"}
    layers += plot.labels(once, "power", None, dy=4, dx=5, **font)
    notes = [
        "Both axes are log2; the number at a line's end is its power of the width.",
        "Lines side by side have the same rate; a line with no dashed one beside it has the same "
        "rate at either alignment.",
    ]
    heading = "Largest stable learning rate against width, by theory"
    return facets(points, layers, heading, notes, style, "parameterization", "rule", 150)


def _powers(points: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Returns each line's last point with its power of the width, as a fraction where it is one."""
    rows = []
    for _, line in points.group_by(names, maintain_order=True):
        first, last = line.row(0, named=True), line.row(-1, named=True)
        octaves, text = math.log(last["width"] / first["width"]), "one width only"
        if octaves:
            text = fraction(math.log(last["factor"] / first["factor"]) / octaves)
        rows.append(last | {"power": text})
    return pl.DataFrame(rows, schema=points.schema | {"power": pl.String})


def update_function(frame: pl.DataFrame) -> Chart:
    """Draws Adam's and Adam-atan2's updates as functions of m / sqrt(v); Adam's are dashed.

    Args:
        frame: from :func:`isolab.theory.update_function.update_function`.

    Raises:
        ValueError: for a number that is not finite.
    """
    frames.finite(frame, ["optimizer", "function"], {"ratio": "ratio", "update": "update"})
    frames.duplicates(frame, ["function", "ratio"])
    lost = frame.filter(~(pl.col("ratio").is_finite() & pl.col("update").is_finite()))
    if not lost.is_empty():
        raise ValueError(f"ratio and update must be finite, got {lost.row(0, named=True)}")
    order = frame["function"].unique(maintain_order=True).to_list()
    points = frames.thinned(frame, "ratio").with_columns(
        pl.col("function").cast(pl.Enum(order)),
        pl.when(pl.col("bound").is_finite()).then("bound").alias("bound"),
    )
    far = 1.05 * frames.extent(points["update"].abs())[1]
    x = axis("ratio", "m / √v", frames.extent(points["ratio"]), format="~g")
    y = axis("update", "update, before the rate", [-far, far])
    plot = Plot(x, y, style_of(points, "function"))
    dash = scaled("optimizer", {"adam": [6, 4], "adam_atan2": [1, 0]}) | {"legend": None}
    numbers = [("ratio", ".2f"), ("update", ".3f"), ("slope", ".3f")]
    tooltip = tips("function", *numbers, ("bound", ".3f", "largest update"))
    layers = plot.draw(points, LINE | {"strokeWidth": 2.2}, strokeDash=dash, tooltip=tooltip)
    for along in ("x", "y"):
        layers += plot.rules([0.0], along, color="#999999", strokeDash=[1, 0])
    notes = ["Dashed: Adam. A ratio of 1: a gradient that never changes."]
    return facets(points, layers, "Update against the ratio of moments", notes, plot.style)
