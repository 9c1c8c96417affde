"""Sizes of layers against width, their slopes, and alignment while training."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, log_ticks, names_axis, tips, width_axis
from isolab.charts.figure import Chart, facets, panel_columns
from isolab.charts.frames import (
    bars,
    bound,
    duplicates,
    finite,
    origins,
    reach,
    spread_of,
    thinned,
    with_intervals,
)
from isolab.charts.layers import Look, Plot, look_of
from isolab.charts.theme import BAND, CROSS, LINE, POINT, Spec, spelled, summarized

_SIZES = {"activation": "activation_rms", "change": "change_rms"}
_EDGE = {"0": "triangle-down", "not finite": CROSS}
_RULES = (0.5, 1.0)  # no alignment, full alignment


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
            :func:`isolab.measure.coordinates.coordinate_check`, with ``rows`` and ``columns``
            where they are named; they may be "quantity" (size or change) and "step". Where there is
            a column ``origin``, it is told apart.
        step: which step to draw, unless ``rows`` or ``columns`` is "step"; None takes the last.
        color: "layer", dark at the input and light at the readout, or another column.

    Raises:
        ValueError: for missing columns, no rows, a step that the frame lacks, two rows of one
            layer, width, step and seed, or a width that is not positive.
    """
    panel = panel_columns(rows, columns)
    named = [n for n in (*panel, color, *origins(frame)) if n not in ("quantity", "layer")]
    keys = list(dict.fromkeys([*named, "layer", "order", "width", "step", "seed"]))
    require_columns(frame, [*keys, *_SIZES.values()])
    frame, at = _at_step(frame, panel, step)
    points = _sizes(frame, keys)
    groups = list(dict.fromkeys([*panel, *named, "layer", "quantity", "width"]))
    duplicates(points, [*groups, "step", "seed"])
    look = _by_layer(points) if color == "layer" else look_of(points, color)
    on = list(dict.fromkeys([*groups, *look.columns]))
    means = look.frame.group_by(on, maintain_order=True).agg(
        pl.col("size").log().mean().exp().alias("size"),
        pl.col("size").min().alias("low"),
        pl.col("size").max().alias("high"),
        pl.len().alias("seeds"),
        pl.when((pl.col("given") == 0).any()).then(pl.lit("0"))
        .when(pl.col("size").is_null().any()).then(pl.lit("not finite")).alias("rms"),
    )  # fmt: skip
    edge, means = means.filter(pl.col("rms").is_not_null()), means.filter(pl.col("rms").is_null())
    x, height = width_axis(points["width"]), 250
    of_mean: list[Any] = [*(name for name in groups if name != "width"), ("width", "d")]
    numbers = [("size", ".4~g", "rms"), ("low", ".4~g", "lowest"), ("high", ".4~g"), "seeds"]
    layers = []
    for across in points[rows].unique().sort() if rows else [None]:  # a row shares its axis
        its, lost = ((f.filter(pl.col(rows) == across) if rows else f) for f in (means, edge))
        low, high = bound(its["size"], "min", 0.1), bound(its["size"], "max", 10.0)
        pad = max((high / low) ** 0.08, 1.3)
        ends = [low / pad, high * pad]
        y = axis("size", "rms (log10 axis)", ends, 10, format=".3~g", values=log_ticks(*ends))
        plot = Plot(x, y, look)
        layers += plot.draw(its.sort(groups), LINE, detail="layer")
        layers += plot.draw(its, POINT | {"size": 40}, tooltip=tips(*of_mean, *numbers))
        for name, pixel in (("0", height - 7), ("not finite", 7)):
            mark = {"type": "point", "shape": _EDGE[name], "size": 45, "strokeWidth": 2}
            gone = lost.filter(pl.col("rms") == name)
            layers += plot.draw(gone, mark, y=pixel, split=False, tooltip=tips(*of_mean, "rms"))
    notes = ["Line: geometric mean over seeds. Flat: the size does not depend on the width."]
    if (edge["rms"] == "0").any():
        notes.append("Triangle at the bottom edge: 0 for a seed at least.")
    if (edge["rms"] != "0").any():
        notes.append("Cross at the top edge: not finite for a seed at least.")
    heading = title or f"Sizes of activations against width{at}"
    return facets(points, layers, heading, [*notes, *look.note], look, rows, columns, height)


