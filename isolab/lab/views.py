"""The lab's two charts: plain Vega-Lite, made in a millisecond, so that they follow a slider.

Losses lie on a log axis, so that the first steps and the last differences are both seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from isolab.charts.channels import scaled, tips
from isolab.charts.figure import specification
from isolab.charts.layers import Layer, Plot
from isolab.charts.theme import (
    BAND,
    LINE,
    OPTIMIZER_COLOURS,
    OTHER_COLOURS,
    POINT,
    TEXT,
    VIRIDIS,
    Spec,
    words,
)
from isolab.lab.live import RunState
from isolab.lab.marks import (
    PLOT,
    End,
    along,
    curve_points,
    edge_marks,
    end_labels,
    ends_of,
    loss_axis,
    power_axis,
    step_axis,
)
from isolab.lab.stored import Cell, Nearest, StoredLine
from isolab.lab.words import choice, plural
from isolab.training.config import RunConfig

TOTAL = (412, 350)
"""Width and height of a chart with its axes, pixels."""
RUN_COLOURS = [colour for colour in OTHER_COLOURS if colour != "#000000"]
GREY = "#555555"
_VARIANTS = {
    "Adam": OPTIMIZER_COLOURS["adam"],
    "Adam, eps per layer": "#E69F00",
    "Adam-atan2": OPTIMIZER_COLOURS["adam_atan2"],
}
_LEGEND = {
    "orient": "bottom",
    "direction": "horizontal",
    "symbolType": "stroke",
    "symbolStrokeWidth": 2.5,
    "symbolSize": 300,
    "columnPadding": 14,
}
_SOLID = [1, 0]
_DASHES = [[7, 3], [2, 2], [8, 3, 2, 3], [4, 2], [12, 3]]  # of the other lines
_CEILING = 1.8  # a rate chart ends at so many times its lowest loss, losses above it at its edge


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
    curves = [cell.curve()] if cell is not None else []
    curves += [(run.curve_step, list(run.curve_validation_loss)) for run in runs]
    last = max([steps, *(step for at, _ in curves for step in at)])
    starts = [next((v for v in losses if math.isfinite(v)), 1.0) for _, losses in curves]
    finite = [v for _, losses in curves for v in losses if math.isfinite(v)]
    room = [0.8 * max(starts)] if any(run.live for run in runs) else []  # below a first point
    y = loss_axis("loss (nats/token)", finite + room, max(starts) * 1.15 if starts else None)
    plot = Plot(step_axis(last), y)
    layers: list[Layer] = []
    ends: list[End] = []
    if cell is not None:
        points = curve_points(*curves[0])
        layers += _curve(plot, points, GREY, 2, 22, strokeDash=[6, 4])
        if not cell.finite:
            layers += edge_marks(plot, [(points[-1]["step"] if points else 0, "stored")], GREY)
        elif points:
            ends.append(("stored", points[-1]["step"], points[-1]["loss"], GREY))
    for run in runs:
        at, losses, colour = run.curve_step, run.curve_validation_loss, run_colour(run.number)
        points = curve_points(at, losses)
        if run.live:
            train = [p for p in curve_points(at, run.curve_train_loss) if p["step"] > 0]
            thin = {"strokeWidth": 1, "opacity": 0.7, "color": colour}
            layers += plot.draw(train, LINE | thin)
        width = 3.5 if run.live else 2
        layers += _curve(plot, points, colour, width, 6 * width)
        if run.diverged:
            top = ends_of(y)[1]
            bad = [s for s, loss in zip(at, losses, strict=True) if not loss <= top]
            first = [*bad, *at[-1:], 0][0]
            layers += edge_marks(plot, [(first, f"{run.number} diverged")], colour)
        elif points:
            name = f"{run.number} live" if run.live else str(run.number)
            ends.append((name, points[-1]["step"], points[-1]["loss"], colour))
    layers += end_labels(plot, ends)
    note = "nothing stored" if cell is None else "dashed: nearest stored, measured at its dots"
    note += ", thin: training loss" if any(run.live for run in runs) else ""
    about = [f"Asked for: {asked}."]
    if cell is not None:
        loss = f"{cell.mean:.3f}" if math.isfinite(cell.mean) else "diverged"
        about.append(f"Stored run, final loss {loss}.")
    about += [f"Run {run.number}: {run.state}, {run.outcome}." for run in runs]
    return _chart("Loss while training", [asked, note], plot, layers, about)


def summary_view(
    config: RunConfig, look: Nearest, runs: Sequence[RunState], x: str, line: str
) -> Spec:
    """Returns the chart of final losses against the rate, or eps.

    Args:
        config: the setting, whose rate or eps is marked.
        look: the stored line, bold, with those beside it.
        runs: of this session; those that have ended are numbered points.
        x: "learning_rate" or "eps".
        line: what tells lines apart, as in :class:`~isolab.lab.questions.Question`.
    """
    lines = [*([look.line] if look.line else []), *look.others]
    lines = sorted(
        lines, key=lambda its: (float(its.value), "") if line == "width" else (0, its.name)
    )
    cells = [cell for its in lines for cell in its.cells]
    ended = [run for run in runs if not run.live and run.curve_validation_loss]
    now = along(_x_of(config, x), x)
    places = [along(cell.setting[x], x) for cell in cells]
    places += [*(along(_x_of(run.config, x), x) for run in ended), now]
    losses = [loss for cell in cells for loss in cell.finite]
    losses += [run.curve_validation_loss[-1] for run in ended if not run.diverged]
    limit = _CEILING * min(losses) if losses and x == "learning_rate" else None
    y = loss_axis("final loss (nats/token)", losses, limit)
    known = [place for place in places if place is not None] or [-8.0, -2.0]
    plot = Plot(power_axis(x, known), y)

    colours = _line_colours(lines, line)
    others = itertools.cycle(_DASHES)
    dashes = {its.name: _SOLID if its is look.line else next(others) for its in lines}
    heading = {"title": "width" if line == "width" else None, "titleOrient": "left"}
    legend = _LEGEND | heading | {"columns": 2 if line == "variant" else 4}
    looks: Spec = {"color": colours, "strokeDash": dashes}
    series = {name: scaled("line", its, **legend) for name, its in looks.items()}
    layers: list[Layer] = []
    for its in lines:
        layers += _stored_line(plot, its, x, its is look.line, colours[its.name], series)
    layers += _marked(plot, now, _x_text(config, x))
    layers += _numbered(plot, ended, x)
    note, titled = "nothing stored for this choice", {its.name: _titled(its, line) for its in lines}
    if look.line is not None:
        seeds = plural(max(len(cell.losses) for cell in look.line.cells), "seed")
        note = f"bold: {titled[look.line.name]}, {seeds}; band: all seeds"
    subtitle = [note, "upright line: your setting" + ("; numbers: your runs" if ended else "")]
    about = [f"Marked: {words(x)} {_x_text(config, x)}."]
    about += [
        f"{'Bold' if its is look.line else 'Faint'} line {titled[its.name]}:"
        f" {plural(len(its.cells), 'point')}."
        for its in lines
    ]
    about += [f"Run {run.number}: {_x_text(run.config, x)}, {run.outcome}." for run in ended]
    return _chart(f"Final loss against {words(x)}", subtitle, plot, layers, about)


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


def _curve(
    plot: Plot, points: list[Spec], colour: str, width: float, dot: float, **more: object
) -> list[Layer]:
    look = {"strokeWidth": width, "color": colour, "point": {"color": colour, "size": dot}}
    return plot.draw(points, LINE | look | more, tooltip=tips(("step", ",d"), ("loss", ".4f")))


def _stored_line(
    plot: Plot, line: StoredLine, x: str, bold: bool, colour: str, series: Spec
) -> list[Layer]:
    """Returns a line's means in parts between diverged ones, its band, dots and edge marks."""
    part, rows = 0, list[Spec]()
    for cell in line.cells:
        if cell.diverged:
            part += 1
            continue
        place, value = along(cell.setting[x], x), choice(x, cell.setting[x])
        losses = {"loss": cell.mean, "low": min(cell.finite), "high": max(cell.finite)}
        row = {"line": line.name, "part": part, "seeds": len(cell.losses), "value": value}
        row |= {name: round(loss, 5) for name, loss in losses.items()}
        rows += [row | {"x": at} for at in (ends_of(plot.x) if place is None else [place])]
    band = [row for row in rows if row["seeds"] > 1]
    layers = []
    if bold and len(band) > 1:
        area = BAND | {"opacity": 0.18, "color": colour}
        layers += plot.draw(band, area, y="low", y2="high", detail="part")
    mark = LINE | {"strokeWidth": 3.5 if bold else 1.6, "opacity": 1 if bold else 0.55}
    layers += plot.draw(rows, mark, detail="part", **series)
    if bold and line.cells[0].setting[x] is not None:
        dots = POINT | {"size": 40, "opacity": 1}
        numbers = [(name, ".4f") for name in ("loss", "low", "high")]
        entries = tips("line", ("value", "", words(x)), *numbers, "seeds")
        layers += plot.draw(rows, dots, color=series["color"], tooltip=entries)
    return layers + _edges(plot, line, x, colour, 1.0 if bold else 0.35)


