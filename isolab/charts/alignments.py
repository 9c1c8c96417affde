"""Alignment of weights and updates with what enters their layer, while training."""

from __future__ import annotations

import math

import altair as alt
import polars as pl

from isolab.charts.panels import Place, panel_columns, small_multiples
from isolab.charts.parts import bound, colour, finite, spelled, thinned, tip

_RULES = (0.5, 1.0)  # no alignment, full alignment


def alignment(
    frame: pl.DataFrame,
    rows: str | None = "layer",
    columns: str | None = "kind",
    color: str = "width",
    title: str = "Alignment while training",
) -> alt.ConcatChart:
    """Draws alignment exponents against steps: a line through means, a band lowest to highest.

    Means and bands are over seeds and over whatever is not named: ``rows="role"`` takes the layers
    of a role together. Grey lines lie at 1/2, no alignment, and 1, full alignment.

    Args:
        frame: a row per width, seed, step, layer and kind, as of
            :func:`isolab.measure.alignment.measure`:
            ``step``, ``alignment`` (null where there is none), ``color``, ``rows``, ``columns``.

    Raises:
        ValueError: for missing columns, no rows, or no alignment that is finite.
    """
    panel = panel_columns(rows, columns)
    groups = list(dict.fromkeys([*panel, color]))
    points = spelled(finite(frame, [*groups, "step"], {"alignment": "alignment"}))
    for name in panel:
        if points.schema[name] == pl.String:  # layers stay in the order of the frame
            points = points.with_columns(
                pl.col(name).cast(pl.Enum(points[name].unique(maintain_order=True)))
            )
    lost = points["alignment"].null_count()
    points = points.filter(pl.col("alignment").is_not_null())
    if points.is_empty():
        raise ValueError("nothing to draw: no alignment of the frame is finite")
    means = (
        points.group_by(*groups, "step")
        .agg(
            pl.col("alignment").mean().alias("mean"),
            pl.col("alignment").min().alias("low"),
            pl.col("alignment").max().alias("high"),
            pl.len().alias("values"),
        )
        .sort(*groups, "step")
    )
    hue, pick, faded = colour(means[color], color)
    low, high = bound(means["low"], "min"), bound(means["high"], "max")
    domain = [min(low, _RULES[0]) - 0.05, max(high, _RULES[1]) + 0.05]
    y = alt.Y("mean:Q", title="alignment exponent").scale(domain=domain, nice=False)
    quarters = range(math.ceil(4 * domain[0]), math.floor(4 * domain[1]) + 1)
    y = y.axis(values=[k / 4 for k in quarters], format=".3~g")
    x = _steps(means["step"])
    tips = [*map(tip, groups), tip("step", ",d"), tip("mean", ".3f"), tip("low", ".3f", "lowest")]
    tips += [tip("high", ".3f", "highest"), tip("values", name="values in the mean")]
    rules = pl.DataFrame({"mean": list(_RULES)})

    def draw(place: Place) -> list[alt.Chart]:
        its_x, its_y = place.x(x), place.y(y)
        its = alt.Chart(thinned(place.of(means), "step")).encode(x=its_x, color=hue)
        return [
            alt.Chart(rules).mark_rule(color="#666666", strokeDash=[4, 3]).encode(y=its_y),
            its.mark_area(clip=True, line=False).encode(
                y=alt.Y("low:Q"), y2="high:Q", opacity=faded(0.15)
            ),
            its.mark_line(clip=True, strokeWidth=2).encode(y=its_y, opacity=faded(1)),
            its.mark_circle(clip=True, size=26).encode(y=its_y, opacity=faded(1), tooltip=tips),
        ]

    notes = [
        "Line: mean; band: lowest to highest. Dashed: 1/2, no alignment, and 1, full alignment."
    ]
    if lost:
        notes.append(f"{lost} values are not finite and left out.")
    height = 110 if rows and points[rows].n_unique() > 3 else 170
    return small_multiples(points, rows, columns, draw, title, notes, pick, height)


def _steps(steps: pl.Series) -> alt.X:
    """Returns a linear axis, or a logarithmic one that shows 0 where steps crowd at the start."""
    numbers = steps.unique().sort()
    last = bound(numbers, "max")
    middle = float(numbers[len(numbers) // 2])
    if last > 5 * max(middle, 1.0) and len(numbers) > 3:
        ticks = numbers.gather_every(math.ceil(len(numbers) / 6)).to_list()
        axis = alt.Axis(values=ticks, format=",d", labelOverlap=True)
        scale = alt.Scale(type="symlog", constant=1, domain=[0, last], nice=False)
        return alt.X("step:Q", title="step (log axis)", scale=scale, axis=axis)
    scale = alt.Scale(domain=[bound(numbers, "min"), last], nice=False)
    axis = alt.Axis(format=",d", tickCount=5)
    return alt.X("step:Q", title="step", scale=scale, axis=axis)
