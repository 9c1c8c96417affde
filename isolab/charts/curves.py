"""Losses while training, and final losses against the length of the schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from isolab.analysis.optimum import at_best_rate
from isolab.analysis.power_law import fit_power_law
from isolab.analysis.seeds import require_columns
from isolab.charts import frames
from isolab.charts.channels import axis, edge_shape, log_axis, padded, tips
from isolab.charts.figure import Chart, facets
from isolab.charts.layers import Layer, Plot, style_of
from isolab.charts.theme import BAND, DASH, LINE, POINT, spelled, title_of, value_text

if TYPE_CHECKING:
    from isolab.analysis.speedup import Speedup

CUT = 0.1  # the loss axis shows what comes after this part of the steps


def loss_curves(
    runs: pl.DataFrame,
    color: str = "optimizer",
    y: str = "validation",
    title: str = "Loss while training",
) -> Chart:
    """Draws losses against steps: a line through seed means and a band from lowest to highest.

    A diverged run is left out of its band and drawn as a dashed line of its own that ends in a
    cross. The axis is cut above the losses of the first 10% of the steps; the subtitle says so.

    Args:
        runs: a row per ``color`` and ``seed`` (reduce a rate sweep by
            :func:`~isolab.analysis.optimum.at_best_rate` first); list columns ``curve_step`` and
            ``curve_validation_loss`` or ``curve_train_loss``.
        y: "validation" or "train".

    Raises:
        ValueError: for an unknown ``y``, or several runs a seed.
    """
    kinds = {"validation": "validation", "train": "training"}
    if y not in kinds:
        raise ValueError(f"unknown y {y!r}; known: {sorted(kinds)}")
    keys = frames.keys_of(runs, color)
    style = style_of(_curve_points(runs, keys, f"curve_{y}_loss"), color)
    points, groups = style.frame, list(style.columns)
    finished = points.filter(~pl.col("diverged"))
    bands = frames.thinned(frames.spread_of(finished, [*groups, "step"], "loss"), "step")
    (lowest, highest), last = (
        frames.extent(points["loss"], 0.0, 1.0),
        frames.extent(points["step"], high=0.0)[1],
    )
    top = frames.extent(finished.filter(pl.col("step") >= CUT * last)["loss"], high=highest)[1]
    lost = points.filter(pl.col("diverged")).sort(*groups, "seed", "step")
    ends = lost.group_by(*groups, "seed", maintain_order=True).last()
    at_top = pl.min_horizontal("loss", pl.lit(top)).alias("drawn")
    ends = ends.with_columns(at_top, pl.lit("diverged").alias(frames.EDGE_MARK))
    loss_axis = axis("mean", f"{kinds[y]} loss (nats/token)", padded(lowest, top))
    plot = Plot(axis("step", "step", format=",d"), loss_axis, style)
    of_mean = [*keys, ("step", ",d"), ("mean", ".4f"), ("low", ".4f"), ("high", ".4f"), "seeds"]
    layers = plot.draw(bands, LINE)
    layers += plot.draw(bands, BAND, 0.2, y="low", y2="high")
    invisible = POINT | {"size": 80, "opacity": 0}  # for the tooltip
    layers += plot.draw(bands, invisible, None, split=False, tooltip=tips(*of_mean))
    notes = ["Line: mean over seeds; band: lowest to highest", *style.note]
    if highest > top:
        notes.append(f"The axis is cut at {top:.2f}; the highest loss is {highest:.2f}")
    if not lost.is_empty():
        notes.append("Dashed: a diverged run, up to a cross at its last finite loss")
        path = LINE | {"strokeDash": DASH, "strokeWidth": 1.5}
        each: Any = {"y": "loss", "detail": [*style.columns, "seed"]}
        layers += plot.draw(frames.thinned(lost, "step"), path, 0.8, split=False, **each)
        of_end = [*keys, "seed", ("step", ",d", "last step with a finite loss"), ("loss", ".4f")]
        cross: Any = {
            "y": "drawn",
            "shape": edge_shape(ends[frames.EDGE_MARK]),
            "tooltip": tips(*of_end),
        }
        mark = {"type": "point", "size": 80, "strokeWidth": 2.5}
        layers += plot.draw(ends, mark, split=False, **cross)
    return facets(points, layers, title, notes, style)


def _curve_points(runs: pl.DataFrame, keys: list[str], curve: str) -> pl.DataFrame:
    """Returns a row per finite loss of a curve, with ``diverged``: whether its run did."""
    each = [*keys, "seed"]
    require_columns(runs, [*each, "curve_step", curve])
    frames.duplicates(runs, each, "reduce a rate sweep by isolab.analysis.optimum.at_best_rate")
    told = ["diverged"] if "diverged" in runs.columns else []
    lists = runs.select(*each, *told, "curve_step", curve).explode("curve_step", curve)
    points = frames.finite(lists, [*each, "curve_step", *told], {"loss": curve})
    failed = pl.col("loss").is_null().any().over(each)
    failed = failed | pl.col("diverged") if told else failed
    points = points.rename({"curve_step": "step"}).with_columns(failed.alias("diverged"))
    return spelled(points.filter(pl.col("loss").is_not_null()))


def loss_vs_steps(
    runs: pl.DataFrame, color: str = "optimizer", speedup: Speedup | None = None
) -> Chart:
    """Draws final losses against horizons, each with its own full schedule and its best rate.

    The curve is :func:`~isolab.analysis.power_law.fit_power_law`'s through the seed means. With
    ``speedup``, a dashed line runs from the challenger's point to the baseline's curve.

    Args:
        runs: a row per run; ``color``, ``steps``, ``learning_rate``, ``final_validation_loss`` and
            ``seed``.

    Raises:
        ValueError: for no horizon with a finite loss.
    """
    steps, rate, loss = "steps", "learning_rate", "final_validation_loss"
    keys = frames.keys_of(runs, color)
    require_columns(runs, [*keys, steps, rate, loss, "seed"])
    notes, best = [], []
    for values, its in runs.sort(*keys, steps).group_by([*keys, steps], maintain_order=True):
        try:
            best.append(at_best_rate(its, [*keys, steps]))
        except ValueError as error:
            who = ", ".join(map(value_text, values[:-1]))
            notes.append(f"{who} at {values[-1]} steps is not drawn: {error}")
    if not best:
        raise ValueError("no horizon can be drawn: " + ("; ".join(notes) or "the frame is empty"))
    points = spelled(frames.finite(pl.concat(best), [*keys, steps, rate, "seed"], {"loss": loss}))
    style = style_of(points, color)
    points, groups = style.frame, list(style.columns)
    mean, first = pl.col("loss").mean(), pl.col(rate).first()
    means = frames.spread_of(points, [*groups, steps], "loss", mean=mean, learning_rate=first)
    laws, fits = _laws(means, groups)
    x = log_axis(steps, points[steps], f"{title_of(steps)} (log2 axis)", ",d")
    plot = Plot(x, axis("loss", title_of(loss), padded(*frames.extent(points["loss"]))), style)
    where: list[Any] = [*keys, (steps, ",d"), (rate, ".4~g", "best rate of the grid")]
    layers = []
    if not laws.is_empty():
        layers += plot.draw(laws, LINE, 0.9, y="fitted", tooltip=tips(*keys, "law"))
    layers += plot.draw(points, POINT, 0.5, tooltip=tips(*where, "seed", ("loss", ".4f")))
    of_mean = tips(*where, ("mean", ".4f", "mean loss"), "seeds")
    dot = POINT | {"size": 90, "stroke": "white", "strokeWidth": 1}
    layers += plot.draw(means, dot, y="mean", tooltip=of_mean)
    if speedup is not None and speedup.value is None:
        notes.append(f"No speedup: {speedup.reason}")
    elif speedup is not None:
        layers += _speedup_layers(plot, speedup)
        fits = [f"Speedup in steps: {_speedup_text(speedup)}", *fits]
        notes += [speedup.reason] if speedup.reason else []
    subtitle = [*style.note, *fits, *notes]
    return facets(points, layers, "Loss against length of the schedule", subtitle, style)


def _laws(means: pl.DataFrame, groups: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns fitted curves, 60 points a group of 2 horizons or more, and what to say of them."""
    curves, notes = [], []
    for values, its in means.group_by(groups, maintain_order=True):
        if len(its) < 2:
            continue
        who = ", ".join(value_text(v) for v, n in zip(values, groups, strict=True) if n != "series")
        try:
            law = fit_power_law(its["steps"].to_numpy(), its["mean"].to_numpy())
        except ValueError as error:
            notes.append(f"{who}: {error}")
            continue
        at = np.geomspace(*frames.extent(its["steps"]), 60)
        text = f"{law.limit:.3f} + {law.scale:.3g} T^-{law.exponent:.3f}"
        notes.append(f"{who}: L(T) = {text}, residual {law.residual:.4f} nats")
        curve = pl.DataFrame({"steps": at, "fitted": law.loss(at), "law": text})
        curves.append(curve.join(its.select(groups).head(1), how="cross"))
    return (pl.concat(curves) if curves else pl.DataFrame()), notes


