"""What was measured of optimizers apart from losses: step times and invariances."""

from __future__ import annotations

import math

import altair as alt
import polars as pl

from isolab.charts.parts import (
    HEIGHT,
    bound,
    colour,
    finish,
    finite,
    log_axis,
    log_domain,
    padded,
    thinned,
    tip,
)

# Vega writes 1e+1 and 1e-7; the plus only confuses.
_POWER = "replace(format(datum.value, '.0e'), '+', '')"


def step_time(
    frame: pl.DataFrame, baseline: str = "adam", title: str = "Time of a training step"
) -> alt.LayerChart | alt.HConcatChart:
    """Draws milliseconds per step against width, and beside it the ratio to the baseline's.

    Args:
        frame: a row per measurement; columns ``optimizer``, ``width``, ``step_ms``. Several rows of
            one optimizer and width give a point at the median and a bar from lowest to highest.
        baseline: the optimizer to divide by; without it in the frame the second panel is left out.

    Raises:
        ValueError: for missing columns, no rows, or a width or time that is not positive.
    """
    points = finite(frame, ["optimizer", "width"], {"step_ms": "step_ms"}, lossless=True)
    times = (
        points.group_by("optimizer", "width")
        .agg(
            pl.col("step_ms").median().alias("median"),
            pl.col("step_ms").min().alias("low"),
            pl.col("step_ms").max().alias("high"),
            pl.len().alias("repeats"),
        )
        .sort("optimizer", "width")
    )
    base = times.filter(pl.col("optimizer") == baseline).select("width", base="median")
    times = times.join(base, on="width", how="left").with_columns(
        (pl.col("median") / pl.col("base")).alias("ratio")
    )
    hue, pick, faded = colour(times["optimizer"], "optimizer")
    x = log_axis("width", times["width"], "width (log2 axis)", format="d")
    tips = [tip("optimizer"), tip("width"), tip("median", ".3f", "median (ms)")]
    tips += [tip("low", ".3f", "lowest (ms)"), tip("high", ".3f", "highest (ms)")]
    tips += [tip("ratio", ".3f", f"ratio to {baseline}"), tip("repeats")]
    drawn = alt.Chart(times).encode(x=x, color=hue, opacity=faded(1), tooltip=tips)
    domain = log_domain("step_ms", points["step_ms"])
    y = alt.Y("median:Q", title="ms a step (log10 axis)").scale(
        type="log", domain=domain, nice=False
    )
    y = y.axis(format="~g", tickCount=5)
    size = {"width": 320, "height": HEIGHT}
    point = alt.OverlayMarkDef(size=60)
    absolute = finish(
        [
            drawn.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q"),
            drawn.mark_line(strokeWidth=2, point=point).encode(y=y),
        ],
        title,
        ["Point: median of the repeats; bar: lowest to highest"],
        pick,
    ).properties(**size)
    if base.is_empty():
        return absolute
    ratios = times.filter(pl.col("ratio").is_not_null())
    low, high = bound(ratios["ratio"], "min"), bound(ratios["ratio"], "max")
    second = alt.Chart(ratios).encode(x=x, color=hue, opacity=faded(1), tooltip=tips)
    relative = finish(
        [
            second.mark_line(strokeWidth=2, point=point).encode(
                y=alt.Y("ratio:Q", title=f"step time over {baseline}'s").scale(
                    padded(min(low, 1.0), max(high, 1.0))
                )
            )
        ],
        f"Ratio to {baseline}",
        ["Of the medians, at the same width"],
        None,
    ).properties(**size)
    both: alt.HConcatChart = alt.hconcat(absolute, relative).resolve_scale(color="shared")
    return both


def invariance(
    frame: pl.DataFrame, title: str = "Change of the update under transformations"
) -> alt.LayerChart:
    """Draws how much an update changes when a layer's inputs or outputs are transformed.

    A point a draw, a bar at the median, per condition and optimizer, on a log10 axis. A change of
    exactly 0 is a triangle at the left edge.

    Args:
        frame: a row per draw; columns ``optimizer``, ``condition`` (in words, drawn in the order of
            the frame) and ``relative_change`` (finite, 0 or above; of singular values or norms).

    Raises:
        ValueError: for missing columns, no rows, or a change that is negative or not finite.
    """
    points = finite(
        frame, ["optimizer", "condition"], {"change": "relative_change"}, lossless=True, zero=True
    )
    positive = points.filter(pl.col("change") > 0)
    zeros = (
        points.filter(pl.col("change") == 0)
        .group_by("optimizer", "condition")
        .agg(pl.len().alias("draws"))
        .with_columns(pl.lit("exactly 0").alias("at the left edge"))
    )
    medians = positive.group_by("optimizer", "condition").agg(
        pl.col("change").median().alias("median"),
        pl.col("change").min().alias("low"),
        pl.col("change").max().alias("high"),
        pl.len().alias("draws"),
    )
    low, high = (-9, 0) if positive.is_empty() else _decades(positive["change"])
    low -= 0 if zeros.is_empty() else 1
    stride = math.ceil((high - low) / 8)
    x = (
        alt.X("change:Q", title="relative change (log10 axis)")
        .scale(type="log", domain=[10.0**low, 10.0**high], nice=False)
        .axis(values=[10.0**k for k in range(high, low - 1, -stride)], labelExpr=_POWER)
    )
    conditions = points["condition"].unique(maintain_order=True).to_list()
    optimizers = points["optimizer"].unique().sort().to_list()
    y = alt.Y("condition:N", title="condition number of the transformation", sort=conditions)
    y = y.axis(labelLimit=320, ticks=False, domain=False, grid=True, bandPosition=0)
    y = y.scale(paddingInner=0.15, paddingOuter=0.1)
    offset = alt.YOffset("optimizer:N", sort=optimizers)
    hue, pick, faded = colour(points["optimizer"], "optimizer")
    where = [tip("optimizer"), tip("condition")]

    def drawn(rows: pl.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(y=y, yOffset=offset, color=hue)

    layers = [
        drawn(thinned(positive, "change"))
        .mark_circle(size=40)
        .encode(x=x, opacity=faded(0.35), tooltip=[*where, tip("change", ".3e")]),
        drawn(medians)
        .mark_tick(thickness=3, size=15)
        .encode(
            x=alt.X("median:Q"),
            opacity=faded(1),
            tooltip=[
                *where,
                *(tip(name, ".3e") for name in ("median", "low", "high")),
                tip("draws"),
            ],
        ),
    ]
    notes = ["Point: a draw; bar: the median"]
    if not zeros.is_empty():
        notes.append("Triangle at the left edge: exactly 0")
        layers.append(
            drawn(zeros)
            .mark_point(shape="triangle-left", filled=True, size=80)
            .encode(
                x=alt.value(8),
                opacity=faded(1),
                tooltip=[*where, tip("at the left edge"), tip("draws")],
            )
        )
    height = len(conditions) * (18 * len(optimizers) + 14)
    return finish(layers, title, notes, pick, zoom=False).properties(height=max(height, 120))


def _decades(values: pl.Series) -> tuple[int, int]:
    low, high = bound(values, "min"), bound(values, "max")
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return bottom, max(top, bottom + 1)
