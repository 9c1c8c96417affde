"""Layers of a chart: marks with their rows, drawn on the axes of a plot.

They are plain Vega-Lite, made without a check at each step, so that the lab can draw with them
while a slider moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.charts.channels import POSITIONS, channel, edge_shape, pixels
from isolab.charts.frames import EDGE_MARK, MAX_ROWS, bars, some_of
from isolab.charts.series import Series
from isolab.charts.theme import BAR, DASHED, LINE, POINT, TEXT, Spec

Rows = pl.DataFrame | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Layer:
    """One mark, its rows (a frame or plain dicts), their encoding, and what to say of them."""

    rows: Rows
    mark: Spec
    encoding: Spec
    note: str = ""

    def to_dict(self) -> Spec:
        """Returns the layer as plain Vega-Lite, its rows in it."""
        rows = self.rows.to_dicts() if isinstance(self.rows, pl.DataFrame) else self.rows
        return {"data": {"values": rows}, "mark": self.mark, "encoding": self.encoding}


@dataclass(frozen=True)
class Plot:
    """The axes of a chart and its series: what its layers share.

    A layer's ``x`` and ``y`` are the axes, another column on the same axis (by its name), a number
    of pixels, a channel of its own, or None for none.
    """

    x: Spec
    y: Spec
    series: Series | None = None

    def draw(
        self,
        rows: Rows,
        mark: Spec,
        opacity: float | None = 1.0,
        split: bool = True,
        note: str = "",
        **channels: Any,
    ) -> list[Layer]:
        """Returns a layer of the series, or, where ``split``, one for each of two origins.

        ``opacity`` is that of series that the legend selects; None is for no colour of the series.
        The chart says ``note`` below its title, where there are rows. ``channels`` are encodings by
        column name, constant or in full.
        """
        encoding: Spec = {"x": self.x, "y": self.y}
        if mark["type"] == "point" and len(rows) > MAX_ROWS:
            note = " ".join([note, f"{MAX_ROWS:,} of {len(rows):,} points are drawn."]).strip()
            rows = some_of(rows)
        parts: list[tuple[Any, Spec]] = [(rows, mark)]
        if self.series is not None:
            if opacity is not None:
                encoding |= self.series.at(opacity)
                if self.series.both and mark["type"] == "area":
                    channels = {"detail": ["origin"]} | channels
            if split and isinstance(rows, pl.DataFrame):
                parts = [*self.series.parts(rows, mark)]
        axes = {name: encoding[name] for name in POSITIONS}
        encoding |= {name: channel(name, v, axes.get(name)) for name, v in channels.items()}
        encoding = {name: its for name, its in encoding.items() if its is not None}
        return [Layer(its, style, encoding, note) for its, style in parts]

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
    ) -> list[Layer]:
        """Returns a point at ``value`` and a bar from ``low`` to ``high`` for each of the rows.

        Bars are cut at the ends of the axis ``along``, and a note says so. ``bar`` is their
        thickness and opacity.
        """
        within, note = bars(points, *getattr(self, along)["scale"]["domain"])
        ends: Spec = {along: "low", f"{along}2": "high"}
        mark = BAR | {"strokeWidth": bar[0]}
        drawn = self.draw(within, mark, bar[1], note=note, **ends, **channels)
        return drawn + self.draw(points, POINT | {"size": size}, tooltip=tooltip, **channels)

    def labels(
        self, rows: Rows, text: str, opacity: float | None = 1.0, **options: Any
    ) -> list[Layer]:
        """Returns texts on a white halo; options of the font, or channels x, y and tooltip."""
        channels = {k: v for k, v in options.items() if k in ("x", "y", "tooltip")}
        style = TEXT | {k: v for k, v in options.items() if k not in channels}
        halo: Spec = {"stroke": "white", "strokeWidth": 4, "strokeJoin": "round"}
        marks = [style | halo, style]
        return [its for m in marks for its in self.draw(rows, m, opacity, text=text, **channels)]

    def moved_labels(
        self, rows: pl.DataFrame, text: str, by: Sequence[str], **options: Any
    ) -> list[Layer]:
        """Returns labels whose options of the font that ``by`` names are columns of the rows."""
        layers = []
        for values, its in rows.group_by(by, maintain_order=True):
            layers += self.labels(its, text, **options, **dict(zip(by, values, strict=True)))
        return layers

    def top_edge(
        self,
        marks: pl.DataFrame,
        tooltip: list[Spec],
        note: str,
        pitch: float = 12,
        size: float = 46,
    ) -> list[Layer]:
        """Returns the marks of runs beyond the axis, a line of them for each series."""
        rows = marks.with_columns((8 + pitch * pl.col("line")).alias("pixel"))
        mark: Spec = {"type": "point", "size": size, "strokeWidth": 1.8}
        own: Spec = {"y": pixels("pixel"), "shape": edge_shape(marks[EDGE_MARK])}
        return self.draw(rows, mark, split=False, note=note, tooltip=tooltip, **own)
