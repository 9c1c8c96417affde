"""Pieces that every chart is made of: axes, tooltips, colours that a legend selects, and layers.

They are plain Vega-Lite, made without a check at each step, so that the lab can draw with them
while a slider moves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.charts.frames import EDGE_MARK, ORIGINS, bound, log_domain, origins
from isolab.charts.theme import (
    CROSS,
    DASH,
    DASHED,
    HEIGHT,
    ORIGIN_RAMPS,
    POINT,
    TEXT,
    Spec,
    colours_of,
    ramp,
    words,
)

_SHAPES = {"diverged": CROSS, "above the axis": "triangle-up"}
_APART = 0.09  # octaves between series at one width
_POSITIONS = ("x", "y")
# Equal parameters of two charts that are shown side by side would be linked.
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Layer:
    """One mark, its rows (a frame or plain dicts) and their encoding."""

    rows: pl.DataFrame | Sequence[Mapping[str, Any]]
    mark: Spec
    encoding: Spec

    def to_dict(self) -> Spec:
        """Returns the layer as plain Vega-Lite, its rows in it."""
        rows = self.rows.to_dicts() if isinstance(self.rows, pl.DataFrame) else self.rows
        return {"data": {"values": rows}, "mark": self.mark, "encoding": self.encoding}


def number_of(name: str) -> str:
    """Returns a parameter's name that no other chart of this process has."""
    return f"{name}_{next(_NUMBERS)}"


def axis(
    field: str,
    title: str | None,
    domain: Sequence[float] | None = None,
    base: float | None = None,
    kind: str | None = None,
    **options: Any,
) -> Spec:
    """Returns a position channel of numbers.

    Args:
        field: the column.
        domain: where the axis starts and ends.
        base: of a log axis; None is a linear one unless ``kind`` names another scale.
        options: of the axis, such as ``values``, ``format`` or ``labelExpr``.
    """
    scale: Spec = {"nice": False} | ({"domain": list(domain), "zero": False} if domain else {})
    if base is not None:
        scale = {"type": "log", "base": base, "nice": False, "domain": scale["domain"]}
    if kind is not None:
        scale = {"type": kind, "constant": 1, "nice": False, "domain": scale["domain"]}
    channel = {"field": field, "type": "quantitative", "title": title, "scale": scale}
    return channel | ({"axis": options} if options else {})


def log_axis(
    column: str,
    values: pl.Series,
    title: str,
    format: str = ".3~g",
    domain: Sequence[float] | None = None,
) -> Spec:
    """Returns a log2 axis with a tick at every value, thinned to ten.

    Raises:
        ValueError: for a value that is not a positive number.
    """
    ends = log_domain(column, values)
    levels = values.cast(pl.Float64).unique().sort()
    ticks = levels.gather_every(math.ceil(len(levels) / 10)).to_list()
    look: Spec = {"format": format, "labelOverlap": True, "labelSeparation": 6, "grid": True}
    return axis(column, title, domain or ends, 2, values=ticks, **look)


def width_axis(widths: pl.Series, at: pl.Series | None = None, room: float = 1.0) -> Spec:
    """Returns the log2 axis of widths, or of where they are drawn, with so much room at its end."""
    low, high = log_domain("width", widths if at is None else at)
    channel = log_axis("width", widths, "width (log2 axis)", "d", [low, high * room])
    return channel | {"field": "width" if at is None else at.name}


def names_axis(field: str, names: Sequence[str], title: str | None = None, **options: Any) -> Spec:
    """Returns a position channel with a place for each name, in their order."""
    look: Spec = {"labelLimit": 340, "ticks": False, "domain": False, "grid": True} | options
    channel = {"field": field, "type": "nominal", "title": title, "sort": list(names)}
    return channel | {"scale": {"domain": list(names)}, "axis": look}


def padded(
    bottom: float, top: float, rows: float = 0, labels: int = 1, height: int = HEIGHT
) -> list[float]:
    """Returns the ends of an axis with ``labels`` lines below and ``rows`` edge marks above."""
    span = max(top - bottom, 0.02 * abs(top), 1e-6)
    above = 14 + 12 * rows if rows else 8
    below = 15 + 13 * labels
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
        if name in _POSITIONS and position is not None:
            return {**position, "field": value}
        return {"field": value, "type": "quantitative" if name == "order" else "nominal"}
    if isinstance(value, int | float):
        return {"value": value}
    if name == "detail":
        return [channel("", column) for column in value]
    return value


def pixels(field: str) -> Spec:
    """Returns a position that is a column's number of pixels from the top or left edge."""
    return {"field": field, "type": "quantitative", "scale": None, "axis": None}


