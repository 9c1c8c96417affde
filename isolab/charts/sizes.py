"""Sizes of layers and of their gradients against width, and alignment while training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts import frames
from isolab.charts.channels import axis, log_ticks, names_axis, offset_by, spread, tips, width_axis
from isolab.charts.figure import Chart, facets, panel_columns, panel_pixels
from isolab.charts.layers import Plot, Style, style_of
from isolab.charts.theme import (
    BAND,
    CROSS,
    LINE,
    POINT,
    Spec,
    fraction,
    signed,
    spelled,
    summarized,
)

_SIZES = {"activation": "activation_rms", "change": "change_rms"}
_EDGE = {"0": "triangle-down", "not finite": CROSS}
_RULES = (0.5, 1.0)  # no alignment, full alignment
_HEIGHT = 250
_POWER = 85  # pixels that a fitted power and theory's take
_GRADIENTS = 260  # pixels that a panel of gradients is tall


def coordinates(
    frame: pl.DataFrame,
    rows: str | None = "quantity",
    columns: str | None = None,
    step: int | None = None,
    color: str = "layer",
    title: str = "",
) -> Chart:
    """Draws the coordinate check: each layer's size and its change against width, log-log.

    A line a layer, through the geometric mean over seeds. A size of 0 is a triangle at the bottom
    edge, one that is not finite a cross at the top edge.

    Args:
        frame: a row per width, seed, step and layer, as of
            :func:`isolab.measure.coordinates.coordinate_check`, with ``rows`` and ``columns``,
            which may be "quantity" (size or change) and "step".
        step: which step to draw, unless ``rows`` or ``columns`` is "step"; None takes the last.
        color: "layer", dark at the input and light at the readout, or another column.

    Raises:
        ValueError: for a step that the frame lacks.
    """
    panel = panel_columns(rows, columns)
    named = [n for n in frames.keys_of(frame, *panel, color) if n not in ("quantity", "layer")]
    keys = list(dict.fromkeys([*named, "layer", "order", "width", "step", "seed"]))
    require_columns(frame, [*keys, *_SIZES.values()])
    frame, at = _at_step(frame, panel, step)
    points = _sizes(frame, keys)
    groups = list(dict.fromkeys([*panel, *named, "layer", "quantity", "width"]))
    frames.duplicates(points, [*groups, "step", "seed"])
    style = _by_layer(points) if color == "layer" else style_of(points, color)
    size, given = pl.col("size"), pl.col("given")
    not_finite = pl.when(size.is_null().any()).then(pl.lit("not finite"))
    means = frames.spread_of(
        style.frame,
        list(dict.fromkeys([*groups, *style.columns])),
        "size",
        mean=size.log().mean().exp(),
        rms=pl.when((given == 0).any()).then(pl.lit("0")).otherwise(not_finite),
    ).rename({"mean": "size"})
    edge, means = means.filter(pl.col("rms").is_not_null()), means.filter(pl.col("rms").is_null())
    x = width_axis(points["width"])
    of_mean: list[Any] = [*(name for name in groups if name != "width"), ("width", "d")]
    numbers = [("size", ".4~g", "rms"), ("low", ".4~g", "lowest"), ("high", ".4~g"), "seeds"]
    layers = []
    for across in points[rows].unique().sort() if rows else [None]:  # a row shares its axis
        its, lost = ((f.filter(pl.col(rows) == across) if rows else f) for f in (means, edge))
        low, high = frames.extent(its["size"], 0.1, 10.0)
        pad = max((high / low) ** 0.08, 1.3)
        ends = [low / pad, high * pad]
        y = axis("size", "rms (log10 axis)", ends, 10, format=".3~g", values=log_ticks(*ends))
        plot = Plot(x, y, style)
        layers += plot.means(its, tips(*of_mean, *numbers), 40, detail="layer")
        for name, pixel in (("0", _HEIGHT - 7), ("not finite", 7)):
            mark = {"type": "point", "shape": _EDGE[name], "size": 45, "strokeWidth": 2}
            gone = lost.filter(pl.col("rms") == name)
            layers += plot.draw(gone, mark, y=pixel, split=False, tooltip=tips(*of_mean, "rms"))
    notes = ["Line: geometric mean over seeds. Flat: the size does not depend on the width."]
    if (edge["rms"] == "0").any():
        notes.append("Triangle at the bottom edge: 0 for a seed at least.")
    if (edge["rms"] != "0").any():
        notes.append("Cross at the top edge: not finite for a seed at least.")
    heading = title or f"Sizes of activations against width{at}"
    return facets(points, layers, heading, [*notes, *style.note], style, rows, columns, _HEIGHT)


def coordinate_slopes(
    slopes: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "quantity",
    step: int | None = None,
    color: str = "quantity",
) -> Chart:
    """Draws each layer's slope of log size on log width with its interval, and a line at 0.

    Args:
        slopes: a row per layer, step and quantity, as of
            :func:`isolab.measure.coordinates.slopes`, with ``rows``, ``columns`` and ``color``.
        step: as in :func:`coordinates`.

    Raises:
        ValueError: for a step that the frame lacks.
    """
    panel = panel_columns(rows, columns)
    keys = frames.keys_of(slopes, *panel, color, "layer", "order", "step", "quantity")
    require_columns(slopes, [*keys, "slope", "slope_low", "slope_high", "note"])
    slopes, at = _at_step(slopes, panel, step)
    points = frames.with_intervals(slopes, [*keys, "note"], "slope", digits=3)
    points = spelled(points).sort("order")
    style = style_of(points, color)
    groups = style.groups(panel, "layer")
    frames.duplicates(points, groups, "name the column that differs as rows, columns or color")
    names = points["layer"].unique(maintain_order=True).to_list()
    found = points.filter(pl.col("value").is_not_null())
    bottom, top = frames.reach(found, 0.0)
    pad = 0.06 * (top - bottom)
    x = axis("value", "slope of log rms on log width", (bottom - pad, top + pad))
    plot = Plot(x, names_axis("layer", names, labelLimit=220), style)
    apart = "origin" if style.both else color
    of_slope = tips(*groups, ("value", ".3f", "slope"), ("interval", "", "95% interval"))
    offset = offset_by(apart, points[apart])
    layers, cut = plot.intervals(found, of_slope, "x", (3, 0.55), **offset)
    layers = plot.rules([0.0], "x") + layers
    notes = ["Bar: 95% interval over seeds. 0: the size does not depend on the width."]
    none = points.filter(pl.col("value").is_null()).select("layer", "quantity", "note")
    missing = [f"{layer}, {what}: {why}" for layer, what, why in none.rows()]
    notes += [*cut, *style.note, *summarized(missing)]
    height = max(len(names) * max(17, 9 * points[apart].n_unique() + 5), 80)
    heading = f"Slopes of sizes against width{at}"
    return facets(points, layers, heading, notes, style, rows, columns, height, zoom=False)


def alignment(
    frame: pl.DataFrame,
    rows: str | None = "layer",
    columns: str | None = "kind",
    color: str = "width",
) -> Chart:
    """Draws alignment exponents against steps: a line through means, a band lowest to highest.

    Means and bands are over seeds and over whatever is not named: ``rows="role"`` takes the layers
    of a role together. Grey lines lie at 1/2, no alignment, and 1, full alignment.

    Args:
        frame: a row per width, seed, step, layer and kind, as of
            :func:`isolab.measure.alignment.measure`: ``step``, ``alignment`` (null where there is
            none), ``color``, ``rows`` and ``columns``.

    Raises:
        ValueError: for no alignment that is finite.
    """
    panel = panel_columns(rows, columns)
    keys = frames.keys_of(frame, *panel, color)
    points = spelled(frames.finite(frame, [*keys, "step"], {"alignment": "alignment"}))
    for name in panel:
        if points.schema[name] == pl.String:  # layers stay in the order of the frame
            kinds = pl.Enum(points[name].unique(maintain_order=True))
            points = points.with_columns(pl.col(name).cast(kinds))
    lost = points["alignment"].null_count()
    points = points.filter(pl.col("alignment").is_not_null())
    if points.is_empty():
        raise ValueError("nothing to draw: no alignment of the frame is finite")
    style = style_of(points, color)
    on = style.groups(panel, "step")
    means = frames.thinned(frames.spread_of(style.frame, on, "alignment", "values"), "step")
    low, high = frames.extent(means["low"])[0], frames.extent(means["high"])[1]
    domain = [min(low, _RULES[0]) - 0.05, max(high, _RULES[1]) + 0.05]
    ticks = [k / 4 for k in range(math.ceil(4 * domain[0]), math.floor(4 * domain[1]) + 1)]
    y = axis("mean", "alignment exponent", domain, values=ticks, format=".3~g")
    plot = Plot(_steps(means["step"]), y, style)
    of_mean = [*keys, ("step", ",d"), ("mean", ".3f"), ("low", ".3f", "lowest")]
    of_mean += [("high", ".3f", "highest"), ("values", "", "values in the mean")]
    layers = plot.rules(_RULES) + plot.draw(means, BAND, 0.15, y="low", y2="high")
    layers += plot.means(means, tips(*of_mean), 26)
    rules = "Dashed: 1/2, no alignment, and 1, full alignment."
    notes = [f"Line: mean; band: lowest to highest. {rules}", *style.note]
    if lost:
        notes.append(f"{lost} values are not finite and left out.")
    height = 110 if rows and points[rows].n_unique() > 3 else 170
    heading = "Alignment while training"
    return facets(points, layers, heading, notes, style, rows, columns, height)


def gradient_sizes(
    gradients: pl.DataFrame,
    exponents: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "parameterization",
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
        ValueError: for a gradient that is not positive and finite.
    """
    panel = panel_columns(rows, columns)
    group = [*frames.keys_of(gradients, "parameterization", "step"), "role"]
    values = {"width": "width", "size": "gradient_rms"}
    points = frames.finite(gradients, [*group, "seed"], values, lossless=True)
    each = [*panel, "role", "width", "seed"]
    frames.duplicates(points, each, "name the column as rows or columns")
    require_columns(exponents, [*group, "exponent", "exponent_low", "exponent_high", "theory"])
    means = _with_powers(points, exponents, group)
    points, means = spelled(points), spelled(means)
    share = _POWER / (panel_pixels(points, columns) - _POWER)  # for powers, right of the lines
    x = width_axis(points["width"], share=share)
    sizes = pl.concat([points["size"], means["by theory"].drop_nulls()])
    domain = frames.log_domain("gradient", sizes)
    y = axis("size", "rms of the gradient (log10 axis)", domain, 10, format=".0e", tickCount=6)
    plot = Plot(x, y, style_of(points, "role"))
    where = [*group, ("width", "d")]
    of_mean = [*where, ("size", ".3~e", "geometric mean"), ("power", ".3f", "fitted power")]
    of_mean += [("interval", "", "95% interval")]
    layers = plot.draw(means, LINE, tooltip=tips(*of_mean))
    dots, of_point = frames.thinned(points, "width"), tips(*where, ("size", ".3~e"), "seed")
    layers += plot.draw(dots, POINT | {"size": 22}, 0.55, tooltip=of_point)
    theory = LINE | {"strokeWidth": 1.2, "strokeDash": [4, 3]}
    layers += plot.draw(means, theory, 0.9, split=False, y="by theory")
    ends = means.group_by(group, maintain_order=True).last()
    for _, its in ends.group_by(panel or [pl.lit(0)], maintain_order=True):
        decade = _GRADIENTS / math.log10(domain[1] / domain[0])  # in pixels
        down = [(0.0, -math.log10(size) * decade) for size in its["size"]]
        moved = [round(d - y) for d, (_, y) in zip(spread(down, 1, 13), down, strict=True)]
        its = its.with_columns(pl.Series("dy", moved, dtype=pl.Int64))
        for (dy,), at in its.group_by(["dy"], maintain_order=True):
            layers += plot.labels(at, "text", dy=dy, dx=6, fontSize=11, align="left")
    notes = [
        "Point: a seed. Line: their geometric mean. Dashed: theory's slope, from the narrowest"
        " width.",
        "The number at a line's end is its power of the width, fitted, and by theory in brackets.",
    ]
    heading = "Root mean square of the gradient against width"
    return facets(points, layers, heading, notes, plot.style, rows, columns, _GRADIENTS)


