"""Sizes of layers against width, their slopes, and alignment while training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, log_ticks, names_axis, offset_by, tips, width_axis
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import extent, reach, require_rows, thinned
from isolab.charts.layers import Plot
from isolab.charts.series import series_of
from isolab.charts.theme import BAND, CROSS, Spec, summarized

_SIZES = {"activation_rms": "activation", "change_rms": "change"}
_RULES = (0.5, 1.0)  # no alignment, full alignment
_HEIGHT = 250
_EDGES = {
    "0": (_HEIGHT - 7, "triangle-down", "Triangle at the bottom edge: 0 for a seed at least."),
    "not finite": (7, CROSS, "Cross at the top edge: not finite for a seed at least."),
}


def coordinates(
    frame: pl.DataFrame, rows: str | None = "quantity", columns: str | None = None, title: str = ""
) -> Chart:
    """Draws the coordinate check: each layer's size and its change against width, log-log.

    A line a layer, dark at the input and light at the readout, through the geometric mean over
    seeds. A size of 0 is a triangle at the bottom edge, one that is not finite a cross at the top
    edge. The last step is drawn, unless steps are panels.

    Args:
        frame: a row per width, seed, step and layer, as of
            :func:`isolab.measure.coordinates.coordinate_check`, with ``rows`` and ``columns``,
            which may be "quantity" (size or change) and "step".
    """
    require_columns(frame, [*_SIZES, "order"])
    frame, at = _last_step(frame, [rows, columns])
    kept = ["layer", "quantity", "width", "step", "seed"]
    values, sizes = {"size": "given"}, _given(frame)
    series = series_of(sizes, "layer", rows, columns, [*kept, "zero"], values, unique=kept)
    names = series.levels("layer")  # from dark at the input to light at the readout
    shades = {"domain": names, "scheme": {"name": "viridis", "extent": [0, 0.9]}}
    legend = {"symbolLimit": 0, "columns": math.ceil(len(names) / 24), "labelFontSize": 11}
    color = {"field": "layer", "type": "ordinal", "title": "layer, from the input on"}
    series = replace(series, color=color | {"scale": shades, "legend": legend})
    size = pl.col("size")
    not_finite = pl.when(size.is_null().any()).then(pl.lit("not finite"))
    lost = pl.when(pl.col("zero").any()).then(pl.lit("0")).otherwise(not_finite)
    middle = {"mean": size.log().mean().exp(), "rms": lost}
    means = series.spread(series.points, kept[:3], "size", **middle).rename({"mean": "size"})
    x = width_axis(series.points["width"])
    where: list[Any] = [*dict.fromkeys([*series.keys, "quantity"]), ("width", "d")]
    numbers = [("size", ".4~g", "rms"), ("low", ".4~g", "lowest"), ("high", ".4~g"), "seeds"]
    layers = []
    for across in series.levels(rows):  # a row shares its axis
        its = means if rows is None else means.filter(pl.col(rows) == across)
        drawn = its.filter(pl.col("rms").is_null())
        low, high = extent(drawn["size"], 0.1, 10.0)
        pad = max((high / low) ** 0.08, 1.3)
        ends = [low / pad, high * pad]
        y = axis("size", "rms (log10 axis)", ends, 10, format=".3~g", values=log_ticks(*ends))
        plot = Plot(x, y, series)
        layers += plot.means(drawn, tips(*where, *numbers), 40, detail="layer")
        for name, (pixel, shape, note) in _EDGES.items():
            mark = {"type": "point", "shape": shape, "size": 45, "strokeWidth": 2}
            gone, tip = its.filter(pl.col("rms") == name), tips(*where, "rms")
            layers += plot.draw(gone, mark, split=False, note=note, y=pixel, tooltip=tip)
    notes = ["Line: geometric mean over seeds. Flat: the size does not depend on the width."]
    heading = title or f"Sizes of activations against width{at}"
    return facets(series, layers, heading, notes, _HEIGHT)


def _given(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns a row per size and change: ``given``, null where it is 0, which ``zero`` tells."""
    layers = pl.Enum(frame.sort("order")["layer"].unique(maintain_order=True))
    others = [name for name in frame.columns if name not in _SIZES]
    tidy = frame.unpivot(list(_SIZES), index=others, variable_name="quantity", value_name="given")
    # Before training there is no change, rather than a change that could not be measured.
    tidy = tidy.filter((pl.col("step") > 0) | (pl.col("quantity") != "change_rms"))
    zero = pl.col("given") == 0
    return tidy.with_columns(
        pl.col("quantity").replace(_SIZES),
        pl.col("layer").cast(layers),
        zero=zero,
        given=pl.when(~zero).then("given"),
    )


