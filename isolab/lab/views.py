"""The lab's two charts, as plain Vega-Lite: made in a millisecond, so that they follow a slider.

Losses lie on a log axis, so that the first steps and the last differences are both seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from isolab.charts.parts import OPTIMIZER_COLOURS, OTHER_COLOURS
from isolab.lab.marks import (
    EDGE,
    PLOT,
    ZERO,
    Spec,
    axis_x,
    crosses,
    curve_points,
    empty_layer,
    end_labels,
    layer_of,
    line_mark,
    loss_axis,
    loss_span,
    power_ticks,
    step_ticks,
    tooltips,
)
from isolab.lab.stored import Cell, Nearest, StoredLine
from isolab.lab.words import choice, plural
from isolab.training.config import RunConfig

TOTAL = (412, 350)
"""Width and height of a chart with its axes, pixels."""
RUN_COLOURS = [colour for colour in OTHER_COLOURS if colour != "#000000"]
GREY = "#555555"
_WIDTHS = ["#440154", "#414487", "#2A788E", "#22A884", "#7AD151", "#B8A000"]  # viridis, last darker
_VARIANTS = {
    "Adam": OPTIMIZER_COLOURS["adam"],
    "Adam, eps per layer": "#E69F00",
    "Adam-atan2": OPTIMIZER_COLOURS["adam_atan2"],
}
_SOLID = [1, 0]
_DASHES = [[7, 3], [2, 2], [8, 3, 2, 3], [4, 2], [12, 3]]  # of the lines beside it
_CEILING = 1.8  # a rate chart ends at so many times its lowest loss, losses above it at its edge
_ROOM = 0.18  # of the x axis, for labels at the ends of curves
_LEFT = 0.015  # of the x axis, so that a dot at step 0 is whole


@dataclass(frozen=True)
class RunView:
    """A run of this session, as both charts show it.

    Attributes:
        number: names it, and fixes its colour.
        config: what it is.
        steps, validation, train: its curve so far.
        state: as in :class:`isolab.lab.live.News`.
        live: whether it is training.
    """

    number: int
    config: RunConfig
    steps: tuple[int, ...]
    validation: tuple[float, ...]
    train: tuple[float, ...]
    state: str
    live: bool = False

    @property
    def colour(self) -> str:
        """The run's colour in both charts."""
        return run_colour(self.number)

    @property
    def diverged(self) -> bool:
        """Whether its losses ended, or ended above where they began."""
        return self.state == "diverged" or any(not math.isfinite(v) for v in self.validation)


def run_colour(number: int) -> str:
    """Returns the colour of a run of this session, by its number from 1 on."""
    return RUN_COLOURS[(number - 1) % len(RUN_COLOURS)]


