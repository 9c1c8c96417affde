"""What transfer costs: rules ranked by loss, and regrets and sensitivities over widths."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, names_axis, padded, tips, width_axis
from isolab.charts.figure import Chart, Panel, facets, figure
from isolab.charts.frames import EDGE_MARK, reach
from isolab.charts.layers import Plot
from isolab.charts.series import series_of
from isolab.charts.theme import LINE, POINT, summarized, title_of

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
    require_columns(frame, ["width"])
    widths = frame["width"].unique().sort().to_list()
    if len(widths) > 1:
        raise ValueError(f"a ranking is of one width, the frame has {widths}: keep one")
    kept, legend = [*by, "width", "rate", "note"], {"orient": "top", "direction": "horizontal"}
    series = series_of(frame, color, kept=kept, interval="loss", unique=by, legend=legend)
    keys = list(dict.fromkeys([*by, *series.keys]))
    named = [pl.col(n).cast(pl.String) for n in [*by, *(["origin"] if series.both else [])]]
    points = series.points.with_columns(pl.concat_str(named, separator="; ").alias("name"))
    ranked = points.drop_nulls("value").sort("value", "name")
    rest = points.filter(pl.col("value").is_null()).sort(pl.col("lost").not_(), "name")
    order = [*ranked["name"], *rest["name"]]
    texts = [f"{loss:.3f} at {rate:.2g}" for loss, rate in ranked.select("value", "rate").rows()]
    texts += ["every rate diverged" if lost else "no runs at this width" for lost in rest["lost"]]
    bottom, top = reach(ranked)
    pad = 0.04 * (top - bottom)
    x = axis("value", title_of("final_validation_loss"), (bottom - pad, top + pad))
    plot = Plot(x, names_axis("name", order), series)
    of_point = [*keys, ("value", ".4f", "loss at the best rate")]
    of_point += [("interval", "", "loss, 95% interval"), ("rate", ".4~g", "best rate"), "note"]
    layers = plot.intervals(ranked, tips(*of_point), "x", (3, 0.5), 80)
    text = {"type": "text", "align": "left", "fontSize": 11, "color": "#333333"}
    numbers = pl.DataFrame({"name": order, "text": texts})
    layers += plot.draw(numbers, text, None, x=_WIDTH + 8, text="text")
    cross, at = POINT | {"shape": "cross", "angle": 45, "size": 70}, _WIDTH - 8
    note, of_lost = "Cross at the right edge: every rate diverged.", tips(*keys, "note")
    layers += plot.draw(rest.filter("lost"), cross, split=False, note=note, x=at, tooltip=of_lost)
    notes = [
        "Point: mean over seeds at the rule's best rate; bar: 95% interval.",
        "At the right: the loss, and the rate it is reached at.",
    ]
    panel = Panel("", layers, _WIDTH, max(20 * len(order), 60))
    heading = f"Loss at the best rate, width {widths[0]:g}"
    return figure([panel], heading, notes, series, zoom=False)


def regrets(frame: pl.DataFrame, columns: str | None = None) -> Chart:
    """Draws the loss at the rate transferred from the smallest width, less the best loss there.

    Args:
        frame: a row per group and width, as of :func:`~isolab.analysis.transfer.regrets`:
            ``width``, ``regret`` (nats/token; +inf where the transferred rate diverges),
            ``regret_low``, ``regret_high``, ``note``, ``rate_rule`` and ``columns``.
    """
    what = ("regret", "regret (nats/token)", "the transferred rate diverges")
    return _against_width(frame, None, columns, "What a transferred rate costs", what)


def sensitivities(
    frame: pl.DataFrame, rows: str | None = None, columns: str | None = "factor"
) -> Chart:
    """Draws how much the loss rises some factors off the best rate, against width.

    Args:
        frame: a row per group, width and factor, as of
            :func:`~isolab.analysis.transfer.sensitivities`: ``width``, ``increase`` (nats/token;
            +inf where a side diverges), ``increase_low``, ``increase_high``, ``note``,
            ``rate_rule``, ``rows`` and ``columns``, ``factor`` among them unless there is only one.
    """
    what = ("increase", "rise of the loss (nats/token)", "a rate this far off diverges")
    return _against_width(frame, rows, columns, "What a rate off the best one costs", what)


def _against_width(
    frame: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    title: str,
    what: tuple[str, str, str],
) -> Chart:
    name, y_title, if_lost = what
    kept, one = ["width", "note"], ["width"]
    series = series_of(frame, "rate_rule", rows, columns, kept, interval=name, unique=one)
    points = series.moved().sort(*series.keys, "width")
    found, none = points.drop_nulls("value"), points.filter(pl.col("value").is_null())
    gone = none.filter("lost").with_columns(pl.lit("diverged").alias(EDGE_MARK), line=0)
    domain = padded(*reach(found, 0.0), 0 if gone.is_empty() else 1, 0, series.height)
    x, y = width_axis(points["width"], points["at"]), axis("value", y_title, domain)
    plot = Plot(x, y, series)
    where, interval = [*series.keys, ("width", "d")], ("interval", "", "95% interval")
    of_point = tips(*where, ("value", ".4f", y_title), interval, "note")
    layers = plot.draw(found, LINE | {"strokeWidth": 1.5}, 0.5)
    layers += plot.rules([0.0], strokeWidth=1) + plot.intervals(found, of_point)
    note, of_gone = f"Cross at the top edge: {if_lost}.", tips(*series.keys, "width", "note")
    layers += plot.top_edge(gone, of_gone, note, size=60)
    missing = none.filter(~pl.col("lost"))
    reasons = "; ".join(summarized(missing["note"].unique().sort().to_list(), 1))
    left_out = f"{len(missing)} not drawn: {reasons}" if reasons else ""
    return facets(series, layers, title, ["Bar: 95% interval over seeds.", left_out])
