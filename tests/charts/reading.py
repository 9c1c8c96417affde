"""A chart read back: its specification, its panels and the rows that its marks draw."""

from __future__ import annotations

_LAST = [None, {}]  # a chart and its specification: making one takes longer than the rest


def spec_of(chart):
    if chart is not _LAST[0]:
        _LAST[:] = chart, chart.to_dict()
    return _LAST[1]


def drawn(chart, mark, panel=None, **with_mark):
    """Returns rows of every layer of one mark in a panel (by its title), or in all of them."""
    spec, wanted = spec_of(chart), {"type": mark} | with_mark
    return [
        spec["datasets"][layer.get("data", part.get("data", spec.get("data")))["name"]]
        for part in spec.get("concat", [spec])
        if panel is None or part["title"]["text"] == panel
        for layer in part["layer"]
        if all(layer["mark"].get(name) == value for name, value in wanted.items())
    ]


def titles(chart):
    """Returns the titles of a chart's panels, in order."""
    return [panel["title"]["text"] for panel in spec_of(chart)["concat"]]


def subtitle(chart):
    """Returns what a chart says under its title."""
    return " ".join(spec_of(chart)["title"].get("subtitle", []))
