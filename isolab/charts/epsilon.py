"""Final losses over eps, and where eps lies among the second moments that it is added to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts import frames
from isolab.charts.channels import axis, power_ticks, tips
from isolab.charts.figure import Chart, facets, panel_columns, panel_pixels
from isolab.charts.heat import CELL, DASHES, Places, heat_map, places_of, top_loss
from isolab.charts.layers import Plot, style_of
from isolab.charts.theme import LINE, PANEL_HEIGHT, POINT, spelled, summarized, title_of, words

NO_EPS = "no eps"
_TEN = "'1e' + format(datum.value, 'd')"  # a tick of a linear axis in log10


def loss_by_eps(
    cells: pl.DataFrame,
    over: str = "width",
    lines: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = "variant",
    title: str = "",
) -> Chart:
    """Draws a map of the final loss: eps to the right, width or loss scale upwards, by variant.

    Eps 0 is a column of its own at the left; a variant without eps is one cell for all of them. A
    cell where a seed diverged is grey with a cross. A black line is where eps equals the gradient's
    root mean square: right of it eps rules.

    Args:
        cells: from :func:`isolab.analysis.epsilon.eps_map`; ``rows`` and ``columns`` too, which may
            be ``origin``.
        over: "width" or "loss_scale", both positive.
        lines: from :func:`isolab.analysis.epsilon.eps_lines`: ``variant``, ``role``, ``over`` and
            ``eps``; drawn in the panels of their variant, and of their ``origin`` if they have one.

    Raises:
        ValueError: for a negative eps, lines without panels of variants, lines whose variants
            have no panel, or a role of theirs that is unknown.
    """
    panel = panel_columns(rows, columns)
    require_columns(cells, [*panel, "variant", "eps", over, "loss"])
    if cells.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    frames.duplicates(
        cells, [*panel, "eps", over], "name the column that differs as rows or columns"
    )
    if lines is not None:
        _check_lines(lines, over, cells, panel)
    across = places_of(cells["eps"], "eps", math.log10, "1e{log:.3g}", zero=True)
    tick = "2^{log:.3g}" if over == "loss_scale" else "{value:.4g}"
    up = places_of(cells[over], over, math.log2, tick)
    placed = _placed(cells, over, across, up)
    pixels = panel_pixels(cells, columns) / (across.ends[1] - across.ends[0])  # of a column
    x = across.axis("left", "eps (log axis, a column each)", crowded=pixels < CELL)
    plot = Plot(x, up.axis("bottom", f"{words(over)} (log axis, a row each)"))
    where = [*panel, ("shown", "", "eps"), (over, "~g")]
    curves = None if lines is None else _curves(lines, over, across, up)
    layers = heat_map(plot, placed, where, pixels, curves)

    rms = "eps equals the root mean square of the gradient"
    notes = [] if curves is None else [f"Black line: {rms}; right of it eps rules the update."]
    found = cells.filter(pl.col("loss").is_finite())["loss"]
    if (found > (top := top_loss(found))).any():
        notes.append(f"Losses above {top:.2f} have the colour of {top:.2f}.")
    if len(found) < len(cells):
        notes.append("Grey with a cross: a seed diverged.")
    with_eps = cells.filter(pl.col("eps").is_not_null())
    each = with_eps["eps"].n_unique() * cells[over].n_unique()
    if len(with_eps) < each * len(with_eps.select(panel or [pl.lit(0)]).unique()):
        notes.append("White: not run.")
    tall = {1: 300, 2: 240}.get(cells[rows].n_unique() if rows else 1, 180)
    title = title or f"Final loss by eps and {words(over)}"
    notes = summarized(notes, 4)
    return facets(placed, layers, title, notes, None, rows, columns, tall, zoom=False)


def _check_lines(lines: pl.DataFrame, over: str, cells: pl.DataFrame, panel: list[str]) -> None:
    require_columns(lines, ["variant", "role", over, "eps"])
    if "variant" not in panel:
        raise ValueError(f"lines need panels of variants, got panels of {panel}")
    theirs, drawn = set(lines["variant"]), set(cells["variant"])
    if not theirs & drawn:
        raise ValueError(f"lines are of {sorted(theirs)}; panels are of {sorted(drawn)}")
    unknown = sorted(set(lines["role"].cast(pl.String)) - set(DASHES))
    if unknown:
        raise ValueError(f"unknown role {unknown[0]!r}; known: {sorted(DASHES)}")


def _placed(cells: pl.DataFrame, over: str, across: Places, up: Places) -> pl.DataFrame:
    """Returns cells with their edges and middles, eps in words, and what follows their number."""
    rows = []
    for eps, height in cells.select(pl.col("eps", over).cast(pl.Float64)).rows():
        middle = across.at(math.log10(eps) if eps else -math.inf) if eps is not None else 0.0
        left, right = across.ends if eps is None else (middle - 0.5, middle + 0.5)
        place = up.at(math.log2(height))
        words_of = (NO_EPS, f", {NO_EPS}") if eps is None else (f"{eps:.3g}", "")
        rows.append((left, right, place - 0.5, place + 0.5, (left + right) / 2, place, *words_of))
    names = ["left", "right", "bottom", "top", "middle", "height", "shown", "suffix"]
    sides = pl.DataFrame(rows, schema=names, orient="row")
    return spelled(pl.concat([cells, sides], how="horizontal"))


def _curves(lines: pl.DataFrame, over: str, across: Places, up: Places) -> pl.DataFrame:
    """Returns the lines' points at the places of the axes, close enough for straight pieces."""
    keys = ["variant", "role", *(["origin"] if "origin" in lines.columns else [])]
    named = lines.with_columns(pl.col("role").cast(pl.String)).sort(*keys, over)
    rows = []
    for names, its in named.group_by(keys, maintain_order=True):
        heights, logs = np.log2(its[over].to_numpy()), np.log10(its["eps"].to_numpy())
        for height in np.linspace(heights[0], heights[-1], 80):
            log = float(np.interp(height, heights, logs))
            place = across.at(log)
            if place >= 0.5 or -math.inf not in across.places:  # not into the column of eps 0
                rows.append((*names, 10.0**log, place, up.at(float(height))))
    found = pl.DataFrame(rows, schema=[*keys, "eps", "left", "bottom"], orient="row")
    return spelled(found).with_columns(pl.col("role").cast(pl.String))