def curve_view(asked: str, cell: Cell | None, runs: Sequence[RunView], steps: int) -> Spec:
    """Returns the chart of losses while training.

    Args:
        asked: the setting, in words.
        cell: the nearest stored runs: dashed.
        runs: of this session; a live one is thick, its training loss thin.
        steps: of the setting.
    """
    series: list[tuple[str, Sequence[int], Sequence[float]]] = []
    if cell is not None:
        series.append(("stored", *cell.curve()))
    series += [(str(run.number), run.steps, run.validation) for run in runs]
    last = max([steps, *(s for _, at, _ in series for s in at)])
    starts = [next((v for v in losses if math.isfinite(v)), 1.0) for _, _, losses in series]
    finite = [v for _, _, losses in series for v in losses if math.isfinite(v)]
    room = [0.8 * max(starts)] if any(run.live for run in runs) else []  # below a first point
    low, high = loss_span(finite + room, max(starts) * 1.15 if starts else None)
    x = axis_x("step", [-_LEFT * last, last * (1 + _ROOM)], [0, last], step_ticks(last), ",d")
    y = loss_axis("loss (nats/token)", low, high)
    layers: list[Spec] = []
    ends: list[tuple[str, float, float, str]] = []
    if cell is not None:
        points = curve_points(*cell.curve())
        tips = tooltips(step=",d", loss=".4f")
        dash = {"strokeDash": [6, 4], "strokeWidth": 2}
        layers.append(layer_of(points, line_mark(GREY, **dash, point={"color": GREY, "size": 22}),
                             x, y, tooltip=tips))  # fmt: skip
        if not cell.finite:
            at = points[-1]["step"] if points else 0
            layers += crosses([{"step": at, "n": "stored"}], x, GREY, "n")
        elif points:
            ends.append(("stored", points[-1]["step"], points[-1]["loss"], GREY))
    for run in runs:
        points = curve_points(run.steps, run.validation)
        if run.live:
            train = [p for p in curve_points(run.steps, run.train) if p["step"] > 0]
            layers.append(layer_of(train, line_mark(run.colour, strokeWidth=1, opacity=0.7), x, y))
        width = 3.5 if run.live else 2
        mark = line_mark(
            run.colour, strokeWidth=width, point={"color": run.colour, "size": 6 * width}
        )
        layers.append(layer_of(points, mark, x, y, tooltip=tooltips(step=",d", loss=".4f")))
        if run.diverged:
            bad = [s for s, v in zip(run.steps, run.validation, strict=True) if not v <= high]
            at = [*bad, *run.steps[-1:], 0][0]
            layers += crosses([{"step": at, "n": f"{run.number} diverged"}], x, run.colour, "n")
        elif points:
            name = f"{run.number} live" if run.live else str(run.number)
            ends.append((name, points[-1]["step"], points[-1]["loss"], run.colour))
    layers += end_labels(ends, x, y)
    said = "nothing stored" if cell is None else "dashed: nearest stored, measured at its dots"
    note = ", ".join([said, *(["thin: training loss"] if any(r.live for r in runs) else [])])
    about = [f"Asked for: {asked}."]
    if cell is not None:
        about.append(f"Stored run, final loss {_loss(cell.mean)}.")
    about += [f"Run {run.number}: {run.state}, {_now(run)}." for run in runs]
    return _chart("Loss while training", [asked, note], layers or [empty_layer(x, y)], about)