def _with_powers(points: pl.DataFrame, exponents: pl.DataFrame, group: list[str]) -> pl.DataFrame:
    """Returns geometric means over seeds, the fitted ``power``, its ``interval`` and ``text``."""
    fits = exponents.select(*group, pl.col("^exponent.*$"), "theory")
    first = [pl.col(name).first().over(group) for name in ("size", "width")]
    ends = [(-pl.col(name)).round(2) for name in ("exponent_high", "exponent_low")]
    means = (
        points.group_by(*group, "width")
        .agg(pl.col("size").log().mean().exp(), pl.len().alias("seeds"))
        .sort(*group, "width")
        .join(fits, on=group, how="left")
        .with_columns(
            (first[0] * (pl.col("width") / first[1]) ** -pl.col("theory")).alias("by theory"),
            power=-pl.col("exponent"),
            interval=pl.format("{} to {}", *ends),
        )
    )
    texts = [
        "no fit" if power is None else f"{signed(power)} ({fraction(-theory)})"
        for power, theory in means.select("power", "theory").rows()
    ]
    return means.with_columns(pl.Series("text", texts, dtype=pl.String))


def _steps(steps: pl.Series) -> Spec:
    """Returns a linear axis, or a logarithmic one that shows 0 where steps crowd at the start."""
    numbers = steps.unique().sort()
    first, last = frames.extent(numbers)
    middle = float(numbers[len(numbers) // 2])
    if last > 5 * max(middle, 1.0) and len(numbers) > 3:
        ticks = numbers.gather_every(math.ceil(len(numbers) / 6)).to_list()
        style: Spec = {"values": ticks, "format": ",d", "labelOverlap": True}
        return axis("step", "step (log axis)", [0, last], kind="symlog", **style)
    return axis("step", "step", [first, last], format=",d", tickCount=5)


def _at_step(frame: pl.DataFrame, panel: list[str], step: int | None) -> tuple[pl.DataFrame, str]:
    """Returns the rows of one step, and how to name it; all rows where steps are panels."""
    if frame.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    if "step" in panel:
        return frame, ""
    steps = frame["step"].unique().sort().to_list()
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"step is {step}; the frame has {steps}")
    return frame.filter(pl.col("step") == step), f", step {step}"


def _sizes(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Returns a row per size: ``given``, and ``size``, which is null unless positive and finite."""
    both = [
        frames.finite(frame, keys, {"size": column}).with_columns(
            given=frame[column].cast(pl.Float64), quantity=pl.lit(name)
        )
        for name, column in _SIZES.items()
    ]
    # Before training there is no change, rather than a change that could not be measured.
    known = (pl.col("step") > 0) | (pl.col("quantity") != "change")
    tidy = pl.concat(both).filter(known)
    layers = tidy.sort("order")["layer"].unique(maintain_order=True).to_list()
    return spelled(tidy).with_columns(
        size=pl.when(pl.col("size") > 0).then("size"), layer=pl.col("layer").cast(pl.Enum(layers))
    )


def _by_layer(points: pl.DataFrame) -> Style:
    """Returns layers from dark at the input to light at the readout."""
    names = points["layer"].unique().sort().to_list()
    shades = {"domain": names, "scheme": {"name": "viridis", "extent": [0, 0.9]}}
    legend = {"symbolLimit": 0, "columns": math.ceil(len(names) / 24), "labelFontSize": 11}
    color = {"field": "layer", "type": "ordinal", "title": "layer, from the input on"}
    return replace(style_of(points, "layer"), color=color | {"scale": shades, "legend": legend})
