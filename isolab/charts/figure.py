"""The assembler: layers into a chart, or into panels for each pair of values of two columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from isolab.charts.layers import Layer, Style, number_of
from isolab.charts.theme import HEIGHT, PANEL_HEIGHT, Spec, panel_width, value_text

Chart = alt.LayerChart | alt.ConcatChart
_NO_ROWS = Layer(
    pl.DataFrame({"text": ["no rows"]}),
    {"type": "text", "color": "#777777", "fontSize": 12},
    {"text": {"field": "text", "type": "nominal"}},
)


@dataclass(frozen=True)
class Panel:
    """Layers on one pair of axes, with a heading and a size in pixels."""

    heading: str
    layers: Sequence[Layer]
    width: int
    height: int


def panel_columns(rows: str | None, columns: str | None) -> list[str]:
    """Returns the columns that tell panels apart.

    Raises:
        ValueError: if both are the same.
    """
    if rows is not None and rows == columns:
        raise ValueError(f"rows and columns are both {rows!r}: name two columns, or only one")
    return [name for name in (rows, columns) if name is not None]


def panel_height(frame: pl.DataFrame, panel: Sequence[str]) -> int:
    """Returns how tall a panel is, in pixels: taller where there is only one."""
    return HEIGHT if len(frame.select(panel).unique() if panel else [0]) == 1 else PANEL_HEIGHT


def panel_pixels(frame: pl.DataFrame, columns: str | None) -> int:
    """Returns how wide a panel is, in pixels."""
    return panel_width(frame[columns].n_unique() if columns else 1)


def facets(
    frame: pl.DataFrame,
    layers: Sequence[Layer],
    title: str,
    notes: Sequence[str],
    style: Style | None = None,
    rows: str | None = None,
    columns: str | None = None,
    height: int | None = None,
    zoom: bool = True,
) -> Chart:
    """Draws the layers: one panel for each value of ``rows`` and ``columns``, if any is named.

    A layer's rows go to the panel whose values they have; rows without those columns go to all.
    Axes have titles only at the left and at the bottom, and all panels share one legend.

    Args:
        frame: tells which panels there are; a pair of values that it lacks says "no rows".
        layers: what is drawn, over all panels.
        title, notes: of the chart, and what stands below it.
        style: whose legend selects series.
        rows, columns: columns whose sorted values go down and across, or None.
        height: of a panel, in pixels.
        zoom: whether axes can be panned and zoomed.
    """
    panel = panel_columns(rows, columns)
    tall = height or panel_height(frame, panel)
    if not panel:
        return figure([Panel("", layers, panel_width(1), tall)], title, notes, style, zoom=zoom)
    down, across = _levels(frame, rows), _levels(frame, columns)
    panels = []
    for i, below in enumerate(down):
        for j, beside in enumerate(across):
            values = {n: v for n, v in ((rows, below), (columns, beside)) if n is not None}
            drawn = [_in_panel(its, values, j == 0, i == len(down) - 1) for its in layers]
            drawn = [_NO_ROWS] if _of(frame, values).is_empty() else drawn
            heading = "; ".join(value_text(v, name) for name, v in values.items())
            panels.append(Panel(heading, drawn, panel_width(len(across)), tall))
    return figure(panels, title, notes, style, len(across), zoom)


def figure(
    panels: Sequence[Panel],
    title: str,
    notes: Sequence[str],
    style: Style | None = None,
    columns: int = 1,
    zoom: bool = True,
    letters: int | None = None,
    spacing: Any = None,
    **properties: Any,
) -> Chart:
    """Returns panels as one chart with a title, a legend that selects series, and zoom.

    Args:
        panels: from left to right, then down; one without a heading is the whole chart.
        notes: what the subtitle says, wrapped at ``letters``.
        columns: how many panels stand side by side, ``spacing`` pixels apart.
        properties: of the chart, such as a description.
    """
    charts = [_layered(p, zoom, None if i else style) for i, p in enumerate(panels)]
    alone = len(panels) == 1 and not panels[0].heading
    wide = sum(panel.width for panel in panels[:columns])
    letters = letters or (92 if alone else max(60, min(130, (wide + 20 * columns) // 6)))
    lines = [line for note in notes for line in textwrap.wrap(note, letters)]
    heading: Any = {"text": title} | ({"subtitle": lines} if lines else {})
    if alone:
        return charts[0].properties(title=heading, **properties)
    gaps = spacing or {"row": 22, "column": 14}
    whole = alt.concat(*charts, columns=columns, align="each", spacing=gaps)
    shared = dict.fromkeys(["color", "shape", "strokeDash"], "shared")
    return whole.properties(title=heading, resolve=alt.Resolve(scale=shared), **properties)


def specification(
    layers: Sequence[Layer], title: str, notes: Sequence[str], **properties: Any
) -> Spec:
    """Returns the layers as one chart in plain Vega-Lite, made without a check.

    For charts that are redrawn while a slider moves: :func:`figure` takes a hundred times as long.
    """
    heading = {"text": title, "subtitle": list(notes)}
    return {"title": heading, **properties, "layer": [its.to_dict() for its in layers]}


def _layered(panel: Panel, zoom: bool, style: Style | None) -> alt.LayerChart:
    """Returns a panel, its parameters declared by the first layer that has both axes.

    A mark with a point overlay becomes two in Vega-Lite, which would both declare them.
    """
    layers = [layer for layer in panel.layers if len(layer.rows)]
    units = [
        alt.Chart(layer.rows, alt.FacetedEncoding(**layer.encoding), mark=alt.MarkDef(**layer.mark))
        for layer in layers
    ]
    holder = next((i for i, layer in enumerate(layers) if _has_axes(layer)), 0)
    if style is not None:
        picked: Any = {"fields": [style.color["field"]], "bind": "legend", "toggle": "true"}
        units[holder] = units[holder].add_params(alt.selection_point(name=style.pick, **picked))
    if zoom:
        zoomed: Any = {"bind": "scales", "zoom": "wheel![event.shiftKey]"}
        zooming = alt.selection_interval(name=number_of("zoom"), **zoomed)
        units[holder] = units[holder].add_params(zooming)
    chart = alt.layer(*units)
    assert isinstance(chart, alt.LayerChart)  # not a facet: no layer has one
    chart = chart.properties(width=panel.width, height=panel.height)
    if not panel.heading:
        return chart
    heading = alt.TitleParams(panel.heading, fontSize=12.5, offset=6, frame="group")
    return chart.properties(title=heading)


def _has_axes(layer: Layer) -> bool:
    axes = [layer.encoding.get(name, {}) for name in ("x", "y")]
    return all("scale" in its and its["scale"] is not None for its in axes)


def _of(rows: Any, values: dict[str, Any]) -> Any:
    """Returns the rows that belong to a panel; those without its columns belong to every one."""
    for column, value in values.items():
        if column in rows.columns:
            its = pl.col(column)
            rows = rows.filter(its.is_null() if value is None else its == value)
    return rows


def _in_panel(layer: Layer, values: dict[str, Any], left: bool, bottom: bool) -> Layer:
    """Returns a panel's part of a layer, axes with titles only at the left and at the bottom."""
    encoding = dict(layer.encoding)
    x, y = encoding.get("x", {}), encoding.get("y", {})
    if "title" in x and not bottom:
        encoding["x"] = {**x, "title": None}
    if "title" in y:
        # a label beyond the frame would lift this panel's heading over the others'
        style: Spec = {"labelBound": True} if left else {"labels": False, "ticks": False}
        axis = {**(y.get("axis") or {}), **style}
        encoding["y"] = {**y, "axis": axis, "title": y["title"] if left else None}
    return Layer(_of(layer.rows, values), layer.mark, encoding)


def _levels(frame: pl.DataFrame, column: str | None) -> list[Any]:
    return frame[column].unique().sort().to_list() if column else [None]