def coordinate_slopes(
    slopes: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "quantity",
    step: int | None = None,
    color: str = "quantity",
    title: str = "",
) -> Chart:
    """Draws each layer's slope of log size on log width with its interval, and a line at 0.

    Args:
        slopes: a row per layer, step and quantity, as of
            :func:`isolab.measure.coordinates.slopes`, with ``rows``, ``columns`` and ``color``
            where they are named, and ``origin`` where there is one.
        step: as in :func:`coordinates`.

    Raises:
        ValueError: for missing columns, no rows, a step that the frame lacks, or two rows of one
            layer.
    """
    panel = panel_columns(rows, columns)
    keys = dict.fromkeys([*panel, color, *origins(slopes), "layer", "order", "step", "quantity"])
    ends = ("slope", "slope_low", "slope_high")
    require_columns(slopes, [*keys, *ends, "note"])
    slopes, at = _at_step(slopes, panel, step)
    points = spelled(with_intervals(slopes, [*keys, "note"], ends, digits=3)).sort("order")
    look = look_of(points, color)
    groups = list(dict.fromkeys([*panel, *look.columns, "layer"]))
    duplicates(points, groups, "name the column that differs as rows, columns or color")
    names = points["layer"].unique(maintain_order=True).to_list()
    found = points.filter(pl.col("value").is_not_null())
    bottom, top = reach(found, 0.0)
    pad = 0.06 * (top - bottom)
    domain = (bottom - pad, top + pad)
    intervals, cut = bars(found, *domain)
    x = axis("value", "slope of log rms on log width", domain)
    plot = Plot(x, names_axis("layer", names, labelLimit=220), look)
    apart = "origin" if look.both else color
    hues = points[apart].unique().sort().to_list()
    offset: Spec = {"yOffset": {"field": apart, "type": "nominal", "sort": hues,
                          "scale": {"domain": hues}}}  # fmt: skip
    of_slope = [*groups, ("value", ".3f", "slope"), ("interval", "", "95% interval")]
    layers = plot.rules([0.0], "x")
    layers += plot.intervals(intervals, found, tips(*of_slope), "x", thick=3, **offset)
    notes = ["Bar: 95% interval over seeds. 0: the size does not depend on the width."]
    none = points.filter(pl.col("value").is_null())
    missing = [f"{layer}, {what}: {why}" for layer, what, why in
               none.select("layer", "quantity", "note").rows()]  # fmt: skip
    notes += [*cut, *look.note, *summarized(missing)]
    height = max(len(names) * max(17, 9 * len(hues) + 5), 80)
    heading = title or f"Slopes of sizes against width{at}"
    return facets(points, layers, heading, notes, look, rows, columns, height, zoom=False)


