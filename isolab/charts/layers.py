"""Sizes of layers against width: the coordinate check, and its slopes."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.intervals import bars, beyond, reach, with_intervals
from isolab.charts.panels import Place, panel_columns, small_multiples
from isolab.charts.parts import (
    EDGE_MARK,
    bound,
    colour,
    duplicates,
    finite,
    log_axis,
    spelled,
    summarized,
    tip,
)

_EDGES = {"0": "triangle-down", "not finite": "M-0.9,-0.9L0.9,0.9M-0.9,0.9L0.9,-0.9"}


def coordinates(
    frame: pl.DataFrame,
    rows: str | None = "quantity",
    columns: str | None = None,
    step: int | None = None,
    color: str = "layer",
    title: str = "",
) -> alt.ConcatChart:
    """Draws the coordinate check: each layer's size and its change against width, log-log.

    A line a layer, through the geometric mean over seeds. A size of 0 is a triangle at the bottom
    edge, one that is not finite a cross at the top edge.

    Args:
        frame: a row per width, seed, step and layer, as of
            :func:`isolab.measure.coordinates.coordinate_check`, with ``rows`` and ``columns``
            where they are named; they may be "quantity" (size or change) and "step".
        step: which step to draw, unless ``rows`` or ``columns`` is "step"; None takes the last.
        color: "layer", dark at the input and light at the readout, or another column.

    Raises:
        ValueError: for missing columns, no rows, a step that the frame lacks, two rows of one
            layer, width, step and seed, or a width that is not positive.
    """
    panel = panel_columns(rows, columns)
    kept = [name for name in (*panel, color) if name not in ("quantity", "layer")]
    keys = list(dict.fromkeys([*kept, "layer", "order", "width", "step", "seed"]))
    require_columns(frame, [*keys, "activation_rms", "change_rms"])
    frame, at = _at_step(frame, panel, step)
    points = _tidy(frame, keys)
    groups = list(dict.fromkeys([*panel, *kept, "layer", "quantity", "width"]))
    duplicates(points, [*groups, "step", "seed"])
    means = points.group_by(groups, maintain_order=True).agg(
        pl.col("size").log().mean().exp().alias("size"),
        pl.col("size").min().alias("low"),
        pl.col("size").max().alias("high"),
        pl.len().alias("seeds"),
        (pl.col("given") == 0).any().alias("zero"),
        pl.col("size").is_null().any().alias("lost"),
    )
    edge = means.filter("lost").with_columns(
        pl.when("zero").then(pl.lit("0")).otherwise(pl.lit("not finite")).alias(EDGE_MARK)
    )
    means = means.filter(~pl.col("lost")).sort(groups)
    hue, pick, faded = _hue(points, color)
    x = log_axis("width", points["width"], "width (log2 axis)", format="d")
    tips = [*map(tip, [name for name in groups if name != "width"]), tip("width", "d")]
    numbers = [tip("size", ".4~g", "rms"), tip("low", ".4~g", "lowest"), tip("high", ".4~g")]

    def draw(place: Place) -> list[alt.Chart]:
        across = means.filter(**_row_of(place, rows))
        low, high = bound(across["size"], "min", 0.1), bound(across["size"], "max", 10.0)
        pad = max((high / low) ** 0.08, 1.3)
        y = (
            alt.Y("size:Q", title="rms (log10 axis)")
            .scale(type="log", domain=[low / pad, high * pad], nice=False)
            .axis(format=".3~g", values=_ticks(low / pad, high * pad))
        )

        def drawn(its: pl.DataFrame) -> alt.Chart:
            its_x = place.x(x)
            return alt.Chart(place.of(its)).encode(x=its_x, color=hue, opacity=faded(1))

        layers = [
            drawn(means).mark_line(clip=True, strokeWidth=2).encode(y=place.y(y), detail="layer:N"),
            drawn(means)
            .mark_circle(clip=True, size=40)
            .encode(y=place.y(y), tooltip=[*tips, *numbers, tip("seeds")]),
        ]
        for mark, at_edge in (("0", place.height - 7), ("not finite", 7)):
            its = edge.filter(pl.col(EDGE_MARK) == mark)
            if not place.of(its).is_empty():
                shape: dict[str, Any] = {"shape": _EDGES[mark], "size": 45, "strokeWidth": 2}
                layers.append(
                    drawn(its)
                    .mark_point(**shape)
                    .encode(y=alt.value(at_edge), tooltip=[*tips, tip(EDGE_MARK, name="rms")])
                )
        return layers

    notes = ["Line: geometric mean over seeds. Flat: the size does not depend on the width."]
    if (edge[EDGE_MARK] == "0").any():
        notes.append("Triangle at the bottom edge: 0 for a seed at least.")
    if (edge[EDGE_MARK] != "0").any():
        notes.append("Cross at the top edge: not finite for a seed at least.")
    heading = title or f"Sizes of activations against width{at}"
    return small_multiples(points, rows, columns, draw, heading, notes, pick, 250)


def coordinate_slopes(
    slopes: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "quantity",
    step: int | None = None,
    color: str = "quantity",
    title: str = "",
) -> alt.ConcatChart:
    """Draws each layer's slope of log size on log width with its interval, and a line at 0.

    Args:
        slopes: a row per layer, step and quantity, as of
            :func:`isolab.measure.coordinates.slopes`, with
            ``rows``, ``columns`` and ``color`` where they are named.
        step: as in :func:`coordinates`.

    Raises:
        ValueError: for missing columns, no rows, a step that the frame lacks, or two rows of one
            layer.
    """
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, "layer", "order", "step", "quantity"]))
    ends = ("slope", "slope_low", "slope_high")
    require_columns(slopes, [*keys, *ends, "note"])
    slopes, at = _at_step(slopes, panel, step)
    points = spelled(with_intervals(slopes, [*keys, "note"], ends, digits=3)).sort("order")
    groups = list(dict.fromkeys([*panel, color, "layer"]))
    duplicates(points, groups, "name the column that differs as rows, columns or color")
    names = points["layer"].unique(maintain_order=True).to_list()
    hues = points[color].unique().sort().to_list()
    found = points.filter(pl.col("value").is_not_null())
    bottom, top = reach(found, 0.0)
    pad = 0.06 * (top - bottom)
    domain = [bottom - pad, top + pad]
    x = alt.X("value:Q", title="slope of log rms on log width").scale(domain=domain, nice=False)
    y = alt.Y("layer:N", sort=names, title=None).scale(domain=names)
    y = y.axis(labelLimit=220, ticks=False, domain=False, grid=True)
    offset = alt.YOffset(f"{color}:N", sort=hues).scale(domain=hues)
    hue, pick, faded = colour(points[color], color)
    tips = [*map(tip, groups), tip("value", ".3f", "slope"), tip("interval", name="95% interval")]
    zero = pl.DataFrame({"value": [0.0]})

    def draw(place: Place) -> list[alt.Chart]:
        its_x, its_y = place.x(x), place.y(y)

        def drawn(its: pl.DataFrame, opacity: float = 1) -> alt.Chart:
            chart = alt.Chart(place.of(its)).encode(y=its_y, yOffset=offset, color=hue)
            return chart.encode(opacity=faded(opacity))

        rule = alt.Chart(zero).mark_rule(color="#666666", strokeDash=[4, 3])
        return [
            rule.encode(x=its_x),
            drawn(bars(found, *domain), 0.55)
            .mark_rule(clip=True, strokeWidth=3)
            .encode(x=alt.X("low:Q"), x2="high:Q"),
            drawn(found).mark_circle(clip=True, size=60, opacity=1).encode(x=its_x, tooltip=tips),
        ]

    notes = ["Bar: 95% interval over seeds. 0: the size does not depend on the width."]
    notes += beyond(found, *domain)
    none = points.filter(pl.col("value").is_null())
    notes += summarized(
        [f"{row['layer']}, {row['quantity']}: {row['note']}" for row in none.iter_rows(named=True)]
    )
    height = max(len(names) * max(17, 9 * len(hues) + 5), 80)
    heading = title or f"Slopes of sizes against width{at}"
    return small_multiples(points, rows, columns, draw, heading, notes, pick, height, zoom=False)


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


def _tidy(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Returns a row per size: ``given``, and ``size``, which is null unless positive and finite."""
    sizes = {"activation": "activation_rms", "change": "change_rms"}
    tidy = pl.concat(
        [
            finite(frame, keys, {"size": column}).with_columns(
                frame[column].cast(pl.Float64).alias("given"), pl.lit(name).alias("quantity")
            )
            for name, column in sizes.items()
        ]
    )
    # Before training there is no change, rather than a change that could not be measured.
    tidy = tidy.filter(~((pl.col("step") == 0) & (pl.col("quantity") == "change")))
    layers = tidy.sort("order")["layer"].unique(maintain_order=True).to_list()
    return spelled(tidy).with_columns(
        pl.when(pl.col("size") > 0).then("size").alias("size"),
        pl.col("layer").cast(pl.Enum(layers)),
    )


def _hue(points: pl.DataFrame, color: str) -> tuple[alt.Color, alt.Parameter, Any]:
    hue, pick, faded = colour(points[color], color)
    if color != "layer":
        return hue, pick, faded
    names = points["layer"].unique().sort().to_list()
    shades = alt.SchemeParams(name="viridis", extent=[0, 0.9])
    legend = alt.Legend(symbolLimit=0, columns=math.ceil(len(names) / 24), labelFontSize=11)
    return (
        alt.Color("layer:O", title="layer, from the input on", legend=legend).scale(
            domain=names, scheme=shades
        ),
        pick,
        faded,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 of every power of ten, or fewer where those would be more than ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{k}") for k in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 10:
            break
    return ticks[:: math.ceil(len(ticks) / 10) or 1]


def _row_of(place: Place, rows: str | None) -> dict[str, Any]:
    return {rows: place.values[rows]} if rows else {}