def edge_shape(marks: pl.Series) -> Spec:
    """Returns the shape, with a legend, of the edge marks that occur."""
    domain = [name for name in _SHAPES if name in marks]
    title = EDGE_MARK if len(domain) > 1 or "above the axis" in domain else "run"
    scale = {"domain": domain, "range": [_SHAPES[name] for name in domain]}
    return {"field": EDGE_MARK, "type": "nominal", "title": title, "scale": scale}


def scaled(field: str, values: Mapping[str, Any], title: Any = None, **legend: Any) -> Spec:
    """Returns a nominal channel whose names have these colours, shapes or dashes."""
    scale = {"domain": list(values), "range": list(values.values())}
    named = {"field": field, "type": "nominal", "title": title, "scale": scale}
    return named | ({"legend": legend} if legend else {})


@dataclass(frozen=True)
class Look:
    """How the series of a chart look, and the columns that tell them apart.

    Attributes:
        frame: the rows, with a column ``series`` where numbers of two origins are shades.
        columns: what tells series apart: the colour's column, and ``origin`` where there are two.
        both: whether there are two origins.
        color: the colour's channel.
        pick: the parameter that the legend selects series by.
    """

    frame: pl.DataFrame
    columns: tuple[str, ...]
    both: bool
    color: Spec
    pick: str

    @property
    def note(self) -> list[str]:
        """What to say of the two origins."""
        return ["Dashed and hollow: reference runs; solid and filled: yours."] if self.both else []

    def at(self, opacity: float) -> Spec:
        """Returns the channels of colour and of an opacity that falls where others are picked."""
        faded = {"condition": {"param": self.pick, "value": opacity}, "value": min(opacity, 0.07)}
        return {"color": self.color, "opacity": faded}

    def parts(self, rows: pl.DataFrame, mark: Spec) -> list[tuple[pl.DataFrame, Spec]]:
        """Returns rows and mark by origin: the reference's lines are dashed, its points hollow."""
        special: Spec = {"line": {"strokeDash": DASH}, "point": {"filled": False, "fill": "white"}}
        kind = mark["type"]
        if not self.both or kind not in special or "origin" not in rows.columns:
            return [(rows, mark)]
        reference = pl.col("origin") == "reference"
        other = {**mark, **special[kind], "strokeWidth": mark.get("strokeWidth", 2)}
        return [(rows.filter(reference), other), (rows.filter(~reference), mark)]

    def apart(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns the rows with ``at``: widths moved so that series do not cover each other."""
        on = list(self.columns)
        order = self.frame.select(on).unique().sort(on).with_row_index("turn")
        turns = pl.col("turn").cast(pl.Float64) - (len(order) - 1) / 2
        width = pl.col("width").cast(pl.Float64)
        return frame.join(order, on=on, how="left", maintain_order="left").with_columns(
            width, (width * (turns * _APART * math.log(2)).exp()).alias("at")
        )


def look_of(frame: pl.DataFrame, color: str, **legend: Any) -> Look:
    """Returns how the series of ``color``, and of ``origin`` where there are two, look.

    Names have their own colours; numbers are shades from dark to light, of two origins shades of
    blue (reference) and orange (yours).
    """
    both = bool(origins(frame)) and frame["origin"].n_unique() == 2
    columns = tuple(dict.fromkeys([color, *(["origin"] if both else [])]))
    numbers = frame.schema[color].is_numeric()
    if numbers and both:
        frame, hue = _shades_of_origins(frame, color)
        return Look(frame, (*columns, "series"), both, hue, number_of("pick"))
    if numbers:
        domain = frame[color].unique().sort().to_list()
        scale = {"domain": domain, "scheme": {"name": "viridis", "extent": [0, 0.85]}}
        hue = {"field": color, "type": "ordinal", "title": words(color), "scale": scale}
    else:
        hue = scaled(color, colours_of(frame[color]), words(color))
    hue |= {"legend": legend} if legend else {}
    return Look(frame, columns, both, hue, number_of("pick"))


def _shades_of_origins(frame: pl.DataFrame, color: str) -> tuple[pl.DataFrame, Spec]:
    named: list[tuple[str, Any]] = []
    hexes: list[str] = []
    for origin in ORIGINS:
        levels = frame.filter(pl.col("origin") == origin)[color].unique().sort().to_list()
        named += [(origin, level) for level in levels]
        hexes += ramp(*ORIGIN_RAMPS[origin], len(levels))
    labels = [f"{level:,g}" + ", yours" * (origin == "yours") for origin, level in named]
    schema = {"origin": frame.schema["origin"], color: frame.schema[color]}
    table = pl.DataFrame(named, schema=schema, orient="row").with_columns(
        pl.Series("series", labels, dtype=pl.Enum(labels))
    )
    frame = frame.join(table, on=["origin", color], how="left", maintain_order="left")
    return frame, scaled("series", dict(zip(labels, hexes, strict=True)), words(color))


@dataclass(frozen=True)
class Plot:
    """The axes of a chart and how its series look: what its layers share.

    A layer's ``x`` and ``y`` are the axes, another column on the same axis (by its name), a number
    of pixels, a channel of its own, or None for none.
    """

    x: Spec
    y: Spec
    look: Look | None = None

    def draw(
        self,
        rows: pl.DataFrame | Sequence[Mapping[str, Any]],
        mark: Spec,
        opacity: float | None = 1.0,
        split: bool = True,
        **channels: Any,
    ) -> list[Layer]:
        """Returns a layer of the series, or one for each of two origins.

        Args:
            rows: what is drawn.
            mark: as Vega-Lite has it.
            opacity: of the series that the legend selects; None: no colour of the series.
            split: whether the two origins look different.
            channels: encodings by column name, constant or in full.
        """
        encoding: Spec = {"x": self.x, "y": self.y}
        if self.look is not None and opacity is not None:
            encoding |= self.look.at(opacity)
            if self.look.both and mark["type"] == "area":
                channels = {"detail": ["origin"]} | channels
        axes = {name: encoding[name] for name in _POSITIONS}
        encoding |= {name: channel(name, v, axes.get(name)) for name, v in channels.items()}
        encoding = {name: its for name, its in encoding.items() if its is not None}
        parts: list[tuple[Any, Spec]] = [(rows, mark)]
        if split and self.look is not None and isinstance(rows, pl.DataFrame):
            parts = [*self.look.parts(rows, mark)]
        return [Layer(its, look, encoding) for its, look in parts]

    def rules(self, values: Sequence[float], along: str = "y", **mark: Any) -> list[Layer]:
        """Returns dashed grey lines across the plot at values of an axis."""
        field = getattr(self, along)["field"]
        rows = pl.DataFrame({field: list(values)}, schema={field: pl.Float64})
        across: Spec = {"x" if along == "y" else "y": None}
        return self.draw(rows, DASHED | mark, None, **across)

    def intervals(
        self,
        bars: pl.DataFrame,
        points: pl.DataFrame,
        tooltip: list[Spec],
        along: str = "y",
        opacity: float = 0.55,
        size: float = 60,
        thick: float = 2,
        **channels: Any,
    ) -> list[Layer]:
        """Returns a bar from ``low`` to ``high`` and a point for each series and place."""
        ends: Spec = {along: "low", f"{along}2": "high"}
        rule = {"type": "rule", "clip": True, "strokeWidth": thick}
        return [
            *self.draw(bars, rule, opacity, **ends, **channels),
            *self.draw(points, POINT | {"size": size}, tooltip=tooltip, **channels),
        ]

    def labels(
        self,
        rows: pl.DataFrame | Sequence[Mapping[str, Any]],
        text: str,
        opacity: float | None = 1.0,
        channels: Mapping[str, Any] | None = None,
        **font: Any,
    ) -> list[Layer]:
        """Returns texts on a white halo, so that they read over lines."""
        halo: Spec = {"stroke": "white", "strokeWidth": 4, "strokeJoin": "round"}
        looks = [TEXT | font | halo, TEXT | font]
        its = {"text": text, **(channels or {})}
        return [layer for look in looks for layer in self.draw(rows, look, opacity, **its)]

    def top_edge(
        self, marks: pl.DataFrame, tooltip: list[Spec], pitch: float = 12, size: float = 46
    ) -> list[Layer]:
        """Returns the marks of runs beyond the axis, a line of them for each series."""
        if marks.is_empty():
            return []
        rows = marks.with_columns((8 + pitch * pl.col("line")).alias("pixel"))
        mark: Spec = {"type": "point", "size": size, "strokeWidth": 1.8}
        channels: Spec = {"y": pixels("pixel"), "shape": edge_shape(marks[EDGE_MARK])}
        return self.draw(rows, mark, split=False, tooltip=tooltip, **channels)


def spread(places: Sequence[tuple[float, float]], near: float, line: float) -> list[float]:
    """Returns heights at which labels do not cover each other: each as given, or further up.

    Args:
        places: where each label is: across, and its height, in pixels.
        near: pixels across within which two labels would cover each other.
        line: the height of a label.
    """
    lifted: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        across, at = places[i]
        for other, taken in sorted(lifted.items(), key=lambda its: its[1]):
            if abs(across - places[other][0]) < near and at < taken + line:
                at = taken + line
        lifted[i] = at
    return [lifted[i] for i in range(len(places))]


def number_ticks(low: float, high: float, least: int = 4) -> list[float]:
    """Returns at least so many round numbers between two, evenly spaced."""
    unit = 10.0 ** math.ceil(math.log10(high - low))
    for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        first, last = math.ceil(low / (unit * share)), math.floor(high / (unit * share))
        if last - first + 1 >= least:
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


def highest(*series: pl.Series) -> float:
    """Returns the highest number of several series."""
    return max(bound(values, "max", -math.inf) for values in series)
