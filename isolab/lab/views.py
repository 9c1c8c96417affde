"""The lab's two charts: plain Vega-Lite, made in a millisecond, so that they follow a slider.

Losses lie on a log axis, so that the first steps and the last differences are both seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from isolab.charts import channels, theme
from isolab.charts.figure import specification
from isolab.charts.layers import Layer, Plot
from isolab.charts.theme import Spec
from isolab.lab.live import RunState
from isolab.lab.stored import Cell, Nearest, StoredLine
from isolab.lab.words import choice, plural
from isolab.training.config import RunConfig

TOTAL = (412, 350)
"""Width and height of a chart with its axes, pixels."""
PLOT = (330, 230)
"""And without them, in a picture of both charts."""
ZERO = -23.0
"""Where eps = 0 is drawn on a log10 axis; just right of it whatever is too small for the axis."""
RUN_COLOURS = [colour for colour in theme.OTHER_COLOURS if colour != "#000000"]
GREY = "#555555"
_LAYERED = "#E69F00"  # of a line with an eps for each layer
_LEGEND = {
    "orient": "bottom",
    "titleOrient": "left",
    "direction": "horizontal",
    "symbolType": "stroke",
    "symbolStrokeWidth": 2.5,
    "symbolSize": 300,
    "columnPadding": 14,
}
_AXIS = {"labelOverlap": True, "grid": True}
_SOLID = [1, 0]
_DASHES = [[7, 3], [2, 2], [8, 3, 2, 3], [4, 2], [12, 3]]  # of the other lines
_CEILING = 1.8  # a rate chart ends at so many times its lowest loss, losses above it at its edge
_EDGE = 9  # pixels from the top at which diverged runs are marked
_LABEL = 13  # pixels between two labels
_LEFT, _ROOM = 0.015, 0.18  # of the axis of steps: for a dot at step 0, for labels at the ends


def run_colour(number: int) -> str:
    """Returns the colour of a run of this session, by its number from 1 on."""
    return RUN_COLOURS[(number - 1) % len(RUN_COLOURS)]


def curve_view(asked: str, cell: Cell | None, runs: Sequence[RunState], steps: int) -> Spec:
    """Returns the chart of losses while training.

    Args:
        asked: the setting, in words.
        cell: the nearest stored runs: dashed.
        runs: of this session; a live one is thick, its training loss thin.
        steps: of the setting.
    """
    curves: list[tuple[Any, ...]] = []  # steps, losses, whether diverged, name, colour, width
    if cell is not None:
        curves.append((*cell.curve(), not cell.finite, "stored", GREY, 2.0))
    for run in runs:
        name = f"{run.number}{' diverged' if run.diverged else ' live' if run.live else ''}"
        drawn = run.curve_step, run.curve_validation_loss, run.diverged
        curves.append((*drawn, name, run_colour(run.number), 3.5 if run.live else 2.0))
    training = [run for run in runs if run.live]
    last = max([steps, *(step for at, *_ in curves for step in at)])
    starts = [next(filter(math.isfinite, losses), 1.0) for _, losses, *_ in curves]
    finite = [loss for _, losses, *_ in curves for loss in losses if math.isfinite(loss)]
    finite += [0.8 * max(starts)] if training else []  # room below a first point
    y = _loss_axis("loss (nats/token)", finite, max(starts) * 1.15 if starts else None)
    ticks: Spec = {"values": channels.number_ticks(0, max(last, 4)), "format": ",d"} | _AXIS
    plot = Plot(channels.axis("step", "step", [-_LEFT * last, last * (1 + _ROOM)], **ticks), y)

    layers, named, lost = list[Layer](), list[Spec](), list[Spec]()
    for run in training:
        thin = {"strokeWidth": 1, "opacity": 0.7, "color": run_colour(run.number)}
        layers += plot.draw(
            _points(run.curve_step[1:], run.curve_train_loss[1:]), theme.LINE | thin
        )
    for at, losses, diverged, name, colour, width in curves:
        points, own = _points(at, losses), {"name": name, "text": name, "colour": colour}
        mark = theme.LINE | {"strokeWidth": width, "color": colour}
        mark |= {"strokeDash": [6, 4]} if colour == GREY else {}
        mark |= {"point": {"color": colour, "size": 22 if colour == GREY else 6 * width}}
        layers += plot.draw(points, mark, tooltip=channels.tips(("step", ",d"), ("loss", ".4f")))
        if diverged:
            beyond = [s for s, loss in zip(at, losses, strict=True) if not loss <= _ends(y)[1]]
            lost.append({"step": [*beyond, *at[-1:], 0][0]} | own)
        elif points:
            named.append(points[-1] | own)
    layers += _at_edge(plot, lost, _own("colour")) + _at_ends(plot, named)

    note = "nothing stored" if cell is None else "dashed: nearest stored, measured at its dots"
    note += ", thin: training loss" if training else ""
    about = [f"Asked for: {asked}."]
    if cell is not None:
        loss = f"{cell.mean:.3f}" if math.isfinite(cell.mean) else "diverged"
        about.append(f"Stored run, final loss {loss}.")
    about += [f"Run {run.number}: {run.state}, {run.outcome}." for run in runs]
    return _chart("Loss while training", [asked, note], plot, layers, about)


def summary_view(
    config: RunConfig, nearest: Nearest, runs: Sequence[RunState], x: str, line: str
) -> Spec:
    """Returns the chart of final losses against the rate, or eps.

    Args:
        config: the setting, whose rate or eps is marked.
        nearest: the stored line, bold, with those to compare it to.
        runs: of this session; those that have ended are numbered points.
        x: "learning_rate" or "eps".
        line: what tells lines apart, as in :class:`~isolab.chapters.chapter.Question`.
    """
    bold = nearest.line
    lines = [*([bold] if bold else []), *nearest.others]
    lines.sort(key=lambda its: its.value if line == "width" else its.name)
    rows = [_rows(its, x) for its in lines]
    ended = [run for run in runs if not run.live and run.curve_validation_loss]
    now, dots = _asked(config, x), [_dot(run, x) for run in ended]
    places = [row["x"] for row in itertools.chain([now], dots, *rows)]
    places = [place for place in places if place is not None] or [-8.0, -2.0]
    losses = [loss for its in lines for cell in its.cells for loss in cell.finite]
    losses += [dot["loss"] for dot in dots if not dot["diverged"]]
    limit = _CEILING * min(losses) if losses and x == "learning_rate" else None
    plot = Plot(_power_axis(x, places), _loss_axis("final loss (nats/token)", losses, limit))

    others, heading = itertools.cycle(_DASHES), {"title": "width" if line == "width" else None}
    legend = _LEGEND | heading | {"columns": 2 if line == "variant" else 4}
    looks: Spec = {
        "color": _line_colours(lines, line),
        "strokeDash": {its.name: _SOLID if its is bold else next(others) for its in lines},
    }
    series: Spec = {name: channels.scaled("line", its, **legend) for name, its in looks.items()}
    layers = list[Layer]()
    for its, own in zip(lines, rows, strict=True):
        layers += _stored_line(plot, own, theme.words(x), its is bold, series)
    if now["x"] is not None:  # an upright line at the setting, its value above the frame
        rule = {"type": "rule", "strokeWidth": 1.5, "strokeDash": [3, 2], "color": "#000000"}
        text = theme.TEXT | {"color": "#000000"}
        layers += plot.draw([now], rule, y=None) + plot.draw([now], text, y=-8, text="value")
    layers += _numbered(plot, dots)

    note, kind = "nothing stored for this choice", "width " if line == "width" else ""
    if bold is not None:
        seeds = plural(max(len(cell.losses) for cell in bold.cells), "seed")
        note = f"bold: {kind}{bold.name}, {seeds}; band: all seeds"
    subtitle = [note, "upright line: your setting" + ("; numbers: your runs" if ended else "")]
    about = [f"Marked: {theme.words(x)} {now['value']}."]
    for its in lines:
        points = plural(len(its.cells), "point")
        about.append(f"{'Bold' if its is bold else 'Faint'} line {kind}{its.name}: {points}.")
    told = zip(ended, dots, strict=True)
    about += [f"Run {run.number}: {dot['value']}, {run.outcome}." for run, dot in told]
    return _chart(f"Final loss against {theme.words(x)}", subtitle, plot, layers, about)


def picture(left: Spec, right: Spec, heading: str) -> Spec:
    """Returns both charts side by side, for where no kernel is."""
    size = {"width": PLOT[0], "height": PLOT[1]}
    panels = [{**spec, **size} for spec in (left, right)]
    for panel in panels:
        del panel["autosize"]
    # each panel has a scale of its own for what both call x, loss and line
    apart = dict.fromkeys(["color", "strokeDash"], "independent")
    return {"hconcat": panels, "title": heading, "spacing": 28, "resolve": {"scale": apart}}


def _chart(
    title: str, subtitle: list[str], plot: Plot, layers: list[Layer], about: list[str]
) -> Spec:
    nothing = plot.draw([{}], {"type": "point", "opacity": 0})  # shows the axes
    fit: Spec = {"width": TOTAL[0], "height": TOTAL[1]}
    fit |= {"autosize": {"type": "fit", "contains": "padding"}}
    description = " ".join([f"{title}.", *about])
    return specification(layers or nothing, title, subtitle, description=description, **fit)


def _points(steps: Iterable[int], losses: Iterable[float]) -> list[Spec]:
    """Returns the points of a curve whose losses are finite."""
    return [
        {"step": step, "loss": round(loss, 5)}
        for step, loss in zip(steps, losses, strict=True)
        if math.isfinite(loss)
    ]


def _rows(line: StoredLine, x: str) -> list[Spec]:
    """Returns a row per cell of a line, with a loss unless a seed diverged: there parts end."""
    part, rows = 0, list[Spec]()
    for cell in line.cells:
        value, seeds = choice(x, cell.setting[x]), len(cell.losses)
        row = {"line": line.name, "x": _along(cell.setting[x], x), "value": value, "seeds": seeds}
        if cell.diverged:
            part += 1
            told = f"{cell.diverged} of {plural(seeds, 'seed')} diverged"
        else:
            told = f"loss {cell.mean:.3f}, above the axis"
            numbers = {"loss": cell.mean, "low": min(cell.finite), "high": max(cell.finite)}
            row |= {name: round(loss, 5) for name, loss in numbers.items()}
        rows.append(row | {"part": part, "text": f"{line.name}, {value}: {told}"})
    return rows


def _stored_line(plot: Plot, rows: list[Spec], x: str, bold: bool, series: Spec) -> list[Layer]:
    """Returns a line through means, and edge marks; of a bold one also the band and dots."""
    layers, color = list[Layer](), series["color"]
    dots = [row for row in rows if "loss" in row and row["x"] is not None]
    flat = [row | {"x": end} for row in rows if row["x"] is None for end in _ends(plot.x)]
    means = dots + [row for row in flat if "loss" in row]
    band = [row for row in means if row["seeds"] > 1]
    if bold and len(band) > 1:
        area = theme.BAND | {"opacity": 0.18}
        layers += plot.draw(band, area, y="low", y2="high", detail="part", color=color)
    mark = theme.LINE | {"strokeWidth": 3.5 if bold else 1.6, "opacity": 1 if bold else 0.55}
    layers += plot.draw(means, mark, detail="part", **series)
    if bold:
        numbers = [(name, ".4f") for name in ("loss", "low", "high")]
        tooltip = channels.tips("line", ("value", "", x), *numbers, "seeds")
        layers += plot.draw(
            dots, theme.POINT | {"size": 40, "opacity": 1}, color=color, tooltip=tooltip
        )
    lost = [row for row in rows if "loss" not in row and row["x"] is not None]
    above = [row for row in dots if row["loss"] > _ends(plot.y)[1]]
    opacity = 1 if bold else 0.35
    triangle = {"shape": "triangle-up", "size": 50, "strokeWidth": 2}
    layers += _at_edge(plot, lost, color, opacity=opacity)
    return layers + _at_edge(plot, above, color, opacity=opacity, **triangle)


def _dot(run: RunState, x: str) -> Spec:
    colour, name = run_colour(run.number), str(run.number)
    fill, stroke = ("white", colour) if run.state == "stopped" else (colour, "white")
    row = {"name": name, "text": name, "colour": colour, "fill": fill, "stroke": stroke}
    loss = run.curve_validation_loss[-1]
    return row | _asked(run.config, x) | {"loss": loss, "diverged": run.diverged}


def _numbered(plot: Plot, dots: list[Spec]) -> list[Layer]:
    """Returns a numbered dot for each run that has ended; hollow for one that was stopped."""
    dots = [dot | {"x": _ends(plot.x)[1]} if dot["x"] is None else dot for dot in dots]
    lost = [dot | {"loss": None} for dot in dots if dot["diverged"]]
    top = _ends(plot.y)[1]
    shown = [dot | {"loss": min(dot["loss"], top)} for dot in dots if not dot["diverged"]]
    mark = {"type": "circle", "size": 90, "opacity": 1, "strokeWidth": 2}
    tooltip = channels.tips(("name", "", "run"), ("value", "", "rate"), ("loss", ".4f"))
    own: Spec = {"color": _own("fill"), "stroke": _own("stroke"), "tooltip": tooltip}
    drawn = plot.draw(shown, mark, **own) if shown else []
    return drawn + _at_edge(plot, lost, _own("colour")) + _at_ends(plot, shown)


def _at_edge(plot: Plot, rows: list[Spec], color: Spec, **look: Any) -> list[Layer]:
    """Returns crosses of diverged runs at the top edge, or what else marks what lies above it."""
    if not rows:
        return []
    places = [row[plot.x["field"]] for row in rows]  # at one place each lies below the last
    lines = [places[:i].count(place) for i, place in enumerate(places)]
    rows = [row | {"y": _EDGE + _LABEL * at} for row, at in zip(rows, lines, strict=True)]
    cross = {"shape": theme.CROSS, "size": 70, "strokeWidth": 2.5, "opacity": 1}
    point = {"type": "point"} | cross | look
    at: Spec = {"y": channels.pixels("y"), "color": color}
    layers = plot.draw(rows, point, **at, tooltip=channels.tips(("text", "", "run")))
    name = theme.TEXT | {"align": "left", "dx": 9, "fontSize": 11}
    return layers + (plot.draw(rows, name, **at, text="name") if "name" in rows[0] else [])


def _at_ends(plot: Plot, rows: list[Spec]) -> list[Layer]:
    """Returns names to the right of points, lifted where they would cover each other."""
    (left, right), (low, high) = _ends(plot.x), _ends(plot.y)
    octave, wide = PLOT[1] / math.log(high / low), PLOT[0] / (right - left)
    rows = sorted(rows, key=lambda row: row["loss"])
    heights = [math.log(min(max(row["loss"], low), high) / low) * octave for row in rows]
    places = [(row[plot.x["field"]] * wide, at) for row, at in zip(rows, heights, strict=True)]
    layers = list[Layer]()
    for row, height in zip(rows, channels.spread(places, 0.12 * PLOT[0], _LABEL), strict=True):
        lifted = row | {"loss": low * math.exp(height / octave)}
        layers += plot.labels([lifted], "name", align="left", dx=7, color=row["colour"])
    return layers


def _own(field: str) -> Spec:
    """Returns a channel of colours that the rows hold."""
    return {"field": field, "type": "nominal", "scale": None}


def _power_axis(x: str, places: Sequence[float]) -> Spec:
    """Returns the axis of powers of a rate or an eps, with at most about ten ticks."""
    left, right = min(places), max(places)
    pad = max(0.04 * (right - left), 0.5)
    ticks: list[float] = [ZERO] if left <= ZERO else []
    ticks += channels.power_ticks(math.ceil(max(left, -20)), math.floor(right), 11)
    titles = {"learning_rate": "learning rate, as a power of 2", "eps": "eps, as a power of 10"}
    named = f"datum.value == {ZERO} ? '0, tiny' : format(datum.value, 'd')"
    style: Spec = {"values": ticks, "labelExpr": named} | _AXIS
    return channels.axis("x", titles[x], [left - pad, right + pad], **style)


def _loss_axis(title: str, losses: Sequence[float], limit: float | None = None) -> Spec:
    """Returns the log axis of losses, from a little below them to a little above, or the limit."""
    low, high = 2.0, 6.0
    if losses:
        least = max(min(losses), 1e-6)
        most = max(min(max(losses), limit or math.inf), least * 1.01)
        span = math.log(most / least)
        low, high = least * math.exp(-0.06 * span), most * math.exp(0.1 * span)
    top = high * (low / high) ** 0.03  # no tick at the very top, where a title begins
    ticks: Spec = {"values": channels.number_ticks(low, top), "format": "~g"} | _AXIS
    return channels.axis("loss", title, [low, high], 10, **ticks)


def _ends(channel: Spec) -> tuple[float, float]:
    low, high = channel["scale"]["domain"]
    return low, high


def _along(value: float | None, x: str) -> float | None:
    """Returns where a rate or an eps lies on the axis of powers."""
    if value is None:
        return None
    if x == "eps":
        return max(math.log10(value), ZERO + 0.5) if value > 0 else ZERO
    return math.log2(value)


def _asked(config: RunConfig, x: str) -> Spec:
    """Returns where a setting lies on the axis of powers, if it does, and its value in words."""
    value = config.row()[x]
    return {"x": _along(value, x), "value": "no eps" if value is None else choice(x, value)}


def _line_colours(lines: Sequence[StoredLine], kind: str) -> dict[str, str]:
    """Returns the colour of each line: by its optimizer, or from dark to light with the width."""
    if kind == "width":
        step = (len(theme.VIRIDIS) - 1) / max(len(lines) - 1, 1)
        return {its.name: theme.VIRIDIS[round(i * step)] for i, its in enumerate(lines)}
    known, other = theme.OPTIMIZER_COLOURS, theme.OTHER_COLOURS[-1]
    layered = choice("eps_rule", "per_layer")
    return {
        its.name: _LAYERED if its.name.endswith(layered) else known.get(its.value, other)
        for its in lines
    }
