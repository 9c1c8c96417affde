"""Heat maps: a place for each value of two axes, logarithmic ones between them, lines over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.charts.channels import axis, scaled, tips
from isolab.charts.frames import ceiling, extent
from isolab.charts.layers import Layer, Plot
from isolab.charts.theme import LINE, Spec

CELL = 25.0  # pixels that a number in a cell takes
SPAN = 0.3  # nats/token that the colours span at least, so that noise does not look like a pattern
DASHES = {"hidden": [1, 0], "embedding": [6, 3], "readout": [2, 2], "vector": [8, 2, 2, 2]}
_GAP = 0.25  # between the places of 0 and of the least value above it
_INK = {True: ("#FFFFFF", "#000000"), False: ("#000000", "#FFFFFF")}  # and what is around it
_BOX: Spec = {"type": "rect", "stroke": "white", "strokeWidth": 0.8, "clip": True}


@dataclass(frozen=True)
class Places:
    """One axis: a place for each value, and logarithmic ones between them.

    Attributes:
        places: by the values' logarithms, ascending; of the value 0, -inf.
        names: as the ticks say.
    """

    places: Mapping[float, float]
    names: Sequence[str]

    @property
    def ends(self) -> tuple[float, float]:
        """Where the axis begins and ends."""
        all_places = [*self.places.values()] or [0.0]
        return all_places[0] - 0.5, all_places[-1] + 0.5

    def at(self, log: float) -> float:
        """Returns the place of a value's logarithm; of the value 0, -inf, it is 0."""
        if log == -math.inf:
            return 0.0
        logs = [its for its in self.places if its > -math.inf]
        if len(logs) == 1:
            return self.places[logs[0]] + log - logs[0]
        left = int(np.clip(np.searchsorted(logs, log, side="right") - 1, 0, len(logs) - 2))
        low, high = logs[left : left + 2]
        return self.places[low] + (log - low) / (high - low)

    def axis(self, field: str, title: str, crowded: bool = False) -> Spec:
        """Returns the position channel; ``crowded`` leaves names out where they overlap."""
        ticks, label = [*self.places.values()], "''"
        for tick, name in zip(ticks, self.names, strict=True):
            label = f"abs(datum.value - {tick!r}) < 1e-6 ? '{name}' : {label}"
        style: Spec = {"values": ticks, "labelExpr": label, "grid": False, "labelOverlap": crowded}
        style |= {"tickCount": len(ticks), "labelFontSize": 10, "labelSeparation": 1}
        return axis(field, title, self.ends, **style) | ({} if ticks else {"axis": None})


def places_of(
    values: pl.Series, name: str, log: Callable[[float], float], text: str, zero: bool = False
) -> Places:
    """Returns the axis of a column's values.

    Args:
        values: positive numbers; where ``zero``, also 0, and nulls, which are left out.
        name: of the column, for messages.
        log: the logarithm of the axis, such as ``math.log2``.
        text: a format of a tick, of its logarithm as ``log`` or its ``value``.
        zero: whether 0 has a place.

    Raises:
        ValueError: for a value that is not such a number.
    """
    numbers = values.cast(pl.Float64)
    numbers = numbers.drop_nulls() if zero else numbers
    fine = numbers.is_finite() & ((numbers >= 0) if zero else (numbers > 0))
    bad = numbers.filter(~fine.fill_null(False))
    if len(bad):
        allowed = "0 or above and finite" if zero else "positive and finite"
        raise ValueError(f"{name} must be {allowed}, got {bad[0]}")
    levels = {log(value): value for value in sorted(numbers) if value > 0}
    names = [text.format(log=at, value=value) for at, value in levels.items()]
    if not levels or not (numbers == 0).any():
        return Places({at: float(i) for i, at in enumerate(levels)}, names)
    above = {at: i + 1 + _GAP for i, at in enumerate(levels)}
    return Places({-math.inf: 0.0} | above, ["0", *names])


def top_loss(losses: pl.Series) -> float:
    """Returns the loss that has the last colour."""
    return max(ceiling(losses, losses), extent(losses, low=0.0)[0] + SPAN)


def heat_map(
    plot: Plot, cells: pl.DataFrame, where: list[Any], pixels: float, lines: pl.DataFrame | None
) -> list[Layer]:
    """Returns a map of losses: coloured cells with numbers, lost cells with crosses, and lines.

    Args:
        plot: its x is the column ``left``, its y ``bottom``.
        cells: their edges ``left``, ``right``, ``bottom`` and ``top``, middles ``middle`` and
            ``height``, ``loss`` (not finite where lost) and ``suffix``, which follows the number.
        where: tooltip entries that name a cell.
        pixels: that a column is wide; numbers are drawn where they have room.
        lines: ``role``, ``eps``, ``left`` and ``bottom``, or None.
    """
    lost = cells.filter(~pl.col("loss").is_finite()).drop("loss")
    found = cells.filter(pl.col("loss").is_finite())
    low, high = extent(found["loss"], low=0.0)[0], top_loss(found["loss"])
    number = pl.col("loss").map_elements(lambda loss: f"{loss:.2f}", return_dtype=pl.String)
    light = (pl.col("loss") - low) / (high - low) > 0.45  # of viridis, reversed
    found = found.with_columns(
        light.alias("light"), pl.concat_str(number, "suffix").alias("number")
    )
    scheme = {"scheme": "viridis", "reverse": True, "domain": [low, high], "clamp": True}
    shade: Spec = {"field": "loss", "type": "quantitative", "title": ["final loss", "(nats/token)"]}
    ends: Spec = {"x2": "right", "y2": "top"}
    more = [("loss", ".4f"), "seeds"] if "seeds" in cells.columns else []
    shade["scale"] = scheme
    layers = plot.draw(found, _BOX, color=shade, tooltip=tips(*where, *more), **ends)
    more = ["diverged"] if "diverged" in lost.columns else []
    grey = _BOX | {"fill": "#D9D9D9"}
    layers += plot.draw(lost, grey, tooltip=tips(*where, *more), **ends)
    middle: Spec = {"x": "middle", "y": "height"}
    cross = {"type": "text", "text": "×", "fontSize": 15, "fontWeight": "bold", "color": "#333333"}
    layers += plot.draw(lost, cross, **middle)
    if lines is not None and not lines.is_empty():
        layers += _lines(plot, lines)
    room = found.filter((pl.col("right") - pl.col("left")) * pixels >= CELL)
    for is_light, (ink, around) in _INK.items():
        its = room.filter(pl.col("light") == is_light)
        halo: Spec = {"stroke": around, "strokeWidth": 2, "strokeOpacity": 0.5}
        halo["strokeJoin"] = "round"
        for style in [*([halo] if lines is not None else []), {"color": ink}]:
            text: Spec = {"type": "text", "fontSize": 10, **style}
            layers += plot.draw(its, text, text="number", **middle)
    return layers


def _lines(plot: Plot, lines: pl.DataFrame) -> list[Layer]:
    known = {role: dash for role, dash in DASHES.items() if role in lines["role"].unique()}
    legend = {"symbolType": "stroke", "symbolSize": 500}  # wide enough for a dash and a gap
    dash = scaled("role", known, ["eps = gradient", "RMS of"], **legend)
    tooltip = tips("role", ("eps", ".3~e", "gradient RMS"))
    halo = LINE | {"color": "white", "strokeWidth": 4, "opacity": 0.7}
    ink = LINE | {"color": "black", "strokeWidth": 1.8}
    return [
        *plot.draw(lines, halo, detail="role", order="bottom"),
        *plot.draw(lines, ink, strokeDash=dash, order="bottom", tooltip=tooltip),
    ]