def coordinate_slopes(
    slopes: pl.DataFrame, rows: str | None = None, columns: str | None = "quantity"
) -> Chart:
    """Draws each layer's slope of log size on log width with its interval, and a line at 0.

    The last step is drawn, unless steps are panels.

    Args:
        slopes: a row per layer, step and quantity, as of
            :func:`isolab.measure.coordinates.slopes`, with ``rows`` and ``columns``.
    """
    require_columns(slopes, ["order"])
    slopes, at = _last_step(slopes.sort("order"), [rows, columns])
    kept, one = ["layer", "note"], ["layer"]
    series = series_of(slopes, "quantity", rows, columns, kept, interval="slope", unique=one)
    points, found = series.points, series.points.drop_nulls("value")
    names = points["layer"].unique(maintain_order=True).to_list()
    bottom, top = reach(found, 0.0)
    pad = 0.06 * (top - bottom)
    x = axis("value", "slope of log rms on log width", (bottom - pad, top + pad))
    plot = Plot(x, names_axis("layer", names, labelLimit=220), series)
    apart = "origin" if series.both else "quantity"
    offset, number = offset_by(apart, points[apart]), ("value", ".3f", "slope")
    tooltip = tips(*series.groups, "layer", number, ("interval", "", "95% interval"))
    layers = plot.rules([0.0], "x") + plot.intervals(found, tooltip, "x", (3, 0.55), **offset)
    none = points.filter(pl.col("value").is_null()).select("layer", "quantity", "note")
    missing = summarized([f"{layer}, {what}: {why}" for layer, what, why in none.rows()])
    notes = ["Bar: 95% interval over seeds. 0: the size does not depend on the width.", *missing]
    height = max(len(names) * max(17, 9 * points[apart].n_unique() + 5), 80)
    return facets(series, layers, f"Slopes of sizes against width{at}", notes, height, zoom=False)


def _last_step(frame: pl.DataFrame, panel: list[str | None]) -> tuple[pl.DataFrame, str]:
    """Returns the rows of the last step, and how to name it; all rows where steps are panels."""
    require_rows(frame, ["step", "layer"])
    if "step" in panel:
        return frame, ""
    last = max(frame["step"])
    return frame.filter(pl.col("step") == last), f", step {last}"


def alignment(frame: pl.DataFrame, rows: str = "role") -> Chart:
    """Draws alignment exponents against steps: a line through means, a band lowest to highest.

    Means and bands are over seeds and over whatever is not named: ``rows="role"`` takes the layers
    of a role together. Grey lines lie at 1/2, no alignment, and 1, full alignment.

    Args:
        frame: a row per width, seed, step, layer and kind, as of
            :func:`isolab.measure.alignment.measure`: ``width``, ``kind``, ``step``, ``alignment``
            (null where there is none) and ``rows``.

    Raises:
        ValueError: for no alignment that is finite.
    """
    series = series_of(frame, "width", rows, "kind", ["step"], {"alignment": "alignment"})
    points, lost = series.points.drop_nulls("alignment"), series.points["alignment"].null_count()
    if points.is_empty():
        raise ValueError("nothing to draw: no alignment of the frame is finite")
    means = thinned(series.spread(points, ["step"], "alignment", "values"), "step")
    low, high = extent(means["low"])[0], extent(means["high"])[1]
    domain = [min(low, _RULES[0]) - 0.05, max(high, _RULES[1]) + 0.05]
    ticks = [k / 4 for k in range(math.ceil(4 * domain[0]), math.floor(4 * domain[1]) + 1)]
    y = axis("mean", "alignment exponent", domain, values=ticks, format=".3~g")
    plot = Plot(_steps(means["step"]), y, series)
    of_mean = [*series.keys, ("step", ",d"), ("mean", ".3f"), ("low", ".3f", "lowest")]
    of_mean += [("high", ".3f", "highest"), ("values", "", "values in the mean")]
    layers = plot.rules(_RULES) + plot.draw(means, BAND, 0.15, y="low", y2="high")
    layers += plot.means(means, tips(*of_mean), 26)
    notes = [
        "Line: mean; band: lowest to highest. Dashed: 1/2, no alignment, and 1, full alignment.",
        f"{lost} values are not finite and left out." if lost else "",
    ]
    height = 110 if points[rows].n_unique() > 3 else 170
    return facets(replace(series, points=points), layers, "Alignment while training", notes, height)


def _steps(steps: pl.Series) -> Spec:
    """Returns a linear axis, or a logarithmic one that shows 0 where steps crowd at the start."""
    numbers = steps.unique().sort()
    first, last = extent(numbers)
    middle = float(numbers[len(numbers) // 2])
    if last <= 5 * max(middle, 1.0) or len(numbers) <= 3:
        return axis("step", "step", [first, last], format=",d", tickCount=5)
    ticks = numbers.gather_every(math.ceil(len(numbers) / 6)).to_list()
    x = axis("step", "step (log axis)", values=ticks, format=",d", labelOverlap=True)
    return x | {"scale": {"type": "symlog", "constant": 1, "nice": False, "domain": [0, last]}}
