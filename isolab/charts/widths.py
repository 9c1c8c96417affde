"""Losses against the learning rate, at several widths."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.optimum import optimum
from isolab.charts.origins import Series, origins, series
from isolab.charts.panels import Place, panel_columns, small_multiples
from isolab.charts.parts import (
    EDGE_MARK,
    HEIGHT,
    bound,
    ceiling,
    duplicates,
    finite,
    log_axis,
    padded,
    shown,
    spelled,
    summarized,
    tip,
    title_of,
    words,
)


def loss_by_width(
    runs: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "width",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    title: str = "Loss against learning rate, by width",
) -> alt.ConcatChart:
    """Draws rate sweeps of several widths: a line through seed means, a diamond at the best rate.

    A grey line joins the best rates of the widths: upright where the rate transfers. Diverged runs
    are crosses at the top edge, at their rate; runs so far above the rest that they would flatten
    it are triangles there. All panels share their axes.

    Args:
        runs: a row per run; ``color``, ``rate``, ``loss`` (+inf or NaN where diverged), ``seed``
            and, where they are named, ``rows`` and ``columns``. With a column ``origin``
            ("reference" or "yours") the reader's runs are shades of orange, solid and filled, and
            the reference's shades of blue, dashed and hollow; ``color="origin"`` needs one width
            in a panel.

    Raises:
        ValueError: for missing columns, no rows, two runs of one rate and seed, an unknown origin,
            or a rate that is not a positive number.
    """
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(runs)]))
    points = spelled(finite(runs, [*keys, rate, seed], {"loss": loss}))
    look = series(points, color)
    points = look.frame
    groups = list(dict.fromkeys([*panel, *look.columns]))
    duplicates(points, [*groups, rate, seed])
    x = log_axis(rate, points[rate], f"{title_of(rate)} (log2 axis)")
    means = _means(points, groups, rate)
    best, notes = _best_rates(points, groups, rate, seed)
    top = ceiling(means["mean"], points["loss"])
    edge, lines = _edge(points, groups, list(look.columns), rate, seed, top)
    if not edge.is_empty():
        notes.insert(0, "Runs that diverged or lie above the axis are drawn at the top edge.")
    if not best["edge"].is_null().all():
        notes.insert(0, "Hollow diamond: the best rate is at an edge of the grid.")
    joined = color == "width" and points["width"].n_unique() > 1
    what = "Diamond: the best rate" + (", joined in grey over the widths." if joined else ".")
    tall = HEIGHT if len(points.select(panel).unique() if panel else [0]) == 1 else 210
    pitch = min(12.0, 60 / max(lines, 1))
    bottom = bound(pl.concat([points["loss"], best["loss"]]), "min", default=0.0)
    y = alt.Y("loss:Q", title=title_of(loss)).scale(
        padded(bottom, top, lines * pitch / 12, 0, tall)
    )
    where = [tip(name) for name in keys] + [tip(rate, ".4~g")]

    def draw(place: Place) -> list[alt.Chart]:
        its_x, its_y = place.x(x), place.y(y)

        def drawn(frame: pl.DataFrame) -> alt.Chart:
            return alt.Chart(place.of(frame)).encode(x=its_x, color=look.color)

        layers = [
            drawn(its)
            .mark_line(clip=True, strokeWidth=2, **dashed)
            .encode(y=alt.Y("mean:Q"), detail="segment:N", opacity=look.faded(1))
            for its, dashed, _ in look.parts(means)
        ]
        layers += [
            drawn(its)
            .mark_point(clip=True, size=24, **hollow)
            .encode(
                y=its_y,
                opacity=look.faded(0.65),
                tooltip=[*where, tip(seed), tip("loss", ".4f")],
            )
            for its, _, hollow in look.parts(points.filter(pl.col("loss") <= top))
        ]
        if joined:
            layers.append(
                alt.Chart(place.of(best).sort("width"))
                .mark_line(clip=True, strokeWidth=1.5, color="#666666")
                .encode(
                    x=its_x,
                    y=its_y,
                    order="width:Q",
                    **({"detail": "origin:N"} if look.both else {}),
                )
            )
        for hollow in (True, False):
            at = place.of(best.filter(pl.col("edge").is_not_null() == hollow))
            if not at.is_empty():
                layers.append(_diamonds(at, hollow, look, its_x, its_y, where))
        above = place.of(edge)
        for (line,), marks in above.group_by(["line"], maintain_order=True):
            layers.append(
                alt.Chart(marks)
                .mark_point(size=46, strokeWidth=1.8)
                .encode(
                    x=its_x,
                    color=look.color,
                    y=alt.value(8 + pitch * int(str(line))),
                    shape=shown(edge[EDGE_MARK]),
                    opacity=look.faded(1),
                    tooltip=[*where, tip(EDGE_MARK), tip("seeds"), tip("of", name="of seeds")],
                )
            )
        return layers

    return small_multiples(
        points,
        rows,
        columns,
        draw,
        title,
        [what, *look.note, *summarized(notes, 4)],
        look.pick,
        tall,
    )


def _means(points: pl.DataFrame, groups: list[str], rate: str) -> pl.DataFrame:
    """Returns means over seeds; ``segment`` numbers the parts between rates with a lost seed."""
    return (
        points.group_by(*groups, rate)
        .agg(
            pl.col("loss").mean().alias("mean"),
            pl.col("loss").is_null().any().alias("diverged"),
        )
        .sort(*groups, rate)
        .with_columns(pl.col("diverged").cum_sum().over(groups).alias("segment"))
        .filter(~pl.col("diverged"))
    )


def _best_rates(
    points: pl.DataFrame, groups: list[str], rate: str, seed: str
) -> tuple[pl.DataFrame, list[str]]:
    """Returns a row per group that has an optimum, and what to say of the others."""
    rows, notes = [], []
    for values, its in points.sort(groups).group_by(groups, maintain_order=True):
        named = dict(zip(groups, values, strict=True))
        who = ", ".join(
            v if isinstance(v, str) else f"{words(name)} {v:g}"
            for name, v in named.items()
            if name != "series"
        )
        try:
            best = optimum(its.with_columns(pl.col("loss").fill_null(math.inf)), rate, "loss", seed)
        except ValueError as error:
            notes.append(f"No best rate for {who}: {error}")
            continue
        if best.edge:
            end = "lowest" if best.edge == "low" else "highest"
            notes.append(f"{who}: the best rate is the {end} of the grid.")
        low, high = best.rate_interval
        ends = ["below the grid" if low == 0 else f"{low:.3g}"]
        ends += ["above the grid" if math.isinf(high) else f"{high:.3g}"]
        rows.append(
            named
            | {
                rate: best.rate,
                "loss": best.loss,
                "interval": " to ".join(ends) if best.seeds > 1 else "none: one seed",
                "seeds": best.seeds,
                "edge": best.edge,
                "note": best.note or "none",
            }
        )
    schema: dict[str, Any] = {name: points.schema[name] for name in groups}
    schema |= {rate: pl.Float64, "loss": pl.Float64, "interval": pl.String, "seeds": pl.Int64}
    return pl.DataFrame(rows, schema=schema | {"edge": pl.String, "note": pl.String}), notes


def _edge(
    points: pl.DataFrame, groups: list[str], look: list[str], rate: str, seed: str, top: float
) -> tuple[pl.DataFrame, int]:
    """Returns a mark per group and rate with runs beyond the axis, and the number of its lines.

    Each series has a line of its own, the same in every panel.
    """
    marks = (
        points.with_columns(
            pl.when(pl.col("loss").is_null())
            .then(pl.lit("diverged"))
            .when(pl.col("loss") > top)
            .then(pl.lit("above the axis"))
            .alias(EDGE_MARK),
            pl.len().over([*groups, rate]).alias("of"),
        )
        .filter(pl.col(EDGE_MARK).is_not_null())
        .group_by(*groups, rate, EDGE_MARK, "of")
        .agg(pl.col(seed).sort().cast(pl.String).str.join(", ").alias("seeds"))
        .sort(*groups, rate, EDGE_MARK)
    )
    order = marks.select(look).unique().sort(look).with_row_index("line")
    return marks.join(order, on=look, how="left", maintain_order="left"), len(order)


def _diamonds(
    best: pl.DataFrame,
    hollow: bool,
    look: Series,
    x: alt.X,
    y: alt.Y,
    where: list[alt.Tooltip],
) -> alt.Chart:
    kept = [tip("seeds"), tip("interval", name="rate, 95% interval"), tip("note")]
    look_of: dict[str, Any] = {"filled": True, "stroke": "black", "strokeWidth": 1.2}
    if hollow:
        look_of = {"filled": False, "fill": "white", "strokeWidth": 2}
    chart: alt.Chart = (
        alt.Chart(best)
        .mark_point(shape="diamond", size=120, clip=True, **look_of)
        .encode(
            x=x,
            y=y,
            color=look.color,
            opacity=look.faded(1),
            tooltip=[*where, tip("loss", ".4f", "loss at the best rate"), *kept],
        )
    )
    return chart
