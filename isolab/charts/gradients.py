"""Sizes of gradients against width, with the powers fitted to them and theory's."""

from __future__ import annotations

import math

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, spread, tips, width_axis
from isolab.charts.figure import Chart, facets, panel_columns, panel_pixels
from isolab.charts.frames import bound, duplicates, finite, log_domain, origins, thinned
from isolab.charts.layers import Plot, look_of
from isolab.charts.theme import LINE, POINT, fraction, signed, spelled

_POWER = 85  # pixels that a fitted power and theory's take
_HEIGHT = 260


def gradient_sizes(
    gradients: pl.DataFrame,
    exponents: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "parameterization",
    title: str = "Root mean square of the gradient against width",
) -> Chart:
    """Draws each role's gradient against width, log-log, and theory's slope beside it.

    A point a seed, a line through their geometric means, and a thin dashed line of theory's slope
    from the narrowest width. The number at a line's end is the fitted power of the width, theory's
    in brackets; tooltips hold the interval.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`.
        exponents: from :func:`isolab.measure.gradients.gradient_exponents`, of the same frame.
        rows, columns: "parameterization", "step", "origin" or None; one panel must hold one of
            each. Both frames have ``origin`` where one has it.

    Raises:
        ValueError: for missing columns, no rows, two gradients of one role, width and seed in a
            panel, or a width or gradient that is not a positive number.
    """
    panel = panel_columns(rows, columns)
    group = ["parameterization", "step", *origins(gradients), "role"]
    values = {"width": "width", "size": "gradient_rms"}
    points = finite(gradients, [*group, "seed"], values, lossless=True)
    duplicates(points, [*panel, "role", "width", "seed"], "name the column as rows or columns")
    require_columns(exponents, [*group, "exponent", "exponent_low", "exponent_high", "theory"])
    means = _means(points, exponents, group)
    ends = means.group_by(group, maintain_order=True).last()
    powers = [
        "no fit" if e is None else f"{signed(e)} ({fraction(-t)})"
        for e, t in ends.select("power", "theory").rows()
    ]
    ends = ends.with_columns(pl.Series("power", powers, dtype=pl.String))
    points, means, ends = spelled(points), spelled(means), spelled(ends)
    low, high = bound(points["width"], "min"), bound(points["width"], "max")
    share = _POWER / (panel_pixels(points, columns) - _POWER)  # for powers, right of the lines
    x = width_axis(points["width"], room=max(high / low, 2.0) ** share)
    domain = log_domain("gradient", pl.concat([points["size"], means["by theory"].drop_nulls()]))
    y = axis("size", "rms of the gradient (log10 axis)", domain, 10, format=".0e", tickCount=6)
    plot = Plot(x, y, look_of(points, "role"))
    where = [*group, ("width", "d")]
    of_mean = tips(*where, ("size", ".3~e", "geometric mean"), ("power", ".3f", "fitted power"),
                   ("interval", "", "95% interval"))  # fmt: skip
    of_point = tips(*where, ("size", ".3~e"), "seed")
    layers = plot.draw(means, LINE, tooltip=of_mean)
    dot = POINT | {"size": 22}
    layers += plot.draw(thinned(points, "width"), dot, 0.55, tooltip=of_point)
    theory = LINE | {"strokeWidth": 1.2, "strokeDash": [4, 3]}
    layers += plot.draw(means, theory, 0.9, split=False, y="by theory")
    for _, its in ends.group_by(panel or [pl.lit(0)], maintain_order=True):
        scale = _HEIGHT / math.log10(domain[1] / domain[0])  # pixels of a decade
        down = [(0.0, -math.log10(size) * scale) for size in its["size"]]
        moved = [round(d - y) for d, (_, y) in zip(spread(down, 1, 13), down, strict=True)]
        its = its.with_columns(pl.Series("dy", moved, dtype=pl.Int64))
        for (dy,), at in its.group_by(["dy"], maintain_order=True):
            layers += plot.labels(at, "power", dy=dy, dx=6, fontSize=11, align="left")
    notes = [
        "Point: a seed. Line: their geometric mean. Dashed: theory's slope, from the narrowest"
        " width.",
        "The number at a line's end is its power of the width, fitted, and by theory in brackets.",
    ]
    return facets(points, layers, title, notes, plot.look, rows, columns, _HEIGHT)


def _means(points: pl.DataFrame, exponents: pl.DataFrame, group: list[str]) -> pl.DataFrame:
    """Returns geometric means over seeds, the fitted ``power`` with its ``interval``, theory's."""
    fits = exponents.select(*group, pl.col("^exponent.*$"), "theory")
    first = [pl.col(name).first().over(group) for name in ("size", "width")]
    ends = [(-pl.col(name)).round(2) for name in ("exponent_high", "exponent_low")]
    return (
        points.group_by(*group, "width")
        .agg(pl.col("size").log().mean().exp(), pl.len().alias("seeds"))
        .sort(*group, "width")
        .join(fits, on=group, how="left")
        .with_columns(
            (first[0] * (pl.col("width") / first[1]) ** -pl.col("theory")).alias("by theory"),
            (-pl.col("exponent")).alias("power"),
            pl.format("{} to {}", *ends).alias("interval"),
        )
    )
