"""What theory says: of learning rates, and of Adam's and Adam-atan2's updates."""

from __future__ import annotations

import math

import polars as pl

from isolab.charts.channels import axis, scaled, tips, width_axis
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import bound, duplicates, finite, thinned
from isolab.charts.layers import Plot, look_of
from isolab.charts.theme import LINE, fraction, spelled

_DASHES = {"full alignment": [1, 0], "no alignment": [5, 4]}
_APART = 2.6  # pixels between lines that coincide
# 1/32 rather than 0.03125
_RATIO = "datum.value < 1 ? '1/' + format(1 / datum.value, 'd') : format(datum.value, 'd')"


def theory_rates(
    frame: pl.DataFrame, title: str = "Largest stable learning rate against width, by theory"
) -> Chart:
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
    look = look_of(points, "role")
    roles, kinds = (points[n].unique().sort().to_list() for n in ("role", "alignment"))
    low, high = bound(points["width"], "min"), bound(points["width"], "max")
    room = 2.0 ** (0.12 * math.log2(max(high / low, 2.0)))  # for the powers, right of the lines
    factors = bound(points["factor"], "min") / 2.5, bound(points["factor"], "max") * 2.5
    y = axis("factor", "rate / base rate", factors, 2, labelExpr=_RATIO, tickCount=5)
    plot = Plot(width_axis(points["width"], room=room), y, look)
    dash = scaled("alignment", {k: _DASHES.get(k, [2, 2]) for k in kinds}, "alignment")
    tooltip = tips(*names, ("width", "d"), ("factor", ".4~g"), "power")
    layers = []
    for i, role in enumerate(roles):
        mark = LINE | {"yOffset": _APART * (i - (len(roles) - 1) / 2)}
        its = thinned(points.filter(pl.col("role") == role), "width")
        layers += plot.draw(its, mark, strokeDash=dash, tooltip=tooltip)
    once = ends.unique(["parameterization", "rule", "power"], maintain_order=True)
    layers += plot.labels(once, "power", None, dy=4, dx=5, color="#333333", fontSize=11,
                          align="left")  # fmt: skip
    notes = [
        "Both axes are log2; the number at a line's end is its power of the width.",
        "Lines side by side have the same rate; a line with no dashed one beside it has the same "
        "rate at either alignment.",
    ]
    return facets(points, layers, title, notes, look, "parameterization", "rule", 150)


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


def update_function(
    frame: pl.DataFrame, title: str = "Update against the ratio of moments"
) -> Chart:
    """Draws Adam's and Adam-atan2's updates as functions of m / sqrt(v); Adam's are dashed.

    Args:
        frame: from :func:`isolab.theory.update_function.update_function`.

    Raises:
        ValueError: for missing columns, no rows, two updates of one function and ratio, or a number
            that is not finite.
    """
    finite(frame, ["optimizer", "function"], {"ratio": "ratio", "update": "update"})
    duplicates(frame, ["function", "ratio"])
    lost = frame.filter(~(pl.col("ratio").is_finite() & pl.col("update").is_finite()))
    if not lost.is_empty():
        raise ValueError(f"ratio and update must be finite, got {lost.row(0, named=True)}")
    order = frame["function"].unique(maintain_order=True).to_list()
    points = thinned(frame, "ratio").with_columns(
        pl.col("function").cast(pl.Enum(order)),
        pl.when(pl.col("bound").is_finite()).then("bound").alias("bound"),
    )
    far = 1.05 * max(bound(points["update"], "max"), -bound(points["update"], "min"))
    ratios = bound(points["ratio"], "min"), bound(points["ratio"], "max")
    x = axis("ratio", "m / √v", ratios, format="~g")
    y = axis("update", "update, before the rate", [-far, far])
    plot = Plot(x, y, look_of(points, "function"))
    dash = scaled("optimizer", {"adam": [6, 4], "adam_atan2": [1, 0]}) | {"legend": None}
    tooltip = tips("function", ("ratio", ".2f"), ("update", ".3f"), ("slope", ".3f"),
                   ("bound", ".3f", "largest update"))  # fmt: skip
    layers = plot.draw(points, LINE | {"strokeWidth": 2.2}, strokeDash=dash, tooltip=tooltip)
    for along in ("x", "y"):
        layers += plot.rules([0.0], along, color="#999999", strokeDash=[1, 0])
    notes = ["Dashed: Adam. A ratio of 1: a gradient that never changes."]
    return facets(points, layers, title, notes, plot.look)
