"""A look inside a run while it trains: what a step does to each layer, and the factors' spectra."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from isolab.charts.channels import axis, names_axis, scaled, tips
from isolab.charts.figure import Chart, Panel, figure
from isolab.charts.frames import decades, extent, finite
from isolab.charts.layers import Plot
from isolab.charts.theme import LINE, NAMED_COLOURS, OTHER_COLOURS, POINT, Spec

_NAMES = 95  # pixels for the names of layers
_MOST_LAYERS = 26  # names that there is room for
_LEAST = 1e-7  # float32 tells no smaller eigenvalue of a factor from 0
_POINTS = 40  # of a spectrum, evenly spaced on the log axis
_SHAPES = {"embedding": "square", "hidden": "circle", "readout": "diamond", "vector": "triangle-up"}
_DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2]]
_KINDS = {"qkv": 0, "out": 1, "up": 2, "down": 3}  # the four matrices of a block, by colour
_LEGEND: dict[str, Any] = {
    "orient": "bottom", "direction": "horizontal", "columns": 4, "labelFontSize": 10,
    "columnPadding": 6, "symbolSize": 60,
}  # fmt: skip


def layers_inside(frame: pl.DataFrame) -> Chart:
    """Draws, per layer from the input down, how far a step moves it and along its inputs or not.

    Left: root mean square of a step's change over that of the parameter; right: the change's
    alignment with what enters the layer, 1/2 none and 1 full. What cannot be drawn is named.

    Args:
        frame: ``step``, ``layer``, ``role``, ``relative_update`` and ``alignment``, a row per
            layer, as ``layers`` of :class:`isolab.measure.inside.Inside`.

    Raises:
        ValueError: for rows of several steps.
    """
    values = {"size": "relative_update", "alignment": "alignment"}
    points = finite(frame, ["step", "layer", "role"], values)
    steps = points["step"].unique().sort().to_list()
    if len(steps) != 1:
        raise ValueError(f"the frame has steps {steps}; allowed: one step")
    crowded = len(points) > _MOST_LAYERS
    points = points.filter(pl.col("role") != "vector") if crowded else points
    points = points.with_columns(
        pl.when(pl.col("size") > 0).then("size").alias("size"),
        pl.col("alignment").clip(0.0, 1.0).alias("drawn"),
    )
    names = points["layer"].to_list()
    lost = points.filter(pl.col("size").is_null())["layer"].to_list()
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    notes = [
        "At the peak rate. Right: 1/2, no alignment; 1, full.",
        "The norms' gains are left out." if crowded else "",
        "An alignment below 0 is drawn at 0." if (points["alignment"] < 0).any() else "",
        f"Nothing that can be drawn: {', '.join(lost[:3])}{more}." if lost else "",
    ]
    shapes = {role: its for role, its in _SHAPES.items() if role in points["role"]}
    colours = {role: NAMED_COLOURS[role] for role in shapes}
    style: Spec = {"color": scaled("role", colours, **_LEGEND)}
    style["shape"] = scaled("role", shapes, **_LEGEND)
    style["tooltip"] = tips(
        "layer", "role", ("size", ".2e", "change over size"), ("alignment", ".3f")
    )
    low, high = decades(points["size"])
    ticks = [10.0**k for k in range(low, high + 1)]
    sizes = axis("size", None, [ticks[0], ticks[-1]], 10, values=ticks, format="~g")
    along = axis("drawn", None, [0, 1.02], values=[0, 0.5, 1], format="~g")
    font: Any = {"labelLimit": _NAMES, "labelFontSize": 10}
    font["labelExpr"] = "replace(datum.label, 'blocks/', '')"
    left = names_axis("layer", names, labels=True, minExtent=_NAMES, **font)
    right = names_axis("layer", names, labels=False, minExtent=0, **font)
    dot = POINT | {"size": 45, "opacity": 1, "clip": False}
    plots = Plot(sizes, left), Plot(along, right)
    of_size = plots[0].draw(points.drop_nulls("size"), dot, **style)
    of_alignment = plots[1].draw(points.drop_nulls("drawn"), dot, **style)
    height = max(len(names) * (14 if len(names) <= _MOST_LAYERS else 11), 60)
    panels = [
        Panel("change of a step / size", of_size, 118, height),
        Panel("alignment", plots[1].rules([0.5, 1.0], "x") + of_alignment, 78, height),
    ]
    ends = points.drop_nulls("size").sort("size").select("size", "layer").rows()
    smallest, largest = (f"{ends[i][0]:.2g}, {ends[i][1]}" if ends else "unknown" for i in (0, -1))
    description = (
        f"Per layer after {steps[0]} steps: relative size of a step's change, and its alignment."
        f" Smallest change {smallest}; largest {largest}."
    )
    heading, own = f"Inside the layers, step {steps[0]}", Spec(spacing=8, description=description)
    return figure(panels, heading, notes, columns=2, zoom=False, **own)


def spectra(frame: pl.DataFrame, note: str = "") -> Chart:
    """Draws eigenvalues of each hidden matrix's two factors, over the largest, by their place.

    A steep line: few directions hold all of what enters the layer (or of its gradients), and a step
    that whitens, as IsoAdam's, differs most from one that does not. Colour: which matrix; dashes:
    which block.

    Args:
        frame: ``layer``, ``side``, ``index`` and ``eigenvalue``, as ``spectra`` of
            :class:`isolab.measure.inside.Inside`.
        note: stands below the title, such as what was left out.

    Raises:
        ValueError: for no eigenvalue that is finite.
    """
    points = finite(frame, ["layer", "side", "index"], {"eigenvalue": "eigenvalue"})
    points = points.drop_nulls("eigenvalue")
    if points.is_empty():
        raise ValueError("nothing to draw: no eigenvalue of the frame is finite")
    path = pl.col("layer").str.split("/")
    points = _thinned(points).with_columns(
        path.list.last().alias("matrix"),
        path.list.get(1, null_on_oob=True).fill_null("none").alias("block"),
        pl.col("eigenvalue").clip(_LEAST, 1.0).alias("drawn"),
    )
    matrices = points["matrix"].unique(maintain_order=True).to_list()
    hues = {m: OTHER_COLOURS[_KINDS.get(m, 4 + i) % 8] for i, m in enumerate(matrices)}
    blocks = sorted(points["block"].unique(), key=lambda name: (len(name), name))
    dashes = {b: _DASHES[i % len(_DASHES)] for i, b in enumerate(blocks)}
    stroke: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 1.6}
    black = {"symbolStrokeColor": "black", "symbolSize": 150, "titleOrient": "left"}
    style: Spec = {"color": scaled("matrix", hues, **_LEGEND | stroke)}
    legend = _LEGEND | stroke | black | {"titleFontSize": 10}
    style["strokeDash"] = scaled("block", dashes, "block", **legend)
    largest = extent(points["index"])[1]
    places = [2.0**k for k in range(0, 12, 2) if 2.0**k <= largest]
    x = axis("index", "place", [1.0, max(largest, 2.0)], 2, values=places, format="~g")
    powers = [10.0**k for k in range(round(math.log10(_LEAST)), 1, 2)]
    tooltip = tips("layer", "side", ("index", "d", "place"), ("eigenvalue", ".2e"))
    shared: dict[str, Any] = {"detail": "layer", "tooltip": tooltip}
    panels: list[Panel] = []
    for side in points["side"].unique(maintain_order=True):
        axis_y: Spec = {"values": powers, "format": "~e", "labels": not panels}
        plot = Plot(x, axis("drawn", None, [_LEAST, 1.0], 10, **axis_y))
        its = points.filter(pl.col("side") == side)
        lines = plot.draw(its, LINE | {"strokeWidth": 1.6}, **style, **shared)
        dots = plot.draw(its, POINT | {"opacity": 0, "size": 40}, **shared)  # for the tooltip
        panels.append(Panel(side, lines + dots, 120, 150))
    rounded = (points["eigenvalue"] < _LEAST).any()
    notes = [
        "Over the largest eigenvalue, on a held-out batch.",
        f"{note[0].upper()}{note[1:]}." if note else "",
        f"At the bottom: below {_LEAST:.0e}, rounding." if rounded else "",
    ]
    wide = points.filter(pl.col("eigenvalue") >= 0.01).group_by("layer", "side")
    counts = wide.agg(pl.col("index").max())["index"]
    description = (
        "Eigenvalues of the input and output factors of hidden matrices, falling with their place."
        " From {:.0f} to {:.0f} eigenvalues of a factor are a hundredth of its largest or more."
    ).format(*extent(counts, 0, 0))
    own = Spec(spacing=10, description=description)
    return figure(panels, "Spectra of the factors", notes, columns=2, zoom=False, **own)


def _thinned(points: pl.DataFrame) -> pl.DataFrame:
    """Keeps about ``_POINTS`` places of each spectrum, even on a log axis, and its ends."""
    groups = ["layer", "side"]
    last = pl.col("index").max().over(groups)
    slot = (pl.col("index").log() / last.log().clip(lower_bound=1e-9) * _POINTS).round()
    first = pl.col("index").cum_count().over([*groups, "slot"]) == 1
    some = points.with_columns(slot.alias("slot")).filter(first | (pl.col("index") == last))
    return some.drop("slot")
