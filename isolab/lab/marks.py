"""Parts of the lab's charts as plain Vega-Lite: axes, ticks, layers, labels and crosses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Spec = dict[str, Any]

PLOT = (330, 230)
"""Width and height of a chart without its axes, pixels, in a picture of both."""
ZERO = -23.0
"""Where eps = 0 is drawn on a log10 axis; just right of it whatever is too small for the axis."""
EDGE = 9  # pixels from the top at which diverged runs are marked
_CROSS = "M-0.9,-0.9L0.9,0.9M-0.9,0.9L0.9,-0.9"
_LINE = 13  # pixels between two labels


def layer_of(values: list[Spec], mark: Spec, x: Spec, y: Spec, **encoding: Any) -> Spec:
    """Returns a layer of its own data."""
    return {"data": {"values": values}, "mark": mark, "encoding": {"x": x, "y": y, **encoding}}


def line_mark(colour: str, **more: Any) -> Spec:
    """Returns a line, cut at the frame."""
    return {"type": "line", "clip": True, "color": colour, **more}


def empty_layer(x: Spec, y: Spec) -> Spec:
    """Returns a layer that shows nothing but its axes."""
    return layer_of([{}], {"type": "point", "opacity": 0}, x, y)


def curve_points(steps: Iterable[int], losses: Iterable[float]) -> list[Spec]:
    """Returns the points of a curve whose losses are finite."""
    return [
        {"step": step, "loss": round(loss, 5)}
        for step, loss in zip(steps, losses, strict=True)
        if math.isfinite(loss)
    ]


def axis_x(
    title: str, domain: list[float], ends: list[float], ticks: list[float], form: str,
    field: str = "step",
) -> Spec:  # fmt: skip
    """Returns the x axis, with those of the ticks that lie between the ends."""
    kept = [tick for tick in ticks if ends[0] - 1e-9 <= tick <= ends[1] + 1e-9]
    scale = {"domain": domain, "nice": False, "zero": False}
    axis = {"values": kept, "format": form, "labelOverlap": True, "grid": True}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def loss_axis(title: str, low: float, high: float) -> Spec:
    """Returns the log axis of losses."""
    scale = {"type": "log", "domain": [low, high], "nice": False}
    axis = {"values": loss_ticks(low, high), "format": "~g", "labelOverlap": True, "grid": True}
    return {"field": "loss", "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def tooltips(**formats: str | None) -> list[Spec]:
    """Returns tooltip entries by field, numbers where a format is given."""
    return [
        {"field": name, "type": "quantitative", "format": form} if form else {"field": name}
        for name, form in formats.items()
    ]


def loss_span(losses: Sequence[float], limit: float | None = None) -> tuple[float, float]:
    """Returns the ends of a loss axis, a little beyond the losses up to the limit."""
    if not losses:
        return 2.0, 6.0
    low = max(min(losses), 1e-6)
    high = max(min(max(losses), limit or math.inf), low * 1.01)
    span = math.log(high / low)
    return low * math.exp(-0.06 * span), high * math.exp(0.1 * span)


def loss_ticks(low: float, high: float) -> list[float]:
    """Returns at least four round numbers, none at the very top, where a title begins."""
    unit, top = 10.0 ** math.ceil(math.log10(high - low)), high * (low / high) ** 0.03
    for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        first, last = math.ceil(low / (unit * share)), math.floor(top / (unit * share))
        if last - first + 1 >= 4:
            return [round(k * unit * share, 10) for k in range(first, last + 1)]
    return [low, top]


def step_ticks(last: int) -> list[float]:
    """Returns round numbers of steps for the ticks, about five, and the last step."""
    rough = max(last / 5, 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough)
    step = max(round(step), 1)
    return [float(k) for k in range(0, last + 1, step)]


def power_ticks(left: float, right: float) -> list[float]:
    """Returns ticks at whole powers, about ten at most, and at :data:`ZERO` where it shows."""
    step = max(1, math.ceil((right - left) / 10))
    if right - left > 10:
        step = max(step, 2 if right - left <= 22 else 5)
    first = math.ceil((left if left > ZERO else -20) / step) * step
    ticks = [float(k) for k in range(first, math.floor(right) + 1, step)]
    return [ZERO, *ticks] if left <= ZERO else ticks


def end_labels(ends: Sequence[tuple[str, float, float, str]], x: Spec, y: Spec) -> list[Spec]:
    """Returns names to the right of points, lifted where they would cover each other."""
    (left, right), (low, high) = x["scale"]["domain"], y["scale"]["domain"]
    pixels = math.log(high / low) / PLOT[1]  # of log loss
    rows: list[tuple[str, float, float, str]] = []
    for name, place, loss, colour in sorted(ends, key=lambda end: end[2]):
        at = (math.log(min(max(loss, low), high)) - math.log(low)) / pixels
        for _, other, taken, _ in rows:
            if abs(place - other) < 0.12 * (right - left) and at < taken + _LINE:
                at = taken + _LINE
        rows.append((name, place, at, colour))
    layers = []
    for name, place, at, colour in rows:
        value = {x["field"]: place, "loss": low * math.exp(at * pixels), "name": name}
        text = {"type": "text", "align": "left", "dx": 7, "fontWeight": "bold", "fontSize": 12}
        for ink in ({"stroke": "white", "strokeWidth": 3}, {"color": colour}):
            layers.append(layer_of([value], {**text, **ink}, x, y, text={"field": "name"}))
    return layers


def crosses(values: list[Spec], x: Spec, colour: str, text: str, opacity: float = 1) -> list[Spec]:
    """Returns crosses at the top edge; with ``text`` "n" the text stands beside them."""
    top = {"value": EDGE}
    mark = {"type": "point", "shape": _CROSS, "size": 70, "strokeWidth": 2.5, "color": colour,
            "opacity": opacity, "clip": False}  # fmt: skip
    encoding = {"x": x, "y": top, "tooltip": [{"field": text}]}
    layers = [{"data": {"values": values}, "mark": mark, "encoding": encoding}]
    if text == "n":
        words = {"type": "text", "align": "left", "dx": 9, "fontSize": 11, "color": colour,
                 "fontWeight": "bold"}  # fmt: skip
        encoding = {"x": x, "y": top, "text": {"field": text}}
        layers.append({"data": {"values": values}, "mark": words, "encoding": encoding})
    return layers