def root_histogram(histogram: pl.DataFrame, epsilons: Sequence[float] = (1e-8,)) -> Chart:
    """Draws how the second moments' roots are spread, by role and width, and where eps lies.

    A parameter left of a dashed line loses more than half of its update to that eps. What is
    exactly 0, parameters that never had a gradient, is a triangle at the left edge.

    Args:
        histogram: from :func:`isolab.measure.gradients.root_histogram`.
        epsilons: above 0.
    """
    require_columns(histogram, ["width", "role", "log10_low", "log10_high", "count"])
    if histogram.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    frames.duplicates(histogram, ["width", "role", "log10_low"])
    shares = histogram.with_columns(
        (pl.col("count") / pl.col("count").sum().over("width", "role")).alias("share")
    )
    zeros = spelled(shares.filter(pl.col("log10_low").is_null()))
    steps = spelled(_steps(shares.filter(pl.col("log10_low").is_not_null())))
    rules = pl.DataFrame({"eps": list(epsilons)}, schema={"eps": pl.Float64})
    frames.log_domain("eps", rules["eps"])
    names = [f"{eps:.0e}".replace("e-0", "e-") for eps in epsilons]
    rules = rules.with_columns(pl.col("eps").log10().alias("log10"), pl.Series("name", names))
    logs = [*rules["log10"], *steps["log10"]]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    ticks = power_ticks(low, high, 8)
    x = axis("log10", "√v (log10 axis)", [low, high], values=ticks, labelExpr=_TEN)
    top = 1.12 * frames.extent(shares["share"])[1]
    y = axis("share", "share of parameters", [0, top], format="~%")
    plot = Plot(x, y, style_of(shares, "width"))
    outline = LINE | {"strokeWidth": 1.8, "interpolate": "step-after"}
    layers = plot.draw(steps, outline, order="log10")
    dashed = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.5, "color": "#333333"}
    layers += plot.draw(rules, dashed, None, y=None)
    font: Any = {"color": "#333333", "fontSize": 11, "dx": 4, "align": "left"}
    layers += plot.labels(rules, "name", None, y=9, **font)
    of_zero = tips(("width", "d"), "role", ("share", ".2%", "exactly 0"))
    triangle = POINT | {"shape": "triangle-left", "size": 70}
    layers += plot.draw(zeros, triangle, x=7, tooltip=of_zero)
    notes = ["Left of a dashed line eps takes more than half of the update."]
    if not zeros.is_empty():
        notes.append("Triangle at the left edge: exactly 0, never a gradient.")
    heading = "Adam's denominator √v against eps"
    return facets(steps, layers, heading, notes, plot.style, None, "role", PANEL_HEIGHT, zoom=False)


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


def damped_shares(shares: pl.DataFrame) -> Chart:
    """Draws the share of parameters whose update eps more than halves, against eps, by width.

    Args:
        shares: from :func:`isolab.measure.gradients.damped_shares`, at several eps above 0; eps 0,
            which slows nothing down, is left out.

    Raises:
        ValueError: for no eps above 0.
    """
    require_columns(shares, ["width", "role", "eps", "share"])
    points = spelled(shares.filter((pl.col("eps") > 0) & pl.col("share").is_not_null()))
    if points.is_empty():
        raise ValueError("nothing to draw: no share at an eps above 0")
    frames.duplicates(points, ["width", "role", "eps"])
    ends = frames.log_domain("eps", points["eps"])
    x = axis("eps", f"{title_of('eps')} (log10 axis)", ends, 10, format=".0e", tickCount=5)
    quarters = [0, 0.25, 0.5, 0.75, 1]
    y = axis("share", "share with √v < eps", [-0.03, 1.03], format="~%", values=quarters)
    plot = Plot(x, y, style_of(points, "width"))
    tooltip = tips(("width", "d"), "role", ("eps", ".2~e"), ("share", ".2%"))
    layers = plot.draw(points, LINE, tooltip=tooltip)
    layers += plot.draw(points, POINT | {"size": 20}, 0.8, tooltip=tooltip)
    heading = "Share of parameters that eps slows down"
    return facets(points, layers, heading, [], plot.style, None, "role", PANEL_HEIGHT)
