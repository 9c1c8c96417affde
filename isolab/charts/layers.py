"""Layers of a chart, and how its series look: what every picture is made of.

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

from isolab.charts.channels import POSITIONS, channel, edge_shape, pixels, scaled
from isolab.charts.frames import EDGE_MARK, ORIGINS, bars, keys_of
from isolab.charts.theme import (
    BAR,
    DASH,
    DASHED,
    LINE,
    ORIGIN_RAMPS,
    POINT,
    TEXT,
    Spec,
    colours_of,
    ramp,
    words,
)

Rows = pl.DataFrame | Sequence[Mapping[str, Any]]
_APART = 0.09  # octaves between series at one width
# Equal parameters of two charts that are shown side by side would be linked.
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Layer:
    """One mark, its rows (a frame or plain dicts) and their encoding."""

    rows: Rows
    mark: Spec
    encoding: Spec

    def to_dict(self) -> Spec:
        """Returns the layer as plain Vega-Lite, its rows in it."""
        rows = self.rows.to_dicts() if isinstance(self.rows, pl.DataFrame) else self.rows
        return {"data": {"values": rows}, "mark": self.mark, "encoding": self.encoding}


def number_of(name: str) -> str:
    """Returns a parameter's name that no other chart of this process has."""
    return f"{name}_{next(_NUMBERS)}"


@dataclass(frozen=True)
class Style:
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

    def groups(self, panel: Sequence[str], *more: str) -> list[str]:
        """Returns the columns that tell the series of all panels apart, and others."""
        return list(dict.fromkeys([*panel, *self.columns, *more]))

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
        other.pop("stroke", None)  # a hollow point has the colour of its series
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


def style_of(frame: pl.DataFrame, color: str, **legend: Any) -> Style:
    """Returns how the series of ``color``, and of ``origin`` where there are two, look.

    Names have their own colours; numbers are shades from dark to light, of two origins shades of
    blue (reference) and orange (yours).
    """
    both = "origin" in keys_of(frame) and frame["origin"].n_unique() == 2
    columns = tuple(dict.fromkeys([color, *(["origin"] if both else [])]))
    numbers = frame.schema[color].is_numeric()
    if numbers and both:
        frame, hue = _shades_of_origins(frame, color)
        return Style(frame, (*columns, "series"), both, hue, number_of("pick"))
    if numbers:
        domain = frame[color].unique().sort().to_list()
        scale = {"domain": domain, "scheme": {"name": "viridis", "extent": [0, 0.85]}}
        hue = {"field": color, "type": "ordinal", "title": words(color), "scale": scale}
    else:
        hue = scaled(color, colours_of(frame[color]), words(color))
    hue |= {"legend": legend} if legend else {}
    return Style(frame, columns, both, hue, number_of("pick"))


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
    style: Style | None = None

    def draw(
        self,
        rows: Rows,
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
        if self.style is not None and opacity is not None:
            encoding |= self.style.at(opacity)
            if self.style.both and mark["type"] == "area":
                channels = {"detail": ["origin"]} | channels
        axes = {name: encoding[name] for name in POSITIONS}
        encoding |= {name: channel(name, v, axes.get(name)) for name, v in channels.items()}
        encoding = {name: its for name, its in encoding.items() if its is not None}
        parts: list[tuple[Any, Spec]] = [(rows, mark)]
        if split and self.style is not None and isinstance(rows, pl.DataFrame):
            parts = [*self.style.parts(rows, mark)]
        return [Layer(its, style, encoding) for its, style in parts]

    def means(
        self, rows: pl.DataFrame, tooltip: list[Spec], size: float, **line: Any
    ) -> list[Layer]:
        """Returns lines, with further channels of their own, and a point for each of the rows."""
        dots = self.draw(rows, POINT | {"size": size}, tooltip=tooltip)
        return self.draw(rows, LINE, **line) + dots

    def rules(self, values: Sequence[float], along: str = "y", **mark: Any) -> list[Layer]:
        """Returns dashed grey lines across the plot at values of an axis."""
        field = getattr(self, along)["field"]
        rows = pl.DataFrame({field: list(values)}, schema={field: pl.Float64})
        across: Spec = {"x" if along == "y" else "y": None}
        return self.draw(rows, DASHED | mark, None, **across)

    def intervals(
        self,
        points: pl.DataFrame,
        tooltip: list[Spec],
        along: str = "y",
        bar: tuple[float, float] = (2, 0.55),
        size: float = 60,
        **channels: Any,
    ) -> tuple[list[Layer], list[str]]:
        """Returns a point and a bar from ``low`` to ``high`` for each of the rows, and a note.

        Args:
            points: their ``value``, as :func:`~isolab.charts.frames.with_intervals` gives it, lies
                along the axis ``along``, within which bars are cut: the note says so.
            bar: its thickness and opacity.
            channels: of both.
        """
        within, note = bars(points, *getattr(self, along)["scale"]["domain"])
        ends: Spec = {along: "low", f"{along}2": "high"}
        mark = BAR | {"strokeWidth": bar[0]}
        drawn = self.draw(within, mark, bar[1], **ends, **channels)
        dots = self.draw(points, POINT | {"size": size}, tooltip=tooltip, **channels)
        return drawn + dots, note

    def labels(
        self, rows: Rows, text: str, opacity: float | None = 1.0, **options: Any
    ) -> list[Layer]:
        """Returns texts on a white halo, so that they read over lines.

        Args:
            options: of the font, or the channels ``x``, ``y`` and ``tooltip``.
        """
        channels = {k: v for k, v in options.items() if k in ("x", "y", "tooltip")}
        style = TEXT | {k: v for k, v in options.items() if k not in channels}
        halo: Spec = {"stroke": "white", "strokeWidth": 4, "strokeJoin": "round"}
        marks = [style | halo, style]
        return [
            layer
            for mark in marks
            for layer in self.draw(rows, mark, opacity, text=text, **channels)
        ]

    def top_edge(
        self, marks: pl.DataFrame, tooltip: list[Spec], pitch: float = 12, size: float = 46
    ) -> list[Layer]:
        """Returns the marks of runs beyond the axis, a line of them for each series."""
        if marks.is_empty():
            return []
        rows = marks.with_columns((8 + pitch * pl.col("line")).alias("pixel"))
        mark: Spec = {"type": "point", "size": size, "strokeWidth": 1.8}
        shape = edge_shape(marks[EDGE_MARK])
        return self.draw(rows, mark, split=False, tooltip=tooltip, y=pixels("pixel"), shape=shape)
