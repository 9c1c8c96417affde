"""Losses against the learning rate, and the best rate of each series."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.charts.channels import axis, log_axis, padded, spread, tips
from isolab.charts.figure import Chart, facets, panel_columns, panel_height
from isolab.charts.frames import (
    best_rates,
    bound,
    ceiling,
    duplicates,
    edge_marks,
    finite,
    origins,
    seed_means,
)
from isolab.charts.layers import Layer, Plot, look_of
from isolab.charts.theme import HEIGHT, LINE, POINT, WIDTH, Spec, spelled, summarized, title_of


def loss_vs_rate(
    runs: pl.DataFrame,
    color: str = "optimizer",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    title: str = "Loss against learning rate",
) -> Chart:
    """Draws a rate sweep: a point a run, a line through seed means, a diamond at the best rate.

    The diamond and its bar are :func:`~isolab.analysis.optimum.optimum`'s rate, loss and rate
    interval; the rate stands below it. Otherwise as :func:`loss_by_width` in one panel.

    Args:
        runs: a row per run; ``color``, ``rate``, ``loss`` (+inf or NaN where diverged), ``seed``
            and, where there is one, ``origin`` ("reference" or "yours").

    Raises:
        ValueError: as :func:`loss_by_width`.
    """
    return _sweep(runs, None, None, (color, rate, loss, seed), title, labelled=True)


def loss_by_width(
    runs: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "width",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    title: str = "Loss against learning rate, by width",
) -> Chart:
    """Draws rate sweeps of several widths: a line through seed means, a diamond at the best rate.

    A grey line joins the best rates of the widths: upright where the rate transfers. Diverged runs
    are crosses at the top edge, at their rate; runs so far above the rest that they would flatten
    it are triangles there. A line breaks where a seed diverged; a diamond is hollow where the best
    rate is at an edge of the grid. All panels share their axes.

    Args:
        runs: a row per run; ``color``, ``rate``, ``loss`` (+inf or NaN where diverged), ``seed``
            and, where they are named, ``rows`` and ``columns``. With a column ``origin``
            ("reference" or "yours") the reader's runs are shades of orange, solid and filled, and
            the reference's shades of blue, dashed and hollow; ``color="origin"`` needs one width
            in a panel.

    Raises:
        ValueError: for missing columns, no rows, two runs of one rate and seed, an unknown origin,
            or a rate that is not a positive number.
    """
    return _sweep(runs, rows, columns, (color, rate, loss, seed), title, labelled=False)


def _sweep(
    runs: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    names: tuple[str, str, str, str],
    title: str,
    labelled: bool,
) -> Chart:
    color, rate, loss, seed = names
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(runs)]))
    points = spelled(finite(runs, [*keys, rate, seed], {"loss": loss}))
    look = look_of(points, color)
    points = look.frame
    groups = list(dict.fromkeys([*panel, *look.columns]))
    duplicates(points, [*groups, rate, seed])
    x = log_axis(rate, points[rate], f"{title_of(rate)} (log2 axis)")
    means = seed_means(points, groups, rate)
    best, notes = best_rates(points, groups, rate, seed)
    top = ceiling(means["mean"], points["loss"])
    edge, lines = edge_marks(points, groups, look.columns, rate, seed, top)
    bottom = bound(pl.concat([points["loss"], best["loss"]]), "min", default=0.0)
    best = _labelled(best, rate, points[rate], top - bottom)
    pitch, tall = min(12.0, 60 / max(lines, 1)), panel_height(points, panel)
    below = 1 + int(bound(best["line"], "max", default=0)) if labelled else 0
    domain = padded(bottom, top, lines * pitch / 12, below, tall)
    plot = Plot(x, axis("loss", title_of(loss), domain), look)
    where: list[Any] = [*keys, (rate, ".4~g")]
    of_best = [*keys, (rate, ".4~g", "best rate"), ("loss", ".4f", "loss at the best rate")]
    of_best += [("interval", "", "rate, 95% interval"), "seeds", "note"]
    of_best += [("grid_rate", ".4~g", "best rate of the grid")]
    of_edge = [*where, "at the top edge", "seeds", ("of", "", "of seeds")]
    joined = color == "width" and not labelled and points["width"].n_unique() > 1

    layers = plot.draw(means, LINE, y="mean", detail="segment")
    seen = points.filter(pl.col("loss") <= top)
    dot = POINT | {"size": 36 if labelled else 24}
    layers += plot.draw(seen, dot, 0.6, tooltip=tips(*where, seed, ("loss", ".4f")))
    layers += plot.top_edge(edge, tips(*of_edge, ("loss", ".4f", "their mean loss")), pitch)
    if joined:
        path: Spec = {"detail": "origin"} if look.both else {}
        grey = LINE | {"strokeWidth": 1.5, "color": "#666666"}
        layers += plot.draw(best.sort("width"), grey, None, order="width", **path)
    if labelled:
        bar: Spec = {"type": "rule", "clip": True, "strokeWidth": 3}
        layers += plot.draw(best, bar, 0.5, x="low", x2="high")
    layers += _diamonds(plot, best, tips(*of_best), 190 if labelled else 120)
    if labelled:
        for (align, line), its in best.group_by(["align", "line"], maintain_order=True):
            layers += plot.labels(its, "label", dy=18 + 13 * int(str(line)), align=str(align))
    said = list(look.note)
    if not labelled:
        said.insert(0, "Diamond: the best rate" + ", joined in grey over the widths" * joined + ".")
    if not best["edge"].is_null().all():
        said.append("Hollow diamond: the best rate is at an edge of the grid.")
    if not edge.is_empty():
        said.append("Runs that diverged or lie above the axis are drawn at the top edge.")
    said += summarized(notes, 4)
    return facets(points, layers, title, said, look, rows, columns, tall)


def _diamonds(plot: Plot, best: pl.DataFrame, tooltip: list[Spec], size: int) -> list[Layer]:
    """Returns filled diamonds, and hollow ones for best rates at an edge of the grid."""
    filled: Spec = {"filled": True, "stroke": "black", "strokeWidth": 1.3}
    hollow: Spec = {"filled": False, "fill": "white", "strokeWidth": 2}
    layers = []
    for its, at_edge in ((hollow, True), (filled, False)):
        mark = {"type": "point", "clip": True, "shape": "diamond", "size": size, **its}
        rows = best.filter(pl.col("edge").is_not_null() == at_edge)
        layers += plot.draw(rows, mark, split=False, tooltip=tooltip)
    return layers


def _labelled(best: pl.DataFrame, rate: str, rates: pl.Series, span: float) -> pl.DataFrame:
    """Adds each best rate's label, how it is aligned, and the line on which it covers no other."""
    first, last = bound(rates, "min"), bound(rates, "max")
    octaves = max(math.log2(last / first), 1e-9)
    places = [
        (math.log2(at) / octaves * WIDTH, -loss / max(span, 1e-9) * HEIGHT)
        for at, loss in best.select(rate, "loss").rows()
    ]
    down = spread(places, 0.13 * WIDTH, 13)
    lines = [math.ceil((y - at) / 13) for (_, at), y in zip(places, down, strict=True)]
    aligned = {first: "left", last: "right"}  # so that no label is cut at the frame
    return best.with_columns(
        pl.Series("label", [f"{v:.2g}" for v in best[rate]], dtype=pl.String)
        + pl.when(pl.col("edge").is_null()).then(pl.lit("")).otherwise(pl.lit(" (edge)")),
        pl.Series("align", [aligned.get(v, "center") for v in best[rate]], dtype=pl.String),
        pl.Series("line", lines, dtype=pl.Int64),
    )
