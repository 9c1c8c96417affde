"""What transfer costs: rules ranked by loss, and regrets and sensitivities over widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts import frames
from isolab.charts.channels import axis, names_axis, padded, tips, width_axis
from isolab.charts.figure import Chart, Panel, facets, figure, panel_columns, panel_height
from isolab.charts.layers import Layer, Plot, style_of
from isolab.charts.theme import LINE, POINT, spelled, summarized, title_of

_WIDTH = 400  # pixels of the ranking


def ranking(
    frame: pl.DataFrame,
    by: Sequence[str] = ("parameterization", "rate_rule"),
    color: str = "rate_rule",
) -> Chart:
    """Draws each rule's lowest loss with its interval, the lowest at the top.

    A rule whose every rate diverged is a cross at the right edge.

    Args:
        frame: a row per rule at one width, as of :func:`~isolab.analysis.ranking.ranking`: ``by``,
            ``color``, ``width``, ``rate``, ``loss``, ``loss_low``, ``loss_high`` and ``note``.
        by: columns that name a rule.

    Raises:
        ValueError: for several widths.
    """
    keys = frames.keys_of(frame, *by, color)
    require_columns(frame, [*keys, "width", "rate", "loss", "loss_low", "loss_high", "note"])
    widths = frame["width"].unique().sort().to_list()
    if len(widths) > 1:
        raise ValueError(f"a ranking is of one width, the frame has {widths}: keep one")
    points = spelled(frames.with_intervals(frame, [*keys, "width", "rate", "note"], "loss"))
    style = style_of(points, color, orient="top", direction="horizontal")
    frames.duplicates(style.frame, keys)
    named = list(dict.fromkeys([*by, *(["origin"] if style.both else [])]))
    whole = pl.concat_str([pl.col(n).cast(pl.String) for n in named], separator="; ")
    points = style.frame.with_columns(whole.alias("name"))
    ranked = points.filter(pl.col("value").is_not_null()).sort("value", "name")
    rest = points.filter(pl.col("value").is_null()).sort(pl.col("lost").not_(), "name")
    order = [*ranked["name"], *rest["name"]]
    texts = [f"{loss:.3f} at {rate:.2g}" for loss, rate in ranked.select("value", "rate").rows()]
    texts += ["every rate diverged" if lost else "no runs at this width" for lost in rest["lost"]]
    bottom, top = frames.reach(ranked)
    pad = 0.04 * (top - bottom)
    x = axis("value", title_of("final_validation_loss"), (bottom - pad, top + pad))
    plot = Plot(x, names_axis("name", order), style)
    of_point = [*keys, ("value", ".4f", "loss at the best rate")]
    of_point += [("interval", "", "loss, 95% interval"), ("rate", ".4~g", "best rate"), "note"]
    layers, cut = plot.intervals(ranked, tips(*of_point), "x", (3, 0.5), 80)
    text = {"type": "text", "align": "left", "fontSize": 11, "color": "#333333"}
    numbers = pl.DataFrame({"name": order, "text": texts})
    layers += plot.draw(numbers, text, None, x=_WIDTH + 8, text="text")
    notes = ["Point: mean over seeds at the rule's best rate; bar: 95% interval."]
    notes += ["At the right: the loss, and the rate it is reached at.", *style.note, *cut]
    lost = rest.filter(pl.col("lost"))
    if not lost.is_empty():
        notes.append("Cross at the right edge: every rate diverged.")
        cross = POINT | {"shape": "cross", "angle": 45, "size": 70}
        layers += plot.draw(lost, cross, x=_WIDTH - 8, split=False, tooltip=tips(*keys, "note"))
    panel = Panel("", layers, _WIDTH, max(20 * len(order), 60))
    heading = f"Loss at the best rate, width {widths[0]:g}"
    return figure([panel], heading, notes, style, zoom=False)


def regrets(
    frame: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = None,
    color: str = "rate_rule",
) -> Chart:
    """Draws the loss at the rate transferred from the smallest width, less the best loss there.

    Args:
        frame: a row per group and width, as of :func:`~isolab.analysis.transfer.regrets`:
            ``width``, ``regret`` (nats/token; +inf where the transferred rate diverges),
            ``regret_low``, ``regret_high``, ``note``, ``color``, ``rows`` and ``columns``.
    """
    what = ("regret", "regret (nats/token)", "the transferred rate diverges")
    return _against_width(frame, rows, columns, color, "What a transferred rate costs", what)


def sensitivities(
    frame: pl.DataFrame,
    rows: str | None = None,
    columns: str | None = "factor",
    color: str = "rate_rule",
) -> Chart:
    """Draws how much the loss rises some factors off the best rate, against width.

    Args:
        frame: a row per group, width and factor, as of
            :func:`~isolab.analysis.transfer.sensitivities`: ``width``, ``increase`` (nats/token;
            +inf where a side diverges), ``increase_low``, ``increase_high``, ``note``, ``color``,
            ``rows`` and ``columns``, ``factor`` among them unless the frame has only one.
    """
    what = ("increase", "rise of the loss (nats/token)", "a rate this far off diverges")
    return _against_width(frame, rows, columns, color, "What a rate off the best one costs", what)


def _against_width(
    frame: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    color: str,
    title: str,
    what: tuple[str, str, str],
) -> Chart:
    name, y_title, if_lost = what
    panel = panel_columns(rows, columns)
    keys = frames.keys_of(frame, *panel, color)
    require_columns(frame, [*keys, "width", "note"])
    style = style_of(spelled(frames.with_intervals(frame, [*keys, "width", "note"], name)), color)
    frames.duplicates(style.frame, style.groups(panel, "width"))
    points = style.apart(style.frame).sort(*keys, "width")
    found, gone = points.filter(pl.col("value").is_not_null()), points.filter("lost")
    gone = gone.with_columns(pl.lit("diverged").alias(frames.EDGE_MARK), pl.lit(0).alias("line"))
    height = panel_height(points, panel)
    domain = padded(*frames.reach(found, 0.0), 0 if gone.is_empty() else 1, 0, height)
    plot = Plot(width_axis(points["width"], points["at"]), axis("value", y_title, domain), style)
    of_point = [*keys, ("width", "d"), ("value", ".4f", y_title)]
    of_point += [("interval", "", "95% interval"), "note"]
    layers: list[Layer] = plot.draw(found, LINE | {"strokeWidth": 1.5}, 0.5)
    layers += plot.rules([0.0], strokeWidth=1)
    intervals, cut = plot.intervals(found, tips(*of_point))
    layers += intervals + plot.top_edge(gone, tips(*keys, "width", "note"), size=60)
    notes: list[Any] = ["Bar: 95% interval over seeds.", *cut, *style.note]
    if not gone.is_empty():
        notes.append(f"Cross at the top edge: {if_lost}.")
    missing = points.filter(pl.col("value").is_null() & ~pl.col("lost"))
    if not missing.is_empty():
        reasons = missing["note"].unique().sort().to_list()
        notes.append(f"{len(missing)} not drawn: {'; '.join(summarized(reasons, 1))}")
    return facets(points, layers, title, notes, style, rows, columns, height)
