"""Losses against the learning rate."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.optimum import optimum
from isolab.charts.parts import (
    EDGE_MARK,
    bound,
    ceiling,
    colour,
    duplicates,
    finish,
    finite,
    label,
    log_axis,
    padded,
    shown,
    tip,
    title_of,
)


def loss_vs_rate(
    runs: pl.DataFrame,
    color: str = "optimizer",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    title: str = "Loss against learning rate",
) -> alt.LayerChart:
    """Draws a rate sweep: a point a run, a line through seed means, a diamond at the best rate.

    The diamond and its bar are :func:`~isolab.analysis.optimum.optimum`'s rate, loss and rate
    interval. Diverged runs are crosses at the top edge, at their rate; runs so far above the rest
    that they would flatten it are triangles there. A line breaks where a seed diverged.

    Args:
        runs: a row per run; ``color``, ``rate``, ``loss`` (+inf or NaN where diverged), ``seed``.

    Raises:
        ValueError: for missing columns, no rows, two runs of one rate and seed, or a rate that is
            not a positive number.
    """
    points = finite(runs, [color, rate, seed], {"loss": loss})
    duplicates(points, [color, rate, seed])
    means = (
        points.group_by(color, rate)
        .agg(
            pl.col("loss").mean().alias("mean"),
            pl.col("loss").is_null().any().alias("diverged"),
            pl.len().alias("seeds"),
        )
        .sort(color, rate)
        .with_columns(pl.col("diverged").cum_sum().over(color).alias("segment"))
        .filter(~pl.col("diverged"))
    )
    best, notes = _best_rates(runs, color, rate, loss, seed)
    top = ceiling(means["mean"], points["loss"])
    edge = points.with_columns(
        pl.when(pl.col("loss").is_null())
        .then(pl.lit("diverged"))
        .when(pl.col("loss") > top)
        .then(pl.lit("above the axis"))
        .alias(EDGE_MARK)
    ).filter(pl.col(EDGE_MARK).is_not_null())
    groups = edge[color].unique().sort().to_list()
    if groups:
        notes.insert(0, "Runs that diverged or lie above the axis are drawn at the top edge")

    hue, pick, faded = colour(points[color], color)
    x = log_axis(rate, points[rate], f"{title_of(rate)} (log2 axis)")
    x_range = math.log2(bound(points[rate], "max") / bound(points[rate], "min"))
    bottom = bound(pl.concat([points["loss"], best["loss"]]), "min", default=0.0)
    best = best.with_columns(_lines(best, rate, x_range, top - bottom).alias("line"))
    lines = 1 + int(bound(best["line"], "max", default=0))
    y = alt.Y("loss:Q", title=title_of(loss)).scale(padded(bottom, top, len(groups), lines))
    where = [tip(color), tip(rate, ".4~g")]

    def drawn(rows: pl.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(x=x, color=hue)

    layers = [
        drawn(means)
        .mark_line(clip=True, strokeWidth=2)
        .encode(y=alt.Y("mean:Q"), detail="segment:N", opacity=faded(1)),
        drawn(points.filter(pl.col("loss") <= top))
        .mark_circle(clip=True, size=36)
        .encode(y=y, opacity=faded(0.6), tooltip=[*where, tip(seed), tip("loss", ".4f")]),
    ]
    for row, group in enumerate(groups):
        layers.append(
            drawn(edge.filter(pl.col(color) == group))
            .mark_point(size=70, strokeWidth=2)
            .encode(
                y=alt.value(9 + 12 * row),
                shape=shown(edge[EDGE_MARK]),
                opacity=faded(1),
                tooltip=[*where, tip(seed), tip(EDGE_MARK), tip("loss", ".4f")],
            )
        )
    if not best.is_empty():
        layers.append(
            drawn(best)
            .mark_rule(clip=True, strokeWidth=3)
            .encode(x=alt.X("low:Q"), x2="high:Q", y="loss:Q", opacity=faded(0.5))
        )
        layers.append(
            drawn(best)
            .mark_point(shape="diamond", size=190, filled=True, stroke="black", strokeWidth=1.5)
            .encode(
                y="loss:Q",
                opacity=faded(1),
                tooltip=[
                    tip(color),
                    tip(rate, ".4~g", "best rate"),
                    tip("interval", name="rate, 95% interval"),
                    tip("loss", ".4f", "loss at the best rate"),
                    tip("grid_rate", ".4~g", "best rate of the grid"),
                    tip("seeds"),
                    tip("note"),
                ],
            )
        )
        for (align, line), its in best.group_by(["align", "line"], maintain_order=True):
            named = drawn(its).encode(y="loss:Q", opacity=faded(1))
            layers += label(named, "label", dy=18 + 13 * int(str(line)), align=str(align))
    return finish(layers, title, notes, pick)


def _best_rates(
    runs: pl.DataFrame, color: str, rate: str, loss: str, seed: str
) -> tuple[pl.DataFrame, list[str]]:
    """Returns a row per group that has an optimum, and what to say of the others."""
    grid = runs[rate].cast(pl.Float64)
    first, last = bound(grid, "min"), bound(grid, "max")
    aligned = {first: "left", last: "right"}  # so that no label is cut at the frame
    rows, notes = [], []
    for (group,), its in runs.sort(color).group_by([color], maintain_order=True):
        try:
            best = optimum(its, rate, loss, seed)
        except ValueError as error:
            notes.append(f"{color} {group}: no best rate, {error}")
            continue
        low, high = best.rate_interval
        ends = ["below the grid" if low == 0 else f"{low:.3g}"]
        ends += ["above the grid" if math.isinf(high) else f"{high:.3g}"]
        if best.edge:
            notes.append(f"{color} {group}: {best.note}")
        rows.append(
            {
                color: group,
                rate: best.rate,
                "loss": best.loss,
                # One seed says nothing about the interval, so that no bar is drawn.
                "low": max(low, first) if best.seeds > 1 else best.rate,
                "high": min(high, last) if best.seeds > 1 else best.rate,
                "interval": " to ".join(ends) if best.seeds > 1 else "none: one seed",
                "grid_rate": best.grid_rate,
                "seeds": best.seeds,
                "note": best.note or "none",
                "label": f"{best.rate:.2g}" + (" (edge)" if best.edge else ""),
                "align": aligned.get(best.rate, "center"),
            }
        )
    numbers = dict.fromkeys([rate, "loss", "low", "high", "grid_rate"], pl.Float64)
    texts = dict.fromkeys(["interval", "note", "label", "align"], pl.String)
    schema: dict[str, Any] = {color: runs.schema[color], **numbers, "seeds": pl.Int64, **texts}
    return pl.DataFrame(rows, schema=schema), notes


def _lines(best: pl.DataFrame, rate: str, x_range: float, y_range: float) -> pl.Series:
    """Returns the line, 0 or further down, on which each label is clear of the others."""
    taken: list[tuple[float, float]] = []
    lines = []
    for row in best.iter_rows(named=True):
        x = math.log2(row[rate]) / max(x_range, 1e-9)
        y = row["loss"] / max(y_range, 1e-9)
        line = 0.0
        # A label is about 0.1 of the chart wide, 0.15 with "(edge)", and 0.05 high.
        while any(abs(x - a) < 0.13 and abs(y - line * 0.05 - b) < 0.04 for a, b in taken):
            line += 1
        taken.append((x, y - line * 0.05))
        lines.append(int(line))
    return pl.Series("line", lines, dtype=pl.Int64)
