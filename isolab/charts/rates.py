"""Losses against the learning rate, and the best rate of each series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from isolab.analysis.optimum import optimum
from isolab.charts.channels import axis, log_axis, padded, spread, tips
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import EDGE_MARK, ceiling, extent, rate_interval_text
from isolab.charts.layers import Layer, Plot
from isolab.charts.series import series_of
from isolab.charts.theme import HEIGHT, LINE, POINT, WIDTH, Spec, summarized, title_of, value_text

RATE = "learning_rate"
_LABEL = 13  # pixels that a line of labels takes


def loss_vs_rate(runs: pl.DataFrame) -> Chart:
    """Draws a rate sweep: a point a run, a line through seed means, a diamond at the best rate.

    The diamond and its bar are :func:`~isolab.analysis.optimum.optimum`'s rate, loss and rate
    interval; the rate stands below it. Otherwise, frame included, as :func:`loss_by_width`, of
    optimizers in place of widths.
    """
    title = "Loss against learning rate"
    return _sweep(runs, None, None, "optimizer", "final_validation_loss", title)


def loss_by_width(
    runs: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    loss: str = "final_validation_loss",
    title: str = "Loss against learning rate, by width",
) -> Chart:
    """Draws rate sweeps of several widths: a line through seed means, a diamond at the best rate.

    A grey line joins the best rates of the widths: upright where the rate transfers. Diverged runs
    are crosses at the top edge, at their rate; runs so far above the rest that they would flatten
    it are triangles there. A line breaks where a seed diverged; a diamond is hollow where the best
    rate is at an edge of the grid. All panels share their axes.

    Args:
        runs: a row per run; ``width``, ``learning_rate``, ``loss`` (+inf or NaN where diverged),
            ``seed``, ``rows`` and ``columns``. Widths of two origins are shades of blue and orange.
    """
    return _sweep(runs, rows, columns, "width", loss, title)


def _sweep(
    runs: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    color: str,
    loss: str,
    title: str,
) -> Chart:
    labelled = color == "optimizer"
    one = [RATE, "seed"]
    series = series_of(runs, color, rows, columns, one, {"loss": loss}, unique=one)
    points, groups = series.points, series.groups
    x = log_axis(RATE, points[RATE], "learning rate (log2 axis)")
    means = _seed_means(points, groups)
    best, lost = _best_rates(points, groups)
    top = ceiling(means["mean"], points["loss"])
    edge, lines = _edge_marks(points, groups, series.apart, top)
    bottom = extent(pl.concat([points["loss"], best["loss"]]), low=0.0)[0]
    best = _labelled(best, points[RATE], top - bottom)
    pitch = min(12.0, 60 / max(lines, 1))
    below = 1 + int(extent(best["line"], high=0)[1]) if labelled else 0
    domain = padded(bottom, top, lines * pitch / 12, below, series.height)
    plot = Plot(x, axis("loss", title_of(loss), domain), series)
    where = [*series.keys, (RATE, ".4~g")]

    layers = plot.draw(means, LINE, y="mean", detail="segment")
    dot, of_point = POINT | {"size": 36 if labelled else 24}, tips(*where, "seed", ("loss", ".4f"))
    layers += plot.draw(points.filter(pl.col("loss") <= top), dot, 0.6, tooltip=of_point)
    of_edge = [EDGE_MARK, "seeds", ("of", "", "of seeds"), ("loss", ".4f", "their mean loss")]
    note = "Runs that diverged or lie above the axis are drawn at the top edge."
    layers += plot.top_edge(edge, tips(*where, *of_edge), note, pitch)
    notes = []
    if labelled:
        bar = {"type": "rule", "clip": True, "strokeWidth": 3}
        layers += plot.draw(best, bar, 0.5, x="low", x2="high")
        layers += _diamonds(plot, best, 190)
        layers += plot.moved_labels(best, "label", ["align", "dy"])
    else:
        joined = points["width"].n_unique() > 1
        notes.append("Diamond: the best rate" + ", joined in grey over the widths" * joined + ".")
        if joined:
            path: Spec = {"detail": "origin"} if series.both else {}
            grey = LINE | {"strokeWidth": 1.5, "color": "#666666"}
            layers += plot.draw(best.sort("width"), grey, None, order="width", **path)
        layers += _diamonds(plot, best, 120)
    return facets(series, layers, title, [*notes, *summarized(lost, 4)])


def _diamonds(plot: Plot, best: pl.DataFrame, size: int) -> list[Layer]:
    """Returns filled diamonds, and hollow ones for best rates at an edge of the grid."""
    assert plot.series is not None
    of_best = [*plot.series.keys, (RATE, ".4~g", "best rate")]
    of_best += [("loss", ".4f", "loss at the best rate"), ("interval", "", "rate, 95% interval")]
    of_best += ["seeds", "note", ("grid_rate", ".4~g", "best rate of the grid")]
    hollow: Any = {"filled": False, "fill": "white", "strokeWidth": 2}
    filled: Any = {"filled": True, "stroke": "black", "strokeWidth": 1.3}
    note = "Hollow diamond: the best rate is at an edge of the grid."
    mark: Any = {"type": "point", "clip": True, "shape": "diamond", "size": size}
    inside, own = pl.col("edge").is_null(), dict[str, Any](split=False, tooltip=tips(*of_best))
    layers = plot.draw(best.filter(~inside), mark | hollow, note=note, **own)
    return layers + plot.draw(best.filter(inside), mark | filled, **own)


def _seed_means(points: pl.DataFrame, groups: Sequence[str]) -> pl.DataFrame:
    """Returns means of ``loss`` over seeds; ``segment`` numbers the parts between lost seeds."""
    return (
        points.group_by(*groups, RATE)
        .agg(mean=pl.col("loss").mean(), diverged=pl.col("loss").is_null().any())
        .sort(*groups, RATE)
        .with_columns(segment=pl.col("diverged").cum_sum().over(groups))
        .filter(~pl.col("diverged"))
    )


def _best_rates(points: pl.DataFrame, groups: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns a row per group that has an optimum, and what to say of the others.

    ``low`` and ``high`` are the ends of the rate's interval within the grid: the rate itself where
    one seed says nothing of it.
    """
    first, last = extent(points[RATE])
    rows, notes = [], []
    for values, its in points.sort(groups).group_by(groups, maintain_order=True):
        named = zip(groups, values, strict=True)
        who = ", ".join(value_text(v, name) for name, v in named if name != "series")
        try:
            loss = pl.col("loss").fill_null(math.inf).alias("final_validation_loss")
            best = optimum(its.with_columns(loss))
        except ValueError as error:
            notes.append(f"No best rate for {who}: {error}")
            continue
        if best.edge:
            end = "lowest" if best.edge == "low" else "highest"
            notes.append(f"{who}: the best rate is the {end} of the grid.")
        several = best.seeds > 1
        low, high = (best.rate_low, best.rate_high) if several else (best.rate, best.rate)
        interval = rate_interval_text(low, high) if several else "none: one seed"
        numbers = (best.rate, best.loss, max(low, first), min(high, last), best.grid_rate)
        rows.append((*values, *numbers, interval, best.seeds, best.edge, best.note or "none"))
    schema: dict[str, Any] = {name: points.schema[name] for name in groups}
    schema |= dict.fromkeys([RATE, "loss", "low", "high", "grid_rate"], pl.Float64)
    schema |= {"interval": pl.String, "seeds": pl.Int64, "edge": pl.String, "note": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row"), notes


def _edge_marks(
    points: pl.DataFrame, groups: Sequence[str], lines_of: Sequence[str], top: float
) -> tuple[pl.DataFrame, int]:
    """Returns a mark per group and rate with runs beyond the axis, and the number of its lines.

    ``lines_of`` names the columns of a series, which has a ``line`` of its own, the same in every
    panel. ``seeds`` lists the seeds, ``of`` counts all, ``loss`` is the mean of those above.
    """
    lost = pl.when(pl.col("loss").is_null()).then(pl.lit("diverged"))
    kind = lost.when(pl.col("loss") > top).then(pl.lit("above the axis")).alias(EDGE_MARK)
    seeds, each = pl.col("seed").sort().cast(pl.String).str.join(", "), [*groups, RATE]
    found = points.with_columns(kind, of=pl.len().over(each)).drop_nulls(EDGE_MARK)
    marks = found.group_by(*each, EDGE_MARK, "of").agg(seeds=seeds, loss=pl.col("loss").mean())
    line = pl.struct(lines_of).rank("dense").cast(pl.Int64) - 1
    return marks.sort(*each, EDGE_MARK).with_columns(line=line), marks.select(lines_of).n_unique()


def _labelled(best: pl.DataFrame, rates: pl.Series, span: float) -> pl.DataFrame:
    """Adds each best rate's label, how it is aligned, and the line on which it covers no other."""
    first, last = extent(rates)
    octaves = max(math.log2(last / first), 1e-9)
    places = [
        (math.log2(at) / octaves * WIDTH, -loss / max(span, 1e-9) * HEIGHT)
        for at, loss in best.select(RATE, "loss").rows()
    ]
    down = spread(places, 0.13 * WIDTH, _LABEL)
    lines = [math.ceil((y - at) / _LABEL) for (_, at), y in zip(places, down, strict=True)]
    aligned = {first: "left", last: "right"}  # so that no label is cut at the frame
    rows = zip(best[RATE], best["edge"], strict=True)
    return best.with_columns(
        pl.Series("label", [f"{v:.2g}" + " (edge)" * bool(edge) for v, edge in rows], pl.String),
        pl.Series("align", [aligned.get(v, "center") for v in best[RATE]], dtype=pl.String),
        pl.Series("line", lines, dtype=pl.Int64),
        pl.Series("dy", [18 + _LABEL * line for line in lines], dtype=pl.Int64),
    )