def alignment(
    frame: pl.DataFrame,
    rows: str | None = "layer",
    columns: str | None = "kind",
    color: str = "width",
    title: str = "Alignment while training",
) -> Chart:
    """Draws alignment exponents against steps: a line through means, a band lowest to highest.

    Means and bands are over seeds and over whatever is not named: ``rows="role"`` takes the layers
    of a role together. Grey lines lie at 1/2, no alignment, and 1, full alignment.

    Args:
        frame: a row per width, seed, step, layer and kind, as of
            :func:`isolab.measure.alignment.measure`: ``step``, ``alignment`` (null where there is
            none), ``color``, ``rows``, ``columns`` and, where there is one, ``origin``.

    Raises:
        ValueError: for missing columns, no rows, or no alignment that is finite.
    """
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(frame)]))
    points = spelled(finite(frame, [*keys, "step"], {"alignment": "alignment"}))
    for name in panel:
        if points.schema[name] == pl.String:  # layers stay in the order of the frame
            kinds = pl.Enum(points[name].unique(maintain_order=True))
            points = points.with_columns(pl.col(name).cast(kinds))
    lost = points["alignment"].null_count()
    points = points.filter(pl.col("alignment").is_not_null())
    if points.is_empty():
        raise ValueError("nothing to draw: no alignment of the frame is finite")
    look = look_of(points, color)
    on = list(dict.fromkeys([*panel, *look.columns]))
    means = thinned(spread_of(look.frame, [*on, "step"], "alignment", "values"), "step")
    low, high = bound(means["low"], "min"), bound(means["high"], "max")
    domain = [min(low, _RULES[0]) - 0.05, max(high, _RULES[1]) + 0.05]
    ticks = [k / 4 for k in range(math.ceil(4 * domain[0]), math.floor(4 * domain[1]) + 1)]
    y = axis("mean", "alignment exponent", domain, values=ticks, format=".3~g")
    plot = Plot(_steps(means["step"]), y, look)
    of_mean = [*keys, ("step", ",d"), ("mean", ".3f"), ("low", ".3f", "lowest")]
    of_mean += [("high", ".3f", "highest"), ("values", "", "values in the mean")]
    layers = plot.rules(_RULES) + plot.draw(means, BAND, 0.15, y="low", y2="high")
    layers += plot.draw(means, LINE)
    layers += plot.draw(means, POINT | {"size": 26}, tooltip=tips(*of_mean))
    notes = [
        "Line: mean; band: lowest to highest. Dashed: 1/2, no alignment, and 1, full alignment.",
        *look.note,
    ]
    if lost:
        notes.append(f"{lost} values are not finite and left out.")
    height = 110 if rows and points[rows].n_unique() > 3 else 170
    return facets(points, layers, title, notes, look, rows, columns, height)


def _steps(steps: pl.Series) -> Spec:
    """Returns a linear axis, or a logarithmic one that shows 0 where steps crowd at the start."""
    numbers = steps.unique().sort()
    first, last = bound(numbers, "min"), bound(numbers, "max")
    middle = float(numbers[len(numbers) // 2])
    if last > 5 * max(middle, 1.0) and len(numbers) > 3:
        ticks = numbers.gather_every(math.ceil(len(numbers) / 6)).to_list()
        look: Spec = {"values": ticks, "format": ",d", "labelOverlap": True}
        return axis("step", "step (log axis)", [0, last], kind="symlog", **look)
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
        finite(frame, keys, {"size": column}).with_columns(
            frame[column].cast(pl.Float64).alias("given"), pl.lit(name).alias("quantity")
        )
        for name, column in _SIZES.items()
    ]
    # Before training there is no change, rather than a change that could not be measured.
    known = (pl.col("step") > 0) | (pl.col("quantity") != "change")
    tidy = pl.concat(both).filter(known)
    layers = tidy.sort("order")["layer"].unique(maintain_order=True).to_list()
    return spelled(tidy).with_columns(
        pl.when(pl.col("size") > 0).then("size").alias("size"),
        pl.col("layer").cast(pl.Enum(layers)),
    )


def _by_layer(points: pl.DataFrame) -> Look:
    """Returns layers from dark at the input to light at the readout."""
    names = points["layer"].unique().sort().to_list()
    look = look_of(points, "layer")
    shades = {"domain": names, "scheme": {"name": "viridis", "extent": [0, 0.9]}}
    legend = {"symbolLimit": 0, "columns": math.ceil(len(names) / 24), "labelFontSize": 11}
    color = {"field": "layer", "type": "ordinal", "title": "layer, from the input on"}
    return Look(look.frame, look.columns, look.both, color | {"scale": shades, "legend": legend},
                look.pick)  # fmt: skip
