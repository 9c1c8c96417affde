"""Sizes of gradients against width, and of their second moments against eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.panels import Place, small_multiples
from isolab.charts.parts import (
    bound,
    colour,
    duplicates,
    finite,
    fraction,
    label,
    log_axis,
    log_domain,
    signed,
    spelled,
    thinned,
    tip,
    title_of,
)

_POWER = 85  # pixels that a fitted power and theory's take
_TEN = "'1e' + format(datum.value, 'd')"  # a tick of a linear axis in log10


def gradient_sizes(
    gradients: pl.DataFrame,
    exponents: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "parameterization",
    title: str = "Root mean square of the gradient against width",
) -> alt.ConcatChart:
    """Draws each role's gradient against width, log-log, and theory's slope beside it.

    A point a seed, a line through their geometric means, and a thin dashed line of theory's slope
    from the narrowest width. The number at a line's end is the fitted power of the width, theory's
    in brackets; tooltips hold the interval.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`.
        exponents: from :func:`isolab.measure.gradients.gradient_exponents`, of the same frame.
        rows, columns: "parameterization", "step" or None; one panel must hold one of each.

    Raises:
        ValueError: for missing columns, no rows, two gradients of one role, width and seed in a
            panel, or a width or gradient that is not a positive number.
    """
    panel = [name for name in (rows, columns) if name is not None]
    group = ["parameterization", "step", "role"]
    points = finite(
        gradients, [*group, "seed"], {"width": "width", "size": "gradient_rms"}, lossless=True
    )
    duplicates(points, [*panel, "role", "width", "seed"], "name the column as rows or columns")
    require_columns(exponents, [*group, "exponent", "exponent_low", "exponent_high", "theory"])
    means = (
        points.group_by(*group, "width")
        .agg(pl.col("size").log().mean().exp(), pl.len().alias("seeds"))
        .sort(*group, "width")
        .join(exponents.select(*group, pl.col("^exponent.*$"), "theory"), on=group, how="left")
    )
    first = pl.col("size").first().over(group), pl.col("width").first().over(group)
    means = means.with_columns(
        (first[0] * (pl.col("width") / first[1]) ** -pl.col("theory")).alias("by theory")
    )
    ends = means.group_by(group, maintain_order=True).last()
    said = [
        "no fit" if e is None else f"{signed(-e)} ({fraction(-t)})"
        for e, t in ends.select("exponent", "theory").rows()
    ]
    ends = ends.with_columns(pl.Series("power", said, dtype=pl.String))
    interval = pl.format(
        "{} to {}", (-pl.col("exponent_high")).round(2), (-pl.col("exponent_low")).round(2)
    )
    means = means.with_columns((-pl.col("exponent")).alias("power"), interval.alias("interval"))
    points, means, ends = spelled(points), spelled(means), spelled(ends)
    low, high = bound(points["width"], "min"), bound(points["width"], "max")
    x = log_axis("width", points["width"], "width (log2 axis)", format="d")
    domain = log_domain("gradient", pl.concat([points["size"], means["by theory"].drop_nulls()]))
    y = alt.Y("size:Q", title="rms of the gradient (log10 axis)")
    y = y.scale(type="log", domain=domain, nice=False).axis(format=".0e", tickCount=6)
    hue, pick, faded = colour(points["role"], "role")
    decade = math.log10(domain[1] / domain[0])

    def draw(place: Place) -> list[alt.Chart]:
        share = _POWER / (place.width - _POWER)
        room = max(high / low, 2.0) ** share  # for the powers, right of the lines
        ends_x = [low / room**0.05, high * room]
        its_x = x.scale(type="log", base=2, domain=ends_x, nice=False)
        its: dict[str, Any] = {"x": place.x(its_x), "color": hue}
        fit = [tip("power", ".3f", "fitted power"), tip("interval", name="95% interval")]
        tips = [*map(tip, group), tip("width", "d"), tip("size", ".3~e", "geometric mean"), *fit]
        fitted = alt.Chart(place.of(means)).encode(**its)
        layers = [
            alt.Chart(thinned(place.of(points), "width"))
            .mark_circle(size=22)
            .encode(y=place.y(y), opacity=faded(0.55), tooltip=[*tips[:4], tip("seed")], **its),
            fitted.mark_line(strokeWidth=2).encode(
                y=alt.Y("size:Q"), opacity=faded(1), tooltip=tips
            ),
            fitted.mark_line(strokeWidth=1.2, strokeDash=[4, 3]).encode(
                y=alt.Y("by theory:Q"), opacity=faded(0.9)
            ),
        ]
        last = _spread(place.of(ends), decade, place.height)
        for (dy,), ink in last.group_by(["dy"], maintain_order=True):
            named = alt.Chart(ink).encode(y=alt.Y("size:Q"), opacity=faded(1), **its)
            layers += label(named, "power", dy=int(str(dy)), size=11, align="left", dx=6)
        return layers

    notes = [
        "Point: a seed. Line: their geometric mean. Dashed: theory's slope, from the narrowest"
        " width.",
        "The number at a line's end is its power of the width, fitted, and by theory in brackets.",
    ]
    return small_multiples(points, rows, columns, draw, title, notes, pick, height=260)


def _spread(ends: pl.DataFrame, decades: float, height: int) -> pl.DataFrame:
    """Adds by how many pixels each label is moved down so that none lies on another."""
    if ends.is_empty():
        return ends.with_columns(pl.lit(0).alias("dy"))
    ends = ends.sort("size", descending=True)
    at, last, moves = 0.0, -math.inf, []
    top = math.log10(bound(ends["size"], "max"))
    for size in ends["size"]:
        at = (top - math.log10(size)) / decades * height
        lower = max(at, last + 13)
        moves.append(round(lower - at))
        last = lower
    return ends.with_columns(pl.Series("dy", moves))


def root_histogram(
    histogram: pl.DataFrame,
    epsilons: Sequence[float] = (1e-8,),
    title: str = "Adam's denominator √v against eps",
) -> alt.ConcatChart:
    """Draws how the second moments' roots are spread, by role and width, and where eps lies.

    A parameter left of a dashed line loses more than half of its update to that eps. What is
    exactly 0, parameters that never had a gradient, is a triangle at the left edge.

    Args:
        histogram: from :func:`isolab.measure.gradients.root_histogram`.
        epsilons: above 0.

    Raises:
        ValueError: for missing columns, no rows, two rows of a bin, or an eps that is not positive.
    """
    bins = ["log10_low", "log10_high"]
    require_columns(histogram, ["width", "role", *bins, "count"])
    if histogram.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    duplicates(histogram, ["width", "role", "log10_low"])
    shares = histogram.with_columns(
        (pl.col("count") / pl.col("count").sum().over("width", "role")).alias("share")
    )
    zeros = spelled(shares.filter(pl.col("log10_low").is_null()))
    shares = shares.filter(pl.col("log10_low").is_not_null())
    rules = pl.DataFrame({"eps": list(epsilons)}, schema={"eps": pl.Float64})
    log_domain("eps", rules["eps"])
    steps = spelled(_steps(shares))
    logs = rules["eps"].log10().to_list() + steps["log10"].to_list()
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    rules = rules.with_columns(
        pl.col("eps").log10().alias("log10"),
        pl.Series("said", [f"{eps:.0e}".replace("e-0", "e-") for eps in epsilons]),
    )
    x = alt.X("log10:Q", title="√v (log10 axis)").scale(domain=[low, high], nice=False)
    stride = math.ceil((high - low) / 7)
    x = x.axis(values=list(range(low, high + 1, stride)), labelExpr=_TEN)
    top = bound(pl.concat([steps["share"], zeros["share"]]), "max", 1.0)
    y = alt.Y("share:Q", title="share of parameters").scale(domain=[0, 1.12 * top], nice=False)
    y = y.axis(format="~%")
    hue, pick, faded = colour(shares["width"], "width")

    def draw(place: Place) -> list[alt.Chart]:
        its: dict[str, Any] = {"x": place.x(x), "y": place.y(y)}
        rule = alt.Chart(rules).encode(x=alt.X("log10:Q"))
        layers = [
            alt.Chart(place.of(steps))
            .mark_line(interpolate="step-after", strokeWidth=1.8)
            .encode(color=hue, opacity=faded(1), order=alt.Order("log10:Q"), **its),
            rule.mark_rule(strokeDash=[4, 3], strokeWidth=1.5, color="#333333"),
            *label(rule.encode(y=alt.value(9)), "said", dy=0, color="#333333", size=11, dx=4,
                   align="left"),
        ]  # fmt: skip
        at_zero = place.of(zeros)
        if not at_zero.is_empty():
            mark = alt.Chart(at_zero).mark_point(shape="triangle-left", filled=True, size=70)
            tips = [tip("width", "d"), tip("role"), tip("share", ".2%", "exactly 0")]
            layers.append(
                mark.encode(x=alt.value(7), y=place.y(y), color=hue, opacity=faded(1), tooltip=tips)
            )
        return layers

    notes = ["Left of a dashed line eps takes more than half of the update."]
    if not zeros.is_empty():
        notes.append("Triangle at the left edge: exactly 0, never a gradient.")
    return small_multiples(steps, None, "role", draw, title, notes, pick, height=210, zoom=False)


def _steps(shares: pl.DataFrame) -> pl.DataFrame:
    """Returns the outline of each width's and role's bins, empty ones included."""
    rows = []
    for (width, role), its in shares.sort("log10_low").group_by(
        ["width", "role"], maintain_order=True
    ):
        size = its["log10_high"][0] - its["log10_low"][0]
        before = its["log10_low"][0] - size
        for low, high, share in its.select("log10_low", "log10_high", "share").rows():
            if low - before > 1e-6:
                rows.append((width, role, before, 0.0))
            rows.append((width, role, low, share))
            before = high
        rows.append((width, role, before, 0.0))
    schema: dict[str, Any] = {"width": shares.schema["width"], "role": pl.String}
    return pl.DataFrame(
        rows, schema=schema | {"log10": pl.Float64, "share": pl.Float64}, orient="row"
    )


def damped_shares(
    shares: pl.DataFrame, title: str = "Share of parameters that eps slows down"
) -> alt.ConcatChart:
    """Draws the share of parameters whose update eps more than halves, against eps, by width.

    Args:
        shares: from :func:`isolab.measure.gradients.damped_shares`, at several eps above 0; eps 0,
            which
            slows nothing down, is left out.

    Raises:
        ValueError: for missing columns, no eps above 0, or two shares of one width, role and eps.
    """
    require_columns(shares, ["width", "role", "eps", "share"])
    points = spelled(shares.filter((pl.col("eps") > 0) & pl.col("share").is_not_null()))
    if points.is_empty():
        raise ValueError("nothing to draw: no share at an eps above 0")
    duplicates(points, ["width", "role", "eps"])
    x = alt.X("eps:Q", title=f"{title_of('eps')} (log10 axis)")
    ends = log_domain("eps", points["eps"])
    x = x.scale(type="log", domain=ends, nice=False).axis(format=".0e", tickCount=5)
    y = alt.Y("share:Q", title="share with √v < eps").scale(domain=[-0.03, 1.03], nice=False)
    y = y.axis(format="~%", values=[0, 0.25, 0.5, 0.75, 1])
    hue, pick, faded = colour(points["width"], "width")
    tips = [tip("width", "d"), tip("role"), tip("eps", ".2~e"), tip("share", ".2%")]

    def draw(place: Place) -> list[alt.Chart]:
        drawn = alt.Chart(place.of(points)).encode(x=place.x(x), color=hue, tooltip=tips)
        return [
            drawn.mark_line(strokeWidth=2).encode(y=place.y(y), opacity=faded(1)),
            drawn.mark_circle(size=20).encode(y=alt.Y("share:Q"), opacity=faded(0.8)),
        ]

    return small_multiples(points, None, "role", draw, title, [], pick, height=210)
