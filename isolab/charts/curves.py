"""Losses while training."""

from __future__ import annotations

import altair as alt
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.parts import (
    EDGE_MARK,
    bound,
    colour,
    duplicates,
    finish,
    finite,
    padded,
    shown,
    thinned,
    tip,
)

CUT = 0.1  # the loss axis shows what comes after this part of the steps


def loss_curves(
    runs: pl.DataFrame,
    color: str = "optimizer",
    y: str = "validation",
    seed: str = "seed",
    title: str = "Loss while training",
) -> alt.LayerChart:
    """Draws losses against steps: a line through seed means and a band from lowest to highest.

    A diverged run is left out of its band and drawn as a dashed line of its own that ends in a
    cross. The axis is cut above the losses of the first 10% of the steps; the subtitle says so.

    Args:
        runs: a row per ``color`` and ``seed`` (reduce a rate sweep by
            :func:`~isolab.analysis.optimum.at_best_rate` first); list columns ``curve_step`` and
            ``curve_validation_loss`` or ``curve_train_loss``.
        y: "validation" or "train".

    Raises:
        ValueError: for an unknown ``y``, missing columns, no rows, or several runs a seed.
    """
    kinds = {"validation": "validation", "train": "training"}
    if y not in kinds:
        raise ValueError(f"unknown y {y!r}; known: {sorted(kinds)}")
    curve = f"curve_{y}_loss"
    require_columns(runs, [color, seed, "curve_step", curve])
    duplicates(runs, [color, seed], "reduce a rate sweep by isolab.analysis.optimum.at_best_rate")
    told = "diverged" if "diverged" in runs.columns else None
    points = finite(
        runs.select(color, seed, *([told] if told else []), "curve_step", curve).explode(
            "curve_step", curve
        ),
        [color, seed, "curve_step", *([told] if told else [])],
        {"loss": curve},
    ).rename({"curve_step": "step"})
    failed = pl.col("loss").is_null().any().over(color, seed)
    points = points.with_columns(
        (failed | pl.col(told) if told else failed).alias("diverged")
    ).filter(pl.col("loss").is_not_null())
    bands = (
        points.filter(~pl.col("diverged"))
        .group_by(color, "step")
        .agg(
            pl.col("loss").mean().alias("mean"),
            pl.col("loss").min().alias("low"),
            pl.col("loss").max().alias("high"),
            pl.len().alias("seeds"),
        )
        .sort(color, "step")
    )
    highest, last = (
        bound(points["loss"], "max", default=1.0),
        bound(points["step"], "max", default=0.0),
    )
    settled = points.filter((pl.col("step") >= CUT * last) & ~pl.col("diverged"))["loss"]
    top = bound(settled, "max", default=highest)
    notes = ["Line: mean over seeds; band: lowest to highest"]
    if highest > top:
        notes.append(f"The axis is cut at {top:.2f}; the highest loss is {highest:.2f}")
    scale = padded(bound(points["loss"], "min", default=0.0), top)

    hue, pick, faded = colour(points[color], color)
    lost = points.filter(pl.col("diverged")).sort(color, seed, "step")
    bands, lost = thinned(bands, "step"), thinned(lost, "step")
    x = alt.X("step:Q", title="step").axis(format=",d").scale(nice=False)
    axis = alt.Y("mean:Q", title=f"{kinds[y]} loss (nats/token)").scale(scale)
    tips = [tip(color), tip("step", ",d"), tip("mean", ".4f"), tip("low", ".4f")]
    tips += [tip("high", ".4f"), tip("seeds")]
    drawn = alt.Chart(bands).encode(x=x, color=hue)
    layers = [
        drawn.mark_area(clip=True, line=False).encode(
            y=alt.Y("low:Q"), y2="high:Q", opacity=faded(0.2)
        ),
        drawn.mark_line(clip=True, strokeWidth=2).encode(y=axis, opacity=faded(1)),
        drawn.mark_circle(clip=True, size=80).encode(y=axis, opacity=alt.value(0), tooltip=tips),
    ]
    if not lost.is_empty():
        notes.append("Dashed: a diverged run, up to a cross at its last finite loss")
        ends = lost.group_by(color, seed, maintain_order=True).last()
        ends = ends.with_columns(pl.min_horizontal("loss", pl.lit(top)).alias("drawn"))
        layers.append(
            alt.Chart(lost)
            .mark_line(clip=True, strokeDash=[5, 3], strokeWidth=1.5)
            .encode(x=x, color=hue, y=alt.Y("loss:Q"), detail=f"{seed}:N", opacity=faded(0.8))
        )
        layers.append(
            alt.Chart(ends.with_columns(pl.lit("diverged").alias(EDGE_MARK)))
            .mark_point(size=80, strokeWidth=2.5)
            .encode(
                x=x,
                color=hue,
                y=alt.Y("drawn:Q"),
                shape=shown(pl.Series(["diverged"])),
                opacity=faded(1),
                tooltip=[
                    tip(color),
                    tip(seed),
                    tip("step", ",d", "last step with a finite loss"),
                    tip("loss", ".4f"),
                ],
            )
        )
    return finish(layers, title, notes, pick)
