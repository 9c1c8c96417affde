"""Where eps lies among the roots of the second moments that it is added to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, power_ticks, tips
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import check_numbers, extent, log_domain, require_rows
from isolab.charts.layers import Plot
from isolab.charts.series import series_of
from isolab.charts.theme import DASHED, LINE, PANEL_HEIGHT, POINT

_TEN = "'1e' + format(datum.value, 'd')"  # a tick of a linear axis in log10


def root_histogram(histogram: pl.DataFrame, epsilons: Sequence[float] = (1e-8,)) -> Chart:
    """Draws how the second moments' roots are spread, by role and width, and where eps lies.

    A parameter left of a dashed line loses more than half of its update to that eps. What is
    exactly 0, parameters that never had a gradient, is a triangle at the left edge.

    Args:
        histogram: from :func:`isolab.measure.gradients.root_histogram`.
        epsilons: above 0.
    """
    require_rows(histogram, ["width", "role", "log10_low", "log10_high", "count"])
    share = pl.col("count") / pl.col("count").sum().over("width", "role")
    shares = histogram.with_columns(share=share)
    series = series_of(shares, "width", None, "role", unique=["log10_low"])
    zeros = series.points.filter(pl.col("log10_low").is_null())
    steps = _outlines(series.points.drop_nulls("log10_low"))
    rules = pl.DataFrame({"eps": list(epsilons)}, schema={"eps": pl.Float64})
    check_numbers("eps", rules["eps"])
    names = [f"{eps:.0e}".replace("e-0", "e-") for eps in epsilons]
    rules = rules.with_columns(pl.col("eps").log10().alias("log10"), pl.Series("name", names))
    low, high = extent(pl.concat([rules["log10"], steps["log10"]]))
    ends = [math.floor(low), math.ceil(high)]
    x = axis(
        "log10", "√v (log10 axis)", ends, values=power_ticks(ends[0], ends[1], 8), labelExpr=_TEN
    )
    top = 1.12 * extent(shares["share"])[1]
    y = axis("share", "share of parameters", [0, top], format="~%")
    plot = Plot(x, y, series)
    outline = LINE | {"strokeWidth": 1.8, "interpolate": "step-after"}
    layers = plot.draw(steps, outline, order="log10")
    layers += plot.draw(rules, DASHED | {"strokeWidth": 1.5, "color": "#333333"}, None, y=None)
    font: Any = {"color": "#333333", "fontSize": 11, "dx": 4, "align": "left"}
    layers += plot.labels(rules, "name", None, y=9, **font)
    of_zero = tips(("width", "d"), "role", ("share", ".2%", "exactly 0"))
    triangle = POINT | {"shape": "triangle-left", "size": 70}
    note = "Triangle at the left edge: exactly 0, never a gradient."
    layers += plot.draw(zeros, triangle, note=note, x=7, tooltip=of_zero)
    notes = ["Left of a dashed line eps takes more than half of the update."]
    heading = "Adam's denominator √v against eps"
    return facets(series, layers, heading, notes, PANEL_HEIGHT, zoom=False)


def _outlines(shares: pl.DataFrame) -> pl.DataFrame:
    """Returns the outline of each width's and role's bins, empty ones included."""
    keys, low, high = ["width", "role"], pl.col("log10_low"), pl.col("log10_high")
    bins = shares.select(*keys, "share", log10=low)
    ends = shares.select(*keys, share=pl.lit(0.0), log10=high)
    starts = shares.group_by(keys).agg(share=pl.lit(0.0), log10=(2 * low - high).min())
    corners = pl.concat([bins, ends, starts], how="diagonal")
    return corners.unique([*keys, "log10"], keep="first").sort(*keys, "log10")


def damped_shares(shares: pl.DataFrame) -> Chart:
    """Draws the share of parameters whose update eps more than halves, against eps, by width.

    Args:
        shares: from :func:`isolab.measure.gradients.damped_shares`, at several eps above 0; eps 0,
            which slows nothing down, is left out.

    Raises:
        ValueError: for no eps above 0.
    """
    require_columns(shares, ["width", "role", "eps", "share"])
    known = shares.filter((pl.col("eps") > 0) & pl.col("share").is_not_null())
    if known.is_empty():
        raise ValueError("nothing to draw: no share at an eps above 0")
    series = series_of(known, "width", None, "role", unique=["eps"])
    points, quarters = series.points, [0, 0.25, 0.5, 0.75, 1]
    ends, title = log_domain("eps", points["eps"]), "epsilon (log10 axis)"
    x = axis("eps", title, ends, 10, format=".0e", tickCount=5)
    y = axis("share", "share with √v < eps", [-0.03, 1.03], format="~%", values=quarters)
    plot = Plot(x, y, series)
    tooltip = tips(("width", "d"), "role", ("eps", ".2~e"), ("share", ".2%"))
    layers = plot.draw(points, LINE, tooltip=tooltip)
    layers += plot.draw(points, POINT | {"size": 20}, 0.8, tooltip=tooltip)
    heading = "Share of parameters that eps slows down"
    return facets(series, layers, heading, [], PANEL_HEIGHT)
