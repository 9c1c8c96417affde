"""What transfer costs: rules ranked by loss, and regrets and sensitivities over widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.intervals import bars, beyond, reach, with_intervals
from isolab.charts.origins import origins, series
from isolab.charts.panels import Place, panel_columns, small_multiples
from isolab.charts.parts import (
    EDGE_MARK,
    HEIGHT,
    colour,
    duplicates,
    finish,
    padded,
    shown,
    spelled,
    summarized,
    tip,
    title_of,
)

_WIDTH = 400  # pixels of the ranking
_ZERO: dict[str, Any] = {"color": "#666666", "strokeDash": [4, 3], "strokeWidth": 1}


def ranking(
    frame: pl.DataFrame,
    by: Sequence[str] = ("parameterization", "rate_rule"),
    color: str = "rate_rule",
    title: str = "",
) -> alt.LayerChart:
    """Draws each rule's lowest loss with its interval, the lowest at the top.

    A rule whose every rate diverged is a cross at the right edge.

    Args:
        frame: a row per rule at one width, as of :func:`~isolab.analysis.ranking.ranking`: ``by``,
            ``color``, ``width``, ``rate``, ``loss``, ``loss_low``, ``loss_high``, ``note``.
        by: columns that name a rule.

    Raises:
        ValueError: for missing columns, no rows, several widths, or two rows of one rule.
    """
    names = list(dict.fromkeys([*by, color]))
    require_columns(frame, [*names, "width", "rate", "loss", "loss_low", "loss_high", "note"])
    widths = frame["width"].unique().sort().to_list()
    if len(widths) > 1:
        raise ValueError(f"a ranking is of one width, the frame has {widths}: keep one")
    points = spelled(
        with_intervals(frame, [*names, "width", "rate", "note"], ("loss", "loss_low", "loss_high"))
    )
    duplicates(points, names)
    points = points.with_columns(
        pl.concat_str([pl.col(name).cast(pl.String) for name in by], separator="; ").alias("name"),
        pl.col("note").fill_null("").replace("", "none"),
    )
    ranked = points.filter(pl.col("value").is_not_null()).sort("value", "name")
    rest = points.filter(pl.col("value").is_null()).sort(pl.col("lost").not_(), "name")
    order = [*ranked["name"], *rest["name"]]
    texts = [f"{loss:.3f} at {rate:.2g}" for loss, rate in ranked.select("value", "rate").rows()]
    texts += ["every rate diverged" if lost else "no runs at this width" for lost in rest["lost"]]
    said = pl.DataFrame({"name": order, "text": texts})
    bottom, top = reach(ranked)
    pad = 0.04 * (top - bottom)
    x = alt.X("value:Q", title=title_of("final_validation_loss")).scale(
        domain=[bottom - pad, top + pad], nice=False, zero=False
    )
    y = alt.Y("name:N", sort=order, title=None).scale(domain=order)
    y = y.axis(labelLimit=340, ticks=False, domain=False, grid=True)
    hue, pick, faded = colour(points[color], color)
    hue = hue.legend(orient="top", direction="horizontal")
    tips = [*map(tip, names), tip("value", ".4f", "loss at the best rate")]
    tips += [tip("interval", name="loss, 95% interval"), tip("rate", ".4~g", "best rate")]
    tips += [tip("note")]

    def drawn(rows: pl.DataFrame) -> alt.Chart:
        return alt.Chart(rows).encode(y=y, color=hue, opacity=faded(1))

    layers = [
        drawn(bars(ranked, bottom - pad, top + pad))
        .mark_rule(clip=True, strokeWidth=3)
        .encode(x=alt.X("low:Q"), x2="high:Q", opacity=faded(0.5)),
        drawn(ranked).mark_point(filled=True, size=80).encode(x=x, tooltip=tips),
        alt.Chart(said)
        .mark_text(align="left", fontSize=11, color="#333333")
        .encode(y=y, x=alt.value(_WIDTH + 8), text="text:N"),
    ]
    notes = ["Point: mean over seeds at the rule's best rate; bar: 95% interval."]
    notes.append("At the right: the loss, and the rate it is reached at.")
    notes += beyond(ranked, bottom - pad, top + pad)
    if rest["lost"].any():
        notes.append("Cross at the right edge: every rate diverged.")
        layers.append(
            drawn(rest.filter(pl.col("lost")))
            .mark_point(shape="cross", angle=45, filled=True, size=70)
            .encode(x=alt.value(_WIDTH - 8), tooltip=[*map(tip, names), tip("note")])
        )
    heading = title or f"Loss at the best rate, width {widths[0]:g}"
    chart = finish(layers, heading, notes, pick, zoom=False)
    return chart.properties(width=_WIDTH, height=max(20 * len(order), 60))


def regrets(
    frame: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
    title: str = "What a transferred rate costs",
) -> alt.ConcatChart:
    """Draws the loss at the rate transferred from the smallest width, less the best loss there.

    Args:
        frame: a row per group and width, as of :func:`~isolab.analysis.regret.regrets`: ``width``,
            ``regret`` (nats/token; +inf where the transferred rate diverges), ``regret_low``,
            ``regret_high``, ``note``, and the group's columns: ``color``, ``rows``, ``columns``
            and, where there is one, ``origin`` ("reference" or "yours").

    Raises:
        ValueError: for missing columns, no rows, two rows of one group and width, an unknown
            origin, or a width that is not positive.
    """
    what = ("regret", "regret (nats/token)", "the transferred rate diverges")
    return _against_width(frame, rows, columns, color, title, what)


def sensitivities(
    frame: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "factor",
    color: str = "rate_rule",
    title: str = "What a rate off the best one costs",
) -> alt.ConcatChart:
    """Draws how much the loss rises some factors off the best rate, against width.

    Args:
        frame: a row per group, width and factor, as of
            :func:`~isolab.analysis.regret.sensitivities`: ``width``, ``increase`` (nats/token; +inf
            where a side diverges), ``increase_low``, ``increase_high``, ``note``, and the columns
            of :func:`regrets`, ``factor`` among them unless the frame has one factor only.

    Raises:
        ValueError: as :func:`regrets`.
    """
    what = ("increase", "rise of the loss (nats/token)", "a rate this far off diverges")
    return _against_width(frame, rows, columns, color, title, what)


def _against_width(
    frame: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    color: str,
    title: str,
    what: tuple[str, str, str],
) -> alt.ConcatChart:
    name, y_title, lost = what
    panel = panel_columns(rows, columns)
    keys = list(dict.fromkeys([*panel, color, *origins(frame)]))
    require_columns(frame, [*keys, "width", "note"])
    ends = (name, f"{name}_low", f"{name}_high")
    points = with_intervals(frame, [*keys, "width", "note"], ends)
    look = series(spelled(points), color)
    duplicates(look.frame, list(dict.fromkeys([*panel, *look.columns, "width"])))
    points = look.apart(look.frame).with_columns(
        pl.col("note").fill_null("").replace("", "none"),
    )
    x = look.width_axis(points)
    points = points.sort(*keys, "width")
    found, gone = points.filter(pl.col("value").is_not_null()), points.filter("lost")
    gone = gone.with_columns(pl.lit("diverged").alias(EDGE_MARK))
    bottom, top = reach(found, 0.0)
    height = HEIGHT if not panel else 210
    scale = padded(bottom, top, 0 if gone.is_empty() else 1, 0, height)
    low, high = scale.to_dict()["domain"]
    y = alt.Y("value:Q", title=y_title).scale(scale)
    tips = [*map(tip, keys), tip("width", "d"), tip("value", ".4f", y_title)]
    tips += [tip("interval", name="95% interval"), tip("note")]
    zero = pl.DataFrame({"value": [0.0]})

    def draw(place: Place) -> list[alt.Chart]:
        its_x, its_y = place.x(x), place.y(y)

        def drawn(rows: pl.DataFrame, opacity: float = 1) -> alt.Chart:
            hue = {"color": look.color, "opacity": look.faded(opacity)}
            return alt.Chart(rows).encode(x=its_x, **hue)

        layers = [alt.Chart(zero).mark_rule(**_ZERO).encode(y=its_y)]
        layers += [
            drawn(its, 0.5).mark_line(clip=True, strokeWidth=1.5, **dashed).encode(y=its_y)
            for its, dashed, _ in look.parts(place.of(found))
        ]
        bar = drawn(place.of(bars(found, low, high)), 0.55).mark_rule(clip=True, strokeWidth=2)
        layers.append(bar.encode(y=alt.Y("low:Q"), y2="high:Q"))
        layers += [
            drawn(its)
            .mark_point(clip=True, size=60, strokeWidth=2, **hollow)
            .encode(y=its_y, tooltip=tips)
            for its, _, hollow in look.parts(place.of(found))
        ]
        if not place.of(gone).is_empty():
            cross: dict[str, Any] = {"shape": shown(gone[EDGE_MARK]), "y": alt.value(9)}
            mark = drawn(place.of(gone)).mark_point(size=60, strokeWidth=2)
            layers.append(
                mark.encode(**cross, tooltip=[*map(tip, keys), tip("width"), tip("note")])
            )
        return layers

    notes = ["Bar: 95% interval over seeds.", *beyond(found, low, high), *look.note]
    if not gone.is_empty():
        notes.append(f"Cross at the top edge: {lost}.")
    missing = len(points) - len(found) - len(gone)
    if missing:
        reasons = points.filter(pl.col("value").is_null() & ~pl.col("lost"))["note"].unique().sort()
        why = "; ".join(summarized(reasons.to_list(), 1))
        notes.append(f"{missing} not drawn: {why}")
    return small_multiples(points, rows, columns, draw, title, notes, look.pick, height)
