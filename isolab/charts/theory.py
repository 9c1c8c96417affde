"""What theory says of learning rates."""

from __future__ import annotations

import math

import altair as alt
import polars as pl

from isolab.charts.panels import Place, small_multiples
from isolab.charts.parts import (
    bound,
    colour,
    duplicates,
    finite,
    fraction,
    label,
    log_axis,
    spelled,
    thinned,
    tip,
)

_DASHES = {"full alignment": [1, 0], "no alignment": [5, 4]}
_APART = 2.6  # pixels between lines that coincide
# 1/32 rather than 0.03125
_RATIO = "datum.value < 1 ? '1/' + format(1 / datum.value, 'd') : format(datum.value, 'd')"


def theory_rates(
    frame: pl.DataFrame, title: str = "Largest stable learning rate against width, by theory"
) -> alt.ConcatChart:
    """Draws how each role's rate must follow the width, for every parameterization and rule.

    Lines of different roles that coincide are drawn side by side. The number at the right end of a
    line is its power of the width.

    Args:
        frame: a row per point; columns ``parameterization``, ``rule``, ``alignment`` ("full" or
            "none"), ``role``, ``width`` and ``factor`` (rate over the rate at the base width), as
            of :func:`isolab.theory.tables.rate_lines`.

    Raises:
        ValueError: for missing columns, no rows, two factors of one line at one width, or a width
            or factor that is not positive and finite.
    """
    names = ["parameterization", "rule", "alignment", "role"]
    points = spelled(finite(frame, [*names, "width"], {"factor": "factor"}, lossless=True))
    points = points.with_columns(pl.col("width").cast(pl.Float64)).sort(*names, "width")
    duplicates(points, [*names, "width"])
    ends = _powers(points, names)
    points = points.join(ends.select(*names, "power"), on=names, how="left")
    hue, pick, faded = colour(points["role"], "role")
    roles = points["role"].unique().sort().to_list()
    alignments = points["alignment"].unique().sort().to_list()
    dash = alt.StrokeDash("alignment:N", title="alignment").scale(
        domain=alignments, range=[_DASHES.get(name, [2, 2]) for name in alignments]
    )
    low, high = bound(points["width"], "min"), bound(points["width"], "max")
    x = log_axis("width", points["width"], "width (log2 axis)", format="d")
    room = 2.0 ** (0.14 * math.log2(max(high / low, 2.0)))  # for the powers, right of the lines
    x = x.scale(type="log", base=2, domain=[low / room**0.3, high * room], nice=False)
    low, high = bound(points["factor"], "min"), bound(points["factor"], "max")
    y = (
        alt.Y("factor:Q", title="rate / base rate")
        .scale(type="log", base=2, domain=[low / 2.5, high * 2.5], nice=False)
        .axis(labelExpr=_RATIO, tickCount=5)
    )

    def draw(place: Place) -> list[alt.Chart]:
        its, last = place.of(points), place.of(ends).unique("power", maintain_order=True)
        lines = [
            alt.Chart(thinned(its.filter(pl.col("role") == role), "width"))
            .mark_line(clip=True, strokeWidth=2, yOffset=_APART * (i - (len(roles) - 1) / 2))
            .encode(
                x=place.x(x),
                y=place.y(y),
                color=hue,
                strokeDash=dash,
                opacity=faded(1),
                tooltip=[*map(tip, names), tip("width", "d"), tip("factor", ".4~g"), tip("power")],
            )
            for i, role in enumerate(roles)
        ]
        ink = alt.Chart(last).encode(x=place.x(x), y=place.y(y))
        return [*lines, *label(ink, "power", dy=4, color="#333333", size=11, align="left", dx=5)]

    notes = [
        "Both axes are log2; the number at a line's end is its power of the width.",
        "Lines side by side have the same rate; a line with no dashed one beside it has the same "
        "rate at either alignment.",
    ]
    return small_multiples(points, "parameterization", "rule", draw, title, notes, pick, height=150)


def _powers(points: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Returns each line's last point with its power of the width, as a fraction where it is one."""
    rows = []
    for _, line in points.group_by(names, maintain_order=True):
        first, last = line.row(0, named=True), line.row(-1, named=True)
        if first["width"] == last["width"]:
            rows.append(last | {"power": "one width only"})
            continue
        power = math.log(last["factor"] / first["factor"])
        power /= math.log(last["width"] / first["width"])
        rows.append(last | {"power": fraction(power)})
    return pl.DataFrame(rows, schema=points.schema | {"power": pl.String})