def _speedup_text(speedup: Speedup) -> str:
    text = f"{speedup.value:.2f}×"
    if speedup.interval is None or speedup.seeds < 2:
        return text
    low, high = speedup.interval
    ends = ["open" if low == 0 else f"{low:.2f}", "open" if math.isinf(high) else f"{high:.2f}"]
    return f"{text} (95% interval {ends[0]} to {ends[1]})"


def _speedup_layers(plot: Plot, speedup: Speedup) -> list[Layer]:
    assert speedup.value is not None and speedup.baseline_steps is not None
    row = {
        "steps": float(speedup.challenger_steps),
        "to": speedup.baseline_steps,
        "middle": math.sqrt(speedup.challenger_steps * speedup.baseline_steps),
        "loss": speedup.challenger_loss,
        "label": f"{speedup.value:.2f}×",
        "speedup in steps": _speedup_text(speedup),
    }
    rows, tooltip = pl.DataFrame([row]), tips("speedup in steps", ("loss", ".4f"))
    rule = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 2, "color": "#333333"}
    font: Any = {"dy": -11, "color": "#222222", "fontSize": 14}
    return [
        *plot.draw(rows, rule, None, x2="to", tooltip=tooltip),
        *plot.labels(rows, "label", None, x="middle", tooltip=tooltip, **font),
    ]
