"""Parts of the lab's two charts: their axes, curves, crosses and labels that stand clear."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from isolab.charts.channels import axis, number_ticks, spread, tips
from isolab.charts.layers import Layer, Plot
from isolab.charts.theme import CROSS, TEXT, Spec

PLOT = (330, 230)
"""Width and height of a chart without its axes, pixels, in a picture of both."""
ZERO = -23.0
"""Where eps = 0 is drawn on a log10 axis; just right of it whatever is too small for the axis."""
_EDGE = 9  # pixels from the top at which diverged runs are marked
_LINE = 13  # pixels between two labels
_LEFT, _ROOM = 0.015, 0.18  # of the axis of steps: for a dot at step 0, for labels at the ends

End = tuple[str, float, float, str]
"""A label: its text, where it is along x, its loss and its colour."""


def curve_points(steps: Iterable[int], losses: Iterable[float]) -> list[Spec]:
    """Returns the points of a curve whose losses are finite."""
    return [
        {"step": step, "loss": round(loss, 5)}
        for step, loss in zip(steps, losses, strict=True)
        if math.isfinite(loss)
    ]


def step_axis(last: int) -> Spec:
    """Returns the axis of steps, with at least four round ticks."""
    ends = [-_LEFT * last, last * (1 + _ROOM)]
    return _axis("step", "step", ends, number_ticks(0, max(last, 4)), ",d")


def power_axis(x: str, places: Sequence[float]) -> Spec:
    """Returns the axis of powers of a rate or an eps, with at most about ten ticks.

    Args:
        x: "learning_rate" or "eps".
        places: what the axis must hold, as :func:`along` gives it.
    """
    left, right = min(places), max(places)
    pad = max(0.04 * (right - left), 0.5)
    step = max(1, math.ceil((right - left) / 10))
    if right - left > 10:
        step = max(step, 2 if right - left <= 22 else 5)
    first = math.ceil((left if left > ZERO else -20) / step) * step
    ticks = [*([ZERO] if left <= ZERO else []), *range(first, math.floor(right) + 1, step)]
    titles = {"learning_rate": "learning rate, as a power of 2", "eps": "eps, as a power of 10"}
    channel = _axis("x", titles[x], [left - pad, right + pad], ticks, "d")
    if x == "eps":
        zero = f"datum.value == {ZERO} ? '0, tiny' : format(datum.value, 'd')"
        channel["axis"]["labelExpr"] = zero
    return channel


def _axis(
    field: str,
    title: str,
    ends: Sequence[float],
    ticks: Sequence[float],
    form: str,
    base: float | None = None,
) -> Spec:
    return axis(field, title, ends, base, values=ticks, format=form, labelOverlap=True, grid=True)


def along(value: float | None, x: str) -> float | None:
    """Returns where a rate or an eps lies on the axis of powers."""
    if value is None:
        return None
    if x == "eps":
        return max(math.log10(value), ZERO + 0.5) if value > 0 else ZERO
    return math.log2(value)


def loss_axis(title: str, losses: Sequence[float], limit: float | None = None) -> Spec:
    """Returns the log axis of losses, from a little below them to a little above, or the limit."""
    low, high = 2.0, 6.0
    if losses:
        least = max(min(losses), 1e-6)
        most = max(min(max(losses), limit or math.inf), least * 1.01)
        span = math.log(most / least)
        low, high = least * math.exp(-0.06 * span), most * math.exp(0.1 * span)
    top = high * (low / high) ** 0.03  # no tick at the very top, where a title begins
    ticks = number_ticks(low, top)
    return _axis("loss", title, [low, high], ticks, "~g", 10)


def ends_of(channel: Spec) -> tuple[float, float]:
    """Returns where an axis begins and ends."""
    low, high = channel["scale"]["domain"]
    return low, high


def end_labels(plot: Plot, ends: Sequence[End]) -> list[Layer]:
    """Returns names to the right of points, lifted where they would cover each other."""
    (left, right), (low, high) = ends_of(plot.x), ends_of(plot.y)
    octave, wide = PLOT[1] / math.log(high / low), PLOT[0] / (right - left)
    ends = sorted(ends, key=lambda end: end[2])
    heights = [math.log(min(max(loss, low), high) / low) * octave for _, _, loss, _ in ends]
    places = [(end[1] * wide, height) for end, height in zip(ends, heights, strict=True)]
    layers = []
    for (name, place, _, colour), height in zip(
        ends, spread(places, 0.12 * PLOT[0], _LINE), strict=True
    ):
        row = {plot.x["field"]: place, "loss": low * math.exp(height / octave), "name": name}
        layers += plot.labels([row], "name", align="left", dx=7, color=colour)
    return layers


def edge_marks(
    plot: Plot,
    marks: Sequence[tuple[float, str]],
    colour: str,
    opacity: float = 1,
    above: bool = False,
    named: bool = True,
) -> list[Layer]:
    """Returns crosses of diverged runs at the top edge, or triangles of what lies above the axis.

    Args:
        marks: where along x, and a text: beside the mark, or in its tooltip unless ``named``.
    """
    rows = [{plot.x["field"]: place, "n": text} for place, text in marks]
    cross = {"shape": CROSS, "size": 70, "strokeWidth": 2.5}
    look = {"shape": "triangle-up", "size": 50, "strokeWidth": 2} if above else cross
    mark = {"type": "point", **look, "color": colour, "opacity": opacity}
    layers = plot.draw(rows, mark, y=_EDGE, tooltip=tips("n")) if marks else []
    if named:
        text = TEXT | {"align": "left", "dx": 9, "fontSize": 11, "color": colour}
        layers += plot.draw(rows, text, y=_EDGE, text="n")
    return layers
