"""The assembler: layers into a chart, or into panels for each pair of values of two columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from isolab.charts.layers import Layer
from isolab.charts.series import Series, number_of
from isolab.charts.theme import Spec, panel_width, value_text

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


def facets(
    series: Series,
    layers: Sequence[Layer],
    title: str,
    notes: Sequence[str],
    height: int | None = None,
    zoom: bool = True,
) -> Chart:
    """Draws the layers: one panel for each value of the series' rows and columns, if any is named.

    A layer's rows go to the panel whose values they have; rows without those columns go to all. A
    pair of values that the series lack says "no rows". Axes have titles only at the left and at the
    bottom, and all panels share one legend. ``height`` is a panel's, in pixels.
    """
    tall = height or series.height
    if not series.panel:
        return figure([Panel("", layers, panel_width(1), tall)], title, notes, series, zoom=zoom)
    down, across = series.levels(series.rows), series.levels(series.columns)
    panels = []
    for i, below in enumerate(down):
        for j, beside in enumerate(across):
            both = ((series.rows, below), (series.columns, beside))
            values = {name: value for name, value in both if name is not None}
            drawn = [_in_panel(its, values, j == 0, i == len(down) - 1) for its in layers]
            drawn = [_NO_ROWS] if _of(series.points, values).is_empty() else drawn
            heading = "; ".join(value_text(value, name) for name, value in values.items())
            panels.append(Panel(heading, drawn, series.width, tall))
    return figure(panels, title, notes, series, len(across), zoom)


def figure(
    panels: Sequence[Panel],
    title: str,
    notes: Sequence[str],
    series: Series | None = None,
    columns: int = 1,
    zoom: bool = True,
    spacing: Any = None,
    **properties: Any,
) -> Chart:
    """Returns panels, from left to right, then down, as one chart; one may have no heading.

    The subtitle says ``notes``, those of layers, and what two origins look like.
    """
    charts = [_layered(p, zoom, None if i else series) for i, p in enumerate(panels)]
    alone = len(panels) == 1 and not panels[0].heading
    wide = sum(panel.width for panel in panels[:columns])
    letters = 92 if alone else max(54, min(130, (wide + 20 * columns) // 6))
    said = [*notes, *(its.note for p in panels for its in p.layers if len(its.rows))]
    said.append(series.note if series is not None else "")
    lines = [line for note in dict.fromkeys(said) for line in textwrap.wrap(note, letters)]
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


def _layered(panel: Panel, zoom: bool, series: Series | None) -> alt.LayerChart:
    """Returns a panel, its parameters declared by the first layer that has both axes.

    A mark with a point overlay becomes two in Vega-Lite, which would both declare them.
    """
    layers = [layer for layer in panel.layers if len(layer.rows)]
    units = [
        alt.Chart(layer.rows, alt.FacetedEncoding(**layer.encoding), mark=alt.MarkDef(**layer.mark))
        for layer in layers
    ]
    holder = next((i for i, layer in enumerate(layers) if _has_axes(layer)), 0)
    if series is not None and series.color is not None:
        picked: Any = {"fields": [series.color["field"]], "bind": "legend", "toggle": "true"}
        units[holder] = units[holder].add_params(alt.selection_point(name=series.pick, **picked))
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
    its = [pl.col(n).eq_missing(value) for n, value in values.items() if n in rows.columns]
    return rows.filter(*its) if its else rows


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
    return Layer(_of(layer.rows, values), layer.mark, encoding, layer.note)
