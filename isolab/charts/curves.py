"""Losses while training, and final losses against the length of the schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from isolab.analysis.optimum import at_best_rate
from isolab.analysis.power_law import fit_power_law
from isolab.analysis.seeds import require_columns, require_unique
from isolab.charts.channels import axis, edge_shape, log_axis, padded, tips
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import EDGE_MARK, extent, thinned
from isolab.charts.layers import Layer, Plot
from isolab.charts.series import keys_of, series_of
from isolab.charts.theme import BAND, DASH, DASHED, LINE, POINT, title_of, value_text

if TYPE_CHECKING:
    from isolab.analysis.speedup import Speedup

CUT = 0.1  # the loss axis shows what comes after this part of the steps


def loss_curves(runs: pl.DataFrame, title: str = "Loss while training") -> Chart:
    """Draws losses against steps: a line through seed means and a band from lowest to highest.

    A diverged run is left out of its band and drawn as a dashed line of its own that ends in a
    cross. The axis is cut above the losses of the first 10% of the steps; the subtitle says so.

    Args:
        runs: a row per ``optimizer`` and ``seed`` (reduce a rate sweep by
            :func:`~isolab.analysis.optimum.at_best_rate` first); ``diverged`` and list columns
            ``curve_step`` and ``curve_validation_loss``.

    Raises:
        ValueError: for several runs a seed.
    """
    each, lists = [*keys_of(runs, "optimizer"), "seed"], ["curve_step", "curve_validation_loss"]
    require_columns(runs, ["diverged", *lists])
    require_unique(runs, each, "reduce a rate sweep by isolab.analysis.optimum.at_best_rate")
    every = runs.select(*each, "diverged", *lists).explode(lists).rename({lists[0]: "step"})
    kept = ["seed", "step", "diverged"]
    series = series_of(every, "optimizer", kept=kept, values={"loss": lists[1]})
    failed = pl.col("diverged") | pl.col("loss").is_null().any().over(each)
    points = series.points.with_columns(diverged=failed).drop_nulls("loss")
    finished, last = points.filter(~pl.col("diverged")), extent(points["step"], high=0.0)[1]
    bands = thinned(series.spread(finished, ["step"], "loss"), "step")
    low, highest = extent(points["loss"], 0.0, 1.0)
    top = extent(finished.filter(pl.col("step") >= CUT * last)["loss"], high=highest)[1]
    y_axis = axis("mean", "validation loss (nats/token)", padded(low, top))
    plot = Plot(axis("step", "step", format=",d"), y_axis, series)
    numbers = ("step", ",d"), ("mean", ".4f"), ("low", ".4f"), ("high", ".4f")
    of_mean = tips(*series.keys, *numbers, "seeds")
    layers = plot.draw(bands, LINE) + plot.draw(bands, BAND, 0.2, y="low", y2="high")
    invisible = POINT | {"size": 80, "opacity": 0}  # for the tooltip
    layers += plot.draw(bands, invisible, None, split=False, tooltip=of_mean)

    own = [*series.apart, "seed"]
    lost = points.filter("diverged").sort(*own, "step")
    ends = lost.group_by(own, maintain_order=True).last()
    at_top = pl.min_horizontal("loss", pl.lit(top)).alias("drawn")
    ends = ends.with_columns(at_top, pl.lit("diverged").alias(EDGE_MARK))
    note = "Dashed: a diverged run, up to a cross at its last finite loss"
    path, its = LINE | {"strokeDash": DASH, "strokeWidth": 1.5}, thinned(lost, "step")
    layers += plot.draw(its, path, 0.8, split=False, note=note, y="loss", detail=own)
    of_end = [("step", ",d", "last step with a finite loss"), ("loss", ".4f")]
    tooltip = tips(*series.keys, "seed", *of_end)
    mark: Any = {"type": "point", "size": 80, "strokeWidth": 2.5}
    cross: Any = {"y": "drawn", "shape": edge_shape(ends[EDGE_MARK])}
    layers += plot.draw(ends, mark, split=False, tooltip=tooltip, **cross)
    cut = f"The axis is cut at {top:.2f}; the highest loss is {highest:.2f}"
    notes = ["Line: mean over seeds; band: lowest to highest", cut if highest > top else ""]
    return facets(series, layers, title, notes)


def loss_vs_steps(runs: pl.DataFrame, speedup: Speedup | None = None) -> Chart:
    """Draws final losses against horizons, each with its own full schedule and its best rate.

    The curve is :func:`~isolab.analysis.power_law.fit_power_law`'s through the seed means. With
    ``speedup``, a dashed line runs from the challenger's point to the baseline's curve.

    Args:
        runs: a row per run; ``optimizer``, ``steps``, ``learning_rate``,
            ``final_validation_loss`` and ``seed``.

    Raises:
        ValueError: for no horizon with a finite loss.
    """
    steps, rate, loss = "steps", "learning_rate", "final_validation_loss"
    each = [*keys_of(runs, "optimizer"), steps]
    require_columns(runs, [*each, rate, loss, "seed"])
    lost, best = [], []
    for values, its in runs.sort(each).group_by(each, maintain_order=True):
        try:
            best.append(at_best_rate(its, each))
        except ValueError as error:
            who = ", ".join(map(value_text, values[:-1]))
            lost.append(f"{who} at {values[-1]} steps is not drawn: {error}")
    if not best:
        raise ValueError("no horizon can be drawn: " + ("; ".join(lost) or "the frame is empty"))
    kept = [steps, rate, "seed"]
    series = series_of(pl.concat(best), "optimizer", kept=kept, values={"loss": loss})
    points, middle = series.points, {"mean": pl.col("loss").mean(), rate: pl.col(rate).first()}
    means = series.spread(points, [steps], "loss", **middle)
    laws, fits = _laws(means, series.groups)
    x = log_axis(steps, points[steps], "steps of the full schedule (log2 axis)", ",d")
    plot = Plot(x, axis("loss", title_of(loss), padded(*extent(points["loss"]))), series)
    where = [*series.keys, (steps, ",d"), (rate, ".4~g", "best rate of the grid")]
    layers = plot.draw(laws, LINE, 0.9, y="fitted", tooltip=tips(*series.keys, "law"))
    layers += plot.draw(points, POINT, 0.5, tooltip=tips(*where, "seed", ("loss", ".4f")))
    of_mean = tips(*where, ("mean", ".4f", "mean loss"), "seeds")
    dot = POINT | {"size": 90, "stroke": "white", "strokeWidth": 1}
    layers += plot.draw(means, dot, y="mean", tooltip=of_mean)
    notes = [*fits, *lost]
    if speedup is not None and speedup.value is None:
        notes.append(f"No speedup: {speedup.reason}")
    elif speedup is not None:
        text = _speedup_text(speedup)
        layers += _speedup_layers(plot, speedup, text)
        notes = [f"Speedup in steps: {text}", *notes, speedup.reason or ""]
    return facets(series, layers, "Loss against length of the schedule", notes)


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
        at = np.geomspace(*extent(its["steps"]), 60)
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


def _speedup_layers(plot: Plot, speedup: Speedup, text: str) -> list[Layer]:
    assert speedup.value is not None and speedup.baseline_steps is not None
    row = {
        "steps": float(speedup.challenger_steps),
        "to": speedup.baseline_steps,
        "middle": math.sqrt(speedup.challenger_steps * speedup.baseline_steps),
        "loss": speedup.challenger_loss,
        "label": f"{speedup.value:.2f}×",
        "speedup in steps": text,
    }
    rows, tooltip = pl.DataFrame([row]), tips("speedup in steps", ("loss", ".4f"))
    rule = DASHED | {"strokeWidth": 2, "color": "#333333"}
    font: Any = {"dy": -11, "color": "#222222", "fontSize": 14}
    layers = plot.draw(rows, rule, None, x2="to", tooltip=tooltip)
    return layers + plot.labels(rows, "label", None, x="middle", tooltip=tooltip, **font)
