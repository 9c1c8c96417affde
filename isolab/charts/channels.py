"""Channels of Vega-Lite: axes with their ticks, tooltips, colours and shapes by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from isolab.charts.frames import EDGE_MARK, extent, log_domain
from isolab.charts.theme import CROSS, HEIGHT, Spec, words

POSITIONS = ("x", "y")
_SHAPES = {"diverged": CROSS, "above the axis": "triangle-up"}


def axis(
    field: str,
    title: str | None,
    domain: Sequence[float] | None = None,
    base: float | None = None,
    **options: Any,
) -> Spec:
    """Returns a position channel of numbers, on a log axis where it has a ``base``.

    ``domain`` is where it starts and ends; ``options`` are such as ``values`` or ``format``.
    """
    scale: Spec = {"nice": False} | ({"domain": list(domain)} if domain else {})
    if base is not None:
        scale |= {"type": "log", "base": base}
    elif domain:
        scale["zero"] = False
    channel = {"field": field, "type": "quantitative", "title": title, "scale": scale}
    return channel | ({"axis": options} if options else {})


def log_axis(
    column: str,
    values: pl.Series,
    title: str,
    format: str = ".3~g",
    domain: Sequence[float] | None = None,
) -> Spec:
    """Returns a log2 axis with a tick at every value, thinned to ten; they must be positive."""
    ends = log_domain(column, values)
    levels = values.cast(pl.Float64).unique().sort()
    ticks = levels.gather_every(math.ceil(len(levels) / 10)).to_list()
    style: Spec = {"format": format, "labelOverlap": True, "labelSeparation": 6, "grid": True}
    return axis(column, title, domain or ends, 2, values=ticks, **style)


def width_axis(widths: pl.Series, at: pl.Series | None = None, share: float = 0.0) -> Spec:
    """Returns the log2 axis of widths, or of where they are drawn.

    ``share`` is the room for texts at its end, as a share of the rest of it.
    """
    low, high = log_domain("width", widths if at is None else at)
    first, last = extent(widths)
    ends = [low, high * max(last / first, 2.0) ** share]
    channel = log_axis("width", widths, "width (log2 axis)", "d", ends)
    return channel | {"field": "width" if at is None else at.name}


def names_axis(field: str, names: Sequence[str], title: str | None = None, **options: Any) -> Spec:
    """Returns a position channel with a place for each name, in their order."""
    style: Spec = {"labelLimit": 340, "ticks": False, "domain": False, "grid": True} | options
    channel = {"field": field, "type": "nominal", "title": title, "sort": list(names)}
    return channel | {"scale": {"domain": list(names)}, "axis": style}


def padded(
    bottom: float, top: float, rows: float = 0, labels: int = 1, height: int = HEIGHT
) -> list[float]:
    """Returns the ends of an axis with ``labels`` lines below and ``rows`` edge marks above."""
    span = max(top - bottom, 0.02 * abs(top), 1e-6)
    above, below = 14 + 12 * rows if rows else 8, 15 + 13 * labels
    unit = span / (height - above - below)
    return [bottom - below * unit, top + above * unit]


def tips(*entries: str | Sequence[str]) -> list[Spec]:
    """Returns tooltip entries: a column, or a column, its number format (or "") and a title.

    Example:
        >>> tips("seed", ("loss", ".4f", "final loss"))[1]["title"]
        'final loss'
    """
    found = []
    for entry in entries:
        column, form, *title = (entry, "") if isinstance(entry, str) else entry
        kind: Spec = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
        found.append({"field": column, "title": title[0] if title else words(column), **kind})
    return found


def channel(name: str, value: Any, position: Spec | None = None) -> Any:
    """Returns an encoding: of a column by its name, of a constant, or as it is given."""
    if isinstance(value, str):
        if name in ("x2", "y2"):
            return {"field": value}
        if name in POSITIONS and position is not None:
            return {**position, "field": value}
        return {"field": value, "type": "quantitative" if name == "order" else "nominal"}
    if isinstance(value, int | float):
        return {"value": value}
    return [channel("", column) for column in value] if name == "detail" else value


def pixels(field: str) -> Spec:
    """Returns a position that is a column's number of pixels from the top or left edge."""
    return {"field": field, "type": "quantitative", "scale": None, "axis": None}


def offset_by(field: str, values: pl.Series) -> Spec:
    """Returns a channel that moves the values of a column apart within the place of a name."""
    names = values.unique().sort().to_list()
    scale = {"domain": names}
    return {"yOffset": {"field": field, "type": "nominal", "sort": names, "scale": scale}}


def edge_shape(marks: pl.Series) -> Spec:
    """Returns the shape, with a legend, of the edge marks that occur."""
    shapes = {name: shape for name, shape in _SHAPES.items() if name in marks}
    return scaled(EDGE_MARK, shapes, "run" if list(shapes) == ["diverged"] else EDGE_MARK)


def scaled(field: str, values: Mapping[str, Any], title: Any = None, **legend: Any) -> Spec:
    """Returns a nominal channel whose names have these colours, shapes or dashes."""
    scale = {"domain": list(values), "range": list(values.values())}
    named = {"field": field, "type": "nominal", "title": title, "scale": scale}
    return named | ({"legend": legend} if legend else {})


def spread(places: Sequence[tuple[float, float]], near: float, line: float) -> list[float]:
    """Returns heights at which labels do not cover each other: each as given, or further up.

    ``places`` are where each label is, across and up, in pixels. Two less than ``near`` across from
    each other would cover each other, where they are not a ``line`` apart.
    """
    lifted: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        across, at = places[i]
        for other, taken in sorted(lifted.items(), key=lambda its: its[1]):
            if abs(across - places[other][0]) < near and at < taken + line:
                at = taken + line
        lifted[i] = at
    return [lifted[i] for i in range(len(places))]


def number_ticks(low: float, high: float) -> list[float]:
    """Returns at least four round numbers between two, evenly spaced."""
    unit = 10.0 ** math.ceil(math.log10(high - low))
    for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        first, last = math.ceil(low / (unit * share)), math.floor(high / (unit * share))
        if last - first >= 3:
            return [round(k * unit * share, 10) for k in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 of every power of ten, or fewer where those would be more than ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{k}") for k in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 10:
            break
    return ticks[:: math.ceil(len(ticks) / 10) or 1]


def power_ticks(first: int, last: int, most: int = 7) -> list[int]:
    """Returns whole numbers from first to last, at most so many."""
    return list(range(first, last + 1, max(1, math.ceil((last - first + 1) / most))))