def _edges(plot: Plot, line: StoredLine, x: str, colour: str, opacity: float) -> list[Layer]:
    """Returns marks at the top edge: runs that diverged, or lie above the axis."""
    lost, above, top = [], [], ends_of(plot.y)[1]
    for cell in line.cells:
        place = along(cell.setting[x], x)
        named = f"{line.name}, {choice(x, cell.setting[x])}"
        if place is not None and cell.diverged:
            seeds = plural(len(cell.losses), "seed")
            lost.append((place, f"{named}: {cell.diverged} of {seeds} diverged"))
        elif place is not None and cell.mean > top:
            above.append((place, f"{named}: loss {cell.mean:.3f}, above the axis"))
    layers = edge_marks(plot, lost, colour, opacity, named=False)
    return layers + edge_marks(plot, above, colour, opacity, above=True, named=False)


def _marked(plot: Plot, now: float | None, text: str) -> list[Layer]:
    """Returns an upright line at the setting, with its value above the frame."""
    if now is None:
        return []
    rows, black = [{"x": now, "value": text}], {"color": "#000000"}
    rule = {"type": "rule", "strokeWidth": 1.5, "strokeDash": [3, 2]} | black
    return plot.draw(rows, rule, y=None) + plot.draw(rows, TEXT | black, y=-8, text="value")


