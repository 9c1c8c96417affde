"""Losses against the learning rate, and best rates against width."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.figure import Chart, facets, panel_columns, panel_height
from isolab.charts.frames import (
    bars,
    best_rates,
    bound,
    ceiling,
    duplicates,
    edge_marks,
    finite,
    origins,
    rate_interval_text,
    reach,
    seed_means,
    short_interval,
    with_intervals,
)
from isolab.charts.layers import (
    Layer,
    Plot,
    axis,
    log_axis,
    look_of,
    padded,
    pixels,
    power_ticks,
    spread,
    tips,
    width_axis,
)
from isolab.charts.theme import (
    HEIGHT,
    LINE,
    POINT,
    WIDTH,
    Spec,
    fraction,
    signed,
    spelled,
    summarized,
    title_of,
    value_text,
)

_LOGS = {"rate": "log_rate", "rate_low": "log_low", "rate_high": "log_high"}
_TRIANGLES = {"low": ("lowest", "triangle-down"), "high": ("highest", "triangle-up")}
_PANEL, _LINE = 190, 15  # pixels of a panel without texts, and of a line of text


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


def best_rate_vs_width(
    optima: pl.DataFrame,
    exponents: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
    title: str = "Best learning rate against width",
) -> Chart:
    """Draws best rates with their intervals, the power law fitted to them, and theory's.

    Each panel names the fitted powers of the width, with intervals, in the colours of their lines.
    Theory's line is dotted and starts at the smallest width's best rate.

    Args:
        optima: a row per group and width, as of :func:`~isolab.analysis.optimum.optima`: ``width``,
            ``rate``, ``rate_low``, ``rate_high``, ``edge``, and the group's columns: ``color``,
            ``rows``, ``columns`` and, where there is one, ``origin`` ("reference" or "yours").
        exponents: a row per group, as of :func:`~isolab.analysis.exponent.exponents`: the group's
            columns, ``exponent``, ``exponent_low``, ``exponent_high``, ``intercept`` and, where
            theory has one, ``theory``: its power of the width.

    Raises:
        ValueError: for missing columns, no rows, no rate at all, two rates of one group and width,
            an unknown origin, or a width that is not positive.
    """
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(optima)]))
    require_columns(optima, [*keys, "width", "edge", *_LOGS])
    logs = [pl.col(name).cast(pl.Float64).log(2).alias(log) for name, log in _LOGS.items()]
    names = [*keys, "width", "edge", "rate"]
    look = look_of(
        spelled(with_intervals(optima.with_columns(logs), names, tuple(_LOGS.values()))), color
    )
    groups = list(dict.fromkeys([*panel, *look.columns]))
    duplicates(look.frame, [*groups, "width"])
    points = look.apart(look.frame)
    x = width_axis(points["width"], points["at"])
    points, notes = _with_rates(points, keys)
    laws = _laws(points, exponents, keys, groups, panel)
    most = int(bound(laws["line"], "max", -1)) + 1
    height = _PANEL + _LINE * most
    ends = laws.select("first", "last", "by_theory").unpivot()["value"].drop_nulls()
    bottom, top = reach(points, *ends, least=2.0)
    unit = (top - bottom) / (height - 26 - _LINE * most)
    low, high = bottom - unit * (18 + _LINE * most), top + unit * 8
    ticks = [2.0**k for k in power_ticks(math.ceil(bottom), math.floor(top))]
    y = axis("rate", "best learning rate (log2 axis)", [2**low, 2**high], 2, format=".2~g",
             values=ticks)  # fmt: skip
    plot = Plot(x, y, look)
    of_point = [*keys, ("width", "d"), ("rate", ".4~g", "best rate")]
    of_point += [("rates", "", "rate, 95% interval"), ("in_grid", "", "in the grid of rates")]
    intervals, cut = bars(points, low, high)
    intervals = intervals.with_columns(_power("low", "high"))

    layers = plot.draw(_lines(laws, groups, "first", "last"), LINE)
    dotted = LINE | {"strokeDash": [1.5, 3.5]}
    theory = _lines(laws, groups, "anchor", "by_theory")
    layers += plot.draw(theory, dotted, split=False, detail=list(look.columns))
    layers += plot.draw(intervals, {"type": "rule", "clip": True, "strokeWidth": 2}, 0.55,
                        y="low", y2="high")  # fmt: skip
    for (shape,), at in points.group_by(["shape"], maintain_order=True):
        mark = POINT | {"shape": shape, "size": 70, "strokeWidth": 2}
        layers += plot.draw(at, mark, tooltip=tips(*of_point))
    from_bottom = _LINE * (pl.col("lines").cast(int) - 1 - pl.col("line"))
    texts = laws.with_columns((height - 6 - from_bottom).alias("pixel"))
    where = {"x": 7, "y": pixels("pixel")}
    layers += plot.labels(texts, "text", channels=where, fontSize=11, align="left")
    said = []
    if exponents is not None:
        said = ["Line: a power law fitted to the best rates; below: its power [95% interval]."]
    if laws["by_theory"].is_not_null().any():
        said.append("Dotted: theory's power, from the best rate of the smallest width.")
    if (points["in_grid"] != "inside").any():
        said.append("Triangle: the best rate is the lowest (down) or highest (up) of the grid.")
    said += [*look.note, *cut, *summarized(notes)]
    return facets(points, layers, title, said, look, rows, columns, height)


def _with_rates(points: pl.DataFrame, keys: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """Returns the points that have a rate, and what to say of widths without one."""
    ends = points.select(pl.col("low", "high")).rows()
    rates = [
        rate_interval_text(*(None if e is None else 2**e for e in its)) if its != (None, None)
        else "none"
        for its in ends
    ]  # fmt: skip
    inside = {edge: name for edge, (name, _) in _TRIANGLES.items()}
    shapes = {edge: shape for edge, (_, shape) in _TRIANGLES.items()}
    points = points.with_columns(
        pl.col("edge").replace(inside).fill_null("inside").alias("in_grid"),
        pl.col("edge").replace(shapes).fill_null("circle").alias("shape"),
        pl.Series("rates", rates, dtype=pl.String),
    ).sort(*keys, "width")
    none = points.filter(pl.col("value").is_null()).select(*keys, "width")
    notes = [
        f"No best rate for {', '.join(map(value_text, row[:-1]))}, width {row[-1]:g}: all diverged."
        for row in none.rows()
    ]
    drawn = points.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        raise ValueError("nothing to draw: no row has a rate that is positive and finite")
    return drawn, notes


def _laws(
    points: pl.DataFrame,
    exponents: pl.DataFrame | None,
    keys: list[str],
    groups: list[str],
    panel: list[str],
) -> pl.DataFrame:
    """Returns a row per group: its line's ends, theory's end (log2 of rates), and its text.

    ``line`` numbers the texts of a panel, ``lines`` counts them.
    """
    power = ["exponent", "exponent_low", "exponent_high", "intercept", "theory"]
    if exponents is None:
        exponents = points.select(groups).head(0).with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in power
        )  # fmt: skip
    else:
        require_columns(exponents, [*keys, *power[:-1]])
        duplicates(exponents, keys)
        exponents = spelled(exponents)
    if "theory" not in exponents.columns:
        exponents = exponents.with_columns(pl.lit(None, pl.Float64).alias("theory"))
    on = [name for name in groups if name in keys]
    its = exponents.select(*on, *power, pl.lit(True).alias("fitted")).with_columns(
        pl.col(name).cast(points.schema[name]) for name in on
    )
    at, width = pl.col("at"), pl.col("width").log(2)
    ends = points.group_by(groups, maintain_order=True).agg(
        at.first().alias("at_first"),
        at.last().alias("at_last"),
        width.first().alias("from"),
        width.last().alias("to"),
        pl.col("value").first().alias("anchor"),
    )
    start, slope = pl.col("intercept"), pl.col("exponent")
    laws = ends.join(its, on=on, how="left", maintain_order="left").with_columns(
        (start + slope * pl.col("from")).alias("first"),
        (start + slope * pl.col("to")).alias("last"),
        (pl.col("anchor") + pl.col("theory") * (pl.col("to") - pl.col("from"))).alias("by_theory"),
    )
    texts = [_law_text(row) for row in laws.iter_rows(named=True)]
    laws = laws.with_columns(pl.Series("text", texts, dtype=pl.String))
    counted = pl.lit(0).alias("panel") if not panel else pl.concat_str(panel).alias("panel")
    laws = laws.filter(pl.col("text") != "").sort(groups).with_columns(counted)
    # The fit's own columns may be infinite, and are in the text.
    return laws.drop(*power, "fitted").with_columns(
        pl.int_range(pl.len()).over("panel").alias("line"), pl.len().over("panel").alias("lines")
    )


def _law_text(row: dict[str, Any]) -> str:
    """Returns the fitted power with its interval, and theory's."""
    if row["fitted"] is None:
        return ""
    parts = ["no fit"]
    if row["exponent"] is not None:
        interval = short_interval(row["exponent_low"], row["exponent_high"])
        parts = [signed(row["exponent"]) + interval]
    if row["theory"] is not None:
        parts.append(f"theory {fraction(row['theory'])}")
    yours = "yours: " if row.get("origin") == "yours" else ""
    return yours + ", ".join(parts)


def _lines(laws: pl.DataFrame, groups: list[str], begin: str, end: str) -> pl.DataFrame:
    """Returns two points a law, from one of its columns to another; none where there is no end."""
    there = laws.filter(pl.col(end).is_not_null())
    both = [
        there.select(*groups, pl.col(at).alias("at"), _power(name).alias("rate"))
        for at, name in (("at_first", begin), ("at_last", end))
    ]
    return pl.concat(both)


def _power(*logs: str) -> pl.Expr:
    return (pl.col(*logs) * math.log(2)).exp()