def summary_view(
    config: RunConfig, look: Nearest, runs: Sequence[RunView], x: str, line: str
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
    lines = sorted(lines, key=lambda each: _line_order(each, line))
    names = [each.name for each in lines]
    cells = [cell for each in lines for cell in each.cells]
    ended = [run for run in runs if not run.live and run.validation]
    now = _along(_x_of(config, x), x)
    places = [_along(cell.setting[x], x) for cell in cells if cell.setting[x] is not None]
    places += [_along(_x_of(run.config, x), x) for run in ended] + [now]
    known = [place for place in places if place is not None] or [-8.0, -2.0]
    left, right = min(known), max(known)
    pad = max(0.04 * (right - left), 0.5)
    domain = [left - pad, right + pad]
    losses = [loss for cell in cells for loss in cell.finite]
    losses += [run.validation[-1] for run in ended if not run.diverged]
    limit = _CEILING * min(losses) if losses and x == "learning_rate" else None
    low, high = loss_span(losses, limit)

    title = "learning rate, as a power of 2" if x == "learning_rate" else "eps, as a power of 10"
    axis = axis_x(title, domain, [left, right], power_ticks(left, right), "d", "x")
    if x == "eps":
        zero = f"datum.value == {ZERO} ? '0, tiny' : format(datum.value, 'd')"
        axis["axis"] = {**axis["axis"], "labelExpr": zero}
    y = loss_axis("final loss (nats/token)", low, high)
    colours = _line_colours(lines, line)
    scale = {"domain": names, "range": [colours[name] for name in names]}
    beside = itertools.cycle(_DASHES)
    looks = [_SOLID if each is look.line else next(beside) for each in lines]
    dashes = {"domain": names, "range": looks}
    legend = {
        "orient": "bottom", "direction": "horizontal", "columns": 2 if line == "variant" else 4,
        "title": "width" if line == "width" else None, "titleOrient": "left",
        "symbolType": "stroke", "symbolStrokeWidth": 2.5, "symbolSize": 300, "columnPadding": 14,
    }  # fmt: skip
    hue = {"field": "line", "type": "nominal", "scale": scale, "legend": legend}
    dash = {"field": "line", "type": "nominal", "scale": dashes, "legend": legend}
    layers: list[Spec] = []
    for each in lines:
        bold = each is look.line
        means, bands = _means(each, x, domain)
        part = {"field": "part", "type": "nominal"}
        if bold and len(bands) > 1:
            area = {"type": "area", "clip": True, "opacity": 0.18, "color": colours[each.name]}
            layers.append(layer_of(bands, area, axis, {**y, "field": "low"}))
            layers[-1]["encoding"] |= {"y2": {"field": "high"}, "detail": part}
        mark = {"type": "line", "clip": True, "strokeWidth": 3.5 if bold else 1.6,
                "opacity": 1 if bold else 0.55}  # fmt: skip
        layers.append(layer_of(means, mark, axis, y, color=hue, strokeDash=dash, detail=part))
        if bold and not _is_flat(each, x):
            dots = {"type": "circle", "clip": True, "size": 40, "opacity": 1}
            tips = [*tooltips(line=None), {"field": "said", "title": x.replace("_", " ")},
                    *tooltips(loss=".4f", low=".4f", high=".4f", seeds=None)]  # fmt: skip
            layers.append(layer_of(means, dots, axis, y, color=hue, tooltip=tips))
        layers += _edges(each, x, high, axis, colours[each.name], 1.0 if bold else 0.35)
    layers += _now_marked(now, _said(config, x), axis)
    layers += _numbered(ended, x, domain, high, axis, y)
    if look.line is not None:
        share = max(len(cell.losses) for cell in look.line.cells)
        note = f"bold: {_titled(look.line, line)}, {plural(share, 'seed')}; band: all seeds"
    else:
        note = "nothing stored for this choice"
    subtitle = [note, "upright line: your setting" + ("; numbers: your runs" if ended else "")]
    named = {"learning_rate": "learning rate", "eps": "eps"}[x]
    about = [f"Marked: {named} {_said(config, x)}."]
    about += [f"{'Bold' if each is look.line else 'Faint'} line {_titled(each, line)}: "
              f"{plural(len(each.cells), 'point')}." for each in lines]  # fmt: skip
    about += [f"Run {run.number}: {_said(run.config, x)}, {_now(run)}." for run in ended]
    return _chart(f"Final loss against {named}", subtitle, layers, about)


def picture(left: Spec, right: Spec, heading: str) -> Spec:
    """Returns both charts side by side, for where no kernel is."""
    width, height = PLOT
    panels = []
    for spec in (left, right):
        kept = {name: spec[name] for name in ("title", "layer", "description")}
        panels.append({**kept, "width": width, "height": height})
    # each panel has a scale of its own for what both call x, loss and line
    apart = dict.fromkeys(["color", "strokeDash"], "independent")
    return {"hconcat": panels, "title": heading, "spacing": 28, "resolve": {"scale": apart}}


def _chart(title: str, subtitle: list[str], layers: list[Spec], about: list[str]) -> Spec:
    width, height = TOTAL
    return {
        "title": {"text": title, "subtitle": subtitle},
        "description": " ".join([f"{title}.", *about]),
        "width": width,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "layer": layers,
    }


def _means(line: StoredLine, x: str, domain: Sequence[float]) -> tuple[list[Spec], list[Spec]]:
    """Returns points of a line's means and of its range, in parts between diverged ones."""
    means, bands, part = [], [], 0
    for cell in line.cells:
        if cell.diverged:
            part += 1
            continue
        setting = cell.setting[x]
        row = {
            "line": line.name, "loss": round(cell.mean, 5), "part": part,
            "low": round(min(cell.finite), 5), "high": round(max(cell.finite), 5),
            "seeds": len(cell.losses), "said": choice(x, setting),
        }  # fmt: skip
        flat = setting is None
        for place in domain if flat else [_along(setting, x)]:
            means.append({**row, "x": place})
            if len(cell.losses) > 1:
                bands.append({**row, "x": place})
    return means, bands


def _edges(
    line: StoredLine, x: str, high: float, axis: Spec, colour: str, opacity: float
) -> list[Spec]:
    """Returns marks at the top edge: runs that diverged, or lie above the axis."""
    lost, above = [], []
    for cell in line.cells:
        place = _along(cell.setting[x], x)
        if place is None:
            continue
        named = f"{line.name}, {choice(x, cell.setting[x])}"
        if cell.diverged:
            said = f"{named}: {cell.diverged} of {plural(len(cell.losses), 'seed')} diverged"
            lost.append({"x": place, "said": said})
        elif cell.mean > high:
            above.append({"x": place, "said": f"{named}: loss {cell.mean:.3f}, above the axis"})
    layers = crosses(lost, axis, colour, "said", opacity) if lost else []
    if above:
        mark = {"type": "point", "shape": "triangle-up", "size": 50, "color": colour,
                "opacity": opacity, "strokeWidth": 2}  # fmt: skip
        top = {"value": EDGE}
        encoding = {"x": axis, "y": top, "tooltip": [{"field": "said"}]}
        layers.append({"data": {"values": above}, "mark": mark, "encoding": encoding})
    return layers


def _now_marked(now: float | None, said: str, axis: Spec) -> list[Spec]:
    """Returns an upright line at the setting, with its value."""
    if now is None:
        return []
    value = [{"x": now, "said": said}]
    rule = {"type": "rule", "strokeWidth": 1.5, "color": "#000000", "strokeDash": [3, 2]}
    words = {"type": "text", "fontSize": 12, "fontWeight": "bold", "color": "#000000"}
    encoding = {"x": axis, "y": {"value": -8}, "text": {"field": "said"}}  # above the frame
    return [
        {"data": {"values": value}, "mark": rule, "encoding": {"x": axis}},
        {"data": {"values": value}, "mark": words, "encoding": encoding},
    ]


def _numbered(
    runs: Sequence[RunView], x: str, domain: Sequence[float], high: float, axis: Spec, y: Spec
) -> list[Spec]:
    """Returns a numbered dot for each run that has ended; hollow for one that was stopped."""
    layers: list[Spec] = []
    ends: list[tuple[str, float, float, str]] = []
    for run in runs:
        place = _along(_x_of(run.config, x), x)
        place = domain[1] if place is None else place
        name = str(run.number)
        if run.diverged:
            layers += crosses([{"x": place, "n": name}], axis, run.colour, "n")
            continue
        loss, stopped = min(run.validation[-1], high), run.state == "stopped"
        value = {"x": place, "loss": loss, "run": name, "rate": _said(run.config, x)}
        dot = {
            "type": "circle",
            "size": 90,
            "opacity": 1,
            "strokeWidth": 2,
            "stroke": run.colour if stopped else "white",
            "color": "white" if stopped else run.colour,
        }
        tips = tooltips(run=None, rate=None, loss=".4f")
        layers.append(layer_of([value], dot, axis, y, tooltip=tips))
        ends.append((name, place, loss, run.colour))
    return [*layers, *end_labels(ends, axis, y)]


def _along(value: float | None, x: str) -> float | None:
    """Returns where a rate or an eps lies on the axis."""
    if value is None:
        return None
    if x == "eps":
        return max(math.log10(value), ZERO + 0.5) if value > 0 else ZERO
    return math.log2(value)


def _x_of(config: RunConfig, x: str) -> float | None:
    return config.learning_rate if x == "learning_rate" else config.hyperparameters.get("eps")


def _said(config: RunConfig, x: str) -> str:
    value = _x_of(config, x)
    return "no eps" if value is None else choice(x, value)


def _now(run: RunView) -> str:
    if run.diverged:
        return "diverged"
    if not run.validation:
        return "no loss yet"
    return f"loss {_loss(run.validation[-1])} at step {run.steps[-1]}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _titled(line: StoredLine, kind: str) -> str:
    return f"width {line.name}" if kind == "width" else line.name


def _is_flat(line: StoredLine, x: str) -> bool:
    return line.cells[0].setting[x] is None


def _line_order(line: StoredLine, kind: str) -> tuple[float, str]:
    return (float(line.value), "") if kind == "width" else (0.0, line.name)


def _line_colours(lines: Sequence[StoredLine], kind: str) -> dict[str, str]:
    """Returns the colour of each line: by its optimizer, or from dark to light with the width."""
    if kind == "width":
        last = max(len(lines) - 1, 1)
        spread = [round(i * (len(_WIDTHS) - 1) / last) for i in range(len(lines))]
        return {line.name: _WIDTHS[at] for line, at in zip(lines, spread, strict=True)}
    other = OTHER_COLOURS[-1]
    if kind == "variant":
        return {line.name: _VARIANTS.get(line.name, _optimizer_colour(line)) for line in lines}
    return {line.name: OPTIMIZER_COLOURS.get(line.value, other) for line in lines}


def _optimizer_colour(line: StoredLine) -> str:
    return OPTIMIZER_COLOURS.get(line.value, OTHER_COLOURS[-1])