def _numbered(plot: Plot, runs: Sequence[RunState], x: str) -> list[Layer]:
    """Returns a numbered dot for each run that has ended; hollow for one that was stopped."""
    layers: list[Layer] = []
    ends: list[End] = []
    right, top = ends_of(plot.x)[1], ends_of(plot.y)[1]
    for run in runs:
        at = along(_x_of(run.config, x), x)
        place, name = right if at is None else at, str(run.number)
        if run.diverged:
            layers += edge_marks(plot, [(place, name)], run_colour(run.number))
            continue
        colour = run_colour(run.number)
        stroke, fill = (colour, "white") if run.state == "stopped" else ("white", colour)
        dot = {"type": "circle", "size": 90, "opacity": 1, "strokeWidth": 2}
        row: Spec = {"x": place, "loss": min(run.curve_validation_loss[-1], top), "run": name}
        row["rate"] = _x_text(run.config, x)
        entries = tips("run", "rate", ("loss", ".4f"))
        layers += plot.draw([row], dot | {"stroke": stroke, "color": fill}, tooltip=entries)
        ends.append((name, place, row["loss"], run_colour(run.number)))
    return [*layers, *end_labels(plot, ends)]


def _x_of(config: RunConfig, x: str) -> float | None:
    return config.learning_rate if x == "learning_rate" else config.hyperparameters.get("eps")


def _x_text(config: RunConfig, x: str) -> str:
    value = _x_of(config, x)
    return "no eps" if value is None else choice(x, value)


def _titled(line: StoredLine, kind: str) -> str:
    return f"width {line.name}" if kind == "width" else line.name


def _line_colours(lines: Sequence[StoredLine], kind: str) -> dict[str, str]:
    """Returns the colour of each line: by its optimizer, or from dark to light with the width."""
    if kind == "width":
        last = max(len(lines) - 1, 1)
        shades = [VIRIDIS[round(i * (len(VIRIDIS) - 1) / last)] for i in range(len(lines))]
        return {line.name: shade for line, shade in zip(lines, shades, strict=True)}
    own = {line.name: OPTIMIZER_COLOURS.get(line.value, OTHER_COLOURS[-1]) for line in lines}
    return own | {name: _VARIANTS[name] for name in own if kind == "variant" and name in _VARIANTS}
