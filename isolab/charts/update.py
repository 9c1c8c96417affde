"""The update against the ratio of moments."""

from __future__ import annotations

import altair as alt
import polars as pl

from isolab.charts.parts import bound, colour, duplicates, finish, finite, thinned, tip


def update_function(
    frame: pl.DataFrame, title: str = "Update against the ratio of moments"
) -> alt.LayerChart:
    """Draws Adam's and Adam-atan2's updates as functions of m / sqrt(v); Adam's are dashed.

    Args:
        frame: from :func:`isolab.theory.update_function.update_function`.

    Raises:
        ValueError: for missing columns, no rows, two updates of one function and ratio, or a number
            that is not finite.
    """
    columns = ["optimizer", "function"]
    finite(frame, columns, {"ratio": "ratio", "update": "update"})
    duplicates(frame, ["function", "ratio"])
    lost = frame.filter(~(pl.col("ratio").is_finite() & pl.col("update").is_finite()))
    if not lost.is_empty():
        raise ValueError(f"ratio and update must be finite, got {lost.row(0, named=True)}")
    order = frame["function"].unique(maintain_order=True).to_list()
    points = thinned(frame, "ratio").with_columns(
        pl.col("function").cast(pl.Enum(order)),
        pl.when(pl.col("bound").is_finite()).then("bound").alias("bound"),
    )
    reach = max(bound(points["update"], "max"), -bound(points["update"], "min"))
    hue, pick, faded = colour(points["function"], "function")
    x = alt.X("ratio:Q", title="m / √v").scale(nice=False).axis(format="~g")
    y = alt.Y("update:Q", title="update, before the rate")
    y = y.scale(domain=[-1.05 * reach, 1.05 * reach], nice=False)
    dash = alt.StrokeDash("optimizer:N", legend=None).scale(
        domain=["adam", "adam_atan2"], range=[[6, 4], [1, 0]]
    )
    tips = [tip("function"), tip("ratio", ".2f"), tip("update", ".3f"), tip("slope", ".3f")]
    drawn = alt.Chart(points).encode(x=x, y=y)
    axes = alt.Chart(pl.DataFrame({"zero": [0.0]}))
    layers = [
        drawn.mark_line(strokeWidth=2.2).encode(
            color=hue,
            strokeDash=dash,
            opacity=faded(1),
            tooltip=[*tips, tip("bound", ".3f", "largest update")],
        ),
        axes.mark_rule(color="#999999").encode(x=alt.X("zero:Q")),
        axes.mark_rule(color="#999999").encode(y=alt.Y("zero:Q")),
    ]
    notes = ["Dashed: Adam. A ratio of 1: a gradient that never changes."]
    return finish(layers, title, notes, pick)
