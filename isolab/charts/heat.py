"""A heat map of losses: a place for each value of two axes, logarithmic ones between, and lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.channels import axis, scaled, tips
from isolab.charts.figure import Chart, facets
from isolab.charts.frames import ceiling, check_numbers, extent, require_rows
from isolab.charts.layers import Layer, Plot
from isolab.charts.series import series_of
from isolab.charts.theme import LINE, Spec, spelled, words

CELL = 25.0  # pixels that a number in a cell takes
SPAN = 0.3  # nats/token that the colours span at least, so that noise does not look like a pattern
DASHES = {"hidden": [1, 0], "embedding": [6, 3], "readout": [2, 2], "vector": [8, 2, 2, 2]}
_GAP = 0.25  # between the places of 0 and of the least value above it
_BOX: Spec = {"type": "rect", "stroke": "white", "strokeWidth": 0.8, "clip": True}
_TEXT: Spec = {"type": "text", "fontSize": 10}


def loss_by_eps(
    cells: pl.DataFrame,
    over: str = "width",
    lines: pl.DataFrame | None = None,
    rows: str | None = None,
    title: str = "",
) -> Chart:
    """Draws a map of the final loss: eps to the right, width or loss scale upwards, by variant.

    Eps 0 is a column of its own at the left; a variant without eps is one cell for all of them. A
    cell where a seed diverged is grey with a cross. A black line is where eps equals the gradient's
    root mean square: right of it eps rules.

    Args:
        cells: from :func:`isolab.analysis.epsilon.eps_map`; ``rows`` too, which may be ``origin``.
        over: "width" or "loss_scale", both positive.
        lines: from :func:`isolab.analysis.epsilon.eps_lines`: ``variant``, ``role``, ``over`` and
            ``eps``; drawn in the panels of their variant, and of their ``origin`` if they have one.

    Raises:
        ValueError: for a negative eps, lines whose variants have no panel, or a role of theirs
            that is unknown.
    """
    require_rows(cells, ["variant", "eps", over, "loss"])
    series = series_of(cells, None, rows, "variant", unique=["eps", over])
    check_numbers("eps", cells["eps"].drop_nulls(), "finite and 0 or above")
    check_numbers(over, cells[over])
    across = _Places.of(cells["eps"], 10, "1e{log:.3g}")
    up = _Places.of(cells[over], 2, "2^{log:.3g}" if over == "loss_scale" else "{value:.4g}")
    pixels = series.width / (across.ends[1] - across.ends[0])  # of a column
    x = across.axis("left", "eps (log axis, a column each)", crowded=pixels < CELL)
    plot = Plot(x, up.axis("bottom", f"{words(over)} (log axis, a row each)"), series)
    placed = _placed(series.points, over, across, up)
    curves = None if lines is None else _curves(lines, cells["variant"], over, across, up)
    where = [*series.panel, ("shown", "", "eps"), (over, "~g")]
    layers = _layers(plot, placed, where, pixels, curves)
    with_eps = cells.drop_nulls("eps")
    each = with_eps["eps"].n_unique() * cells[over].n_unique()
    missing = each * len(with_eps.select(series.panel).unique()) > len(with_eps)
    title = title or f"Final loss by eps and {words(over)}"
    tall = {1: 300, 2: 240}.get(len(series.levels(rows)), 180)
    return facets(series, layers, title, ["White: not run."] * missing, tall, zoom=False)


@dataclass(frozen=True)
class _Places:
    """One axis: a place for each value, ascending, and logarithmic ones between; what ticks say."""

    places: dict[float, float]
    names: list[str]
    base: int

    @classmethod
    def of(cls, values: pl.Series, base: int, text: str) -> _Places:
        """Returns the axis of a column; ``text`` formats the ``value`` and ``log`` of a tick."""
        levels = [float(v) for v in values.drop_nulls().unique().sort()]
        gap = _GAP if 0.0 in levels and len(levels) > 1 else 0.0
        logs = [math.log(value, base) if value else 0.0 for value in levels]
        named = zip(levels, logs, strict=True)
        names = [text.format(value=value, log=log) if value else "0" for value, log in named]
        return cls({v: i + gap * (v > 0) for i, v in enumerate(levels)}, names, base)

    @property
    def ends(self) -> tuple[float, float]:
        """Where the axis begins and ends."""
        places = [*self.places.values()] or [0.0]
        return places[0] - 0.5, places[-1] + 0.5

    def at(self, logs: Any) -> Any:
        """Returns the places of logarithms, also beyond the ends."""
        known, places = zip(*((v, at) for v, at in self.places.items() if v), strict=True)
        own = np.log(known) / math.log(self.base)
        if len(own) == 1:
            return places[0] + logs - own[0]
        left = np.clip(np.searchsorted(own, logs, side="right") - 1, 0, len(own) - 2)
        return places[0] + left + (logs - own[left]) / (own[left + 1] - own[left])

    def axis(self, field: str, title: str, crowded: bool = False) -> Spec:
        """Returns the position channel; ``crowded`` leaves names out where they overlap."""
        ticks, label = [*self.places.values()], "''"
        for tick, name in zip(ticks, self.names, strict=True):
            label = f"abs(datum.value - {tick!r}) < 1e-6 ? '{name}' : {label}"
        style: Spec = {"values": ticks, "labelExpr": label, "grid": False, "labelOverlap": crowded}
        style |= {"tickCount": len(ticks), "labelFontSize": 10, "labelSeparation": 1}
        return axis(field, title, self.ends, **style) | ({} if ticks else {"axis": None})


def _placed(cells: pl.DataFrame, over: str, across: _Places, up: _Places) -> pl.DataFrame:
    """Returns cells with their edges and middles, eps in words, and the number in them."""
    none, kind = pl.col("eps").is_null(), dict[str, Any](default=None, return_dtype=pl.Float64)
    x = pl.col("eps").cast(pl.Float64).replace_strict(across.places, **kind)
    y = pl.col(over).cast(pl.Float64).replace_strict(up.places, **kind)
    shown = pl.col("eps").map_elements("{:.3g}".format, return_dtype=pl.String)
    number = pl.col("loss").map_elements("{:.2f}".format, return_dtype=pl.String)
    suffix = pl.when(none).then(pl.lit(", no eps")).otherwise(pl.lit(""))
    return cells.with_columns(
        left=pl.when(none).then(across.ends[0]).otherwise(x - 0.5),
        right=pl.when(none).then(across.ends[1]).otherwise(x + 0.5),
        bottom=y - 0.5,
        top=y + 0.5,
        height=y,
        shown=shown.fill_null("no eps"),
        number=pl.concat_str(number, suffix),
    ).with_columns(middle=(pl.col("left") + pl.col("right")) / 2)


def _curves(
    lines: pl.DataFrame, variants: pl.Series, over: str, across: _Places, up: _Places
) -> pl.DataFrame:
    """Returns the lines' points at the places of the axes, close enough for straight pieces."""
    require_columns(lines, ["variant", "role", over, "eps"])
    theirs, drawn = set(lines["variant"]), set(variants)
    if not theirs & drawn:
        raise ValueError(f"lines are of {sorted(theirs)}; panels are of {sorted(drawn)}")
    unknown = sorted(set(lines["role"].cast(pl.String)) - set(DASHES))
    if unknown:
        raise ValueError(f"unknown role {unknown[0]!r}; known: {sorted(DASHES)}")
    keys, curves = ["variant", "role", *(["origin"] if "origin" in lines.columns else [])], []
    for _, its in lines.sort(*keys, over).group_by(keys, maintain_order=True):
        logs = np.log2(its[over].to_numpy())
        heights = np.linspace(logs[0], logs[-1], 80)
        at = np.interp(heights, logs, np.log10(its["eps"].to_numpy()))
        places = {"eps": 10.0**at, "left": across.at(at), "bottom": up.at(heights)}
        curves.append(its.select(keys).head(1).join(pl.DataFrame(places), how="cross"))
    found = spelled(pl.concat(curves)).with_columns(pl.col("role").cast(pl.String))
    return found.filter(pl.col("left") >= 0.5) if 0.0 in across.places else found  # not into eps 0


def _layers(
    plot: Plot, cells: pl.DataFrame, where: list[Any], pixels: float, lines: pl.DataFrame | None
) -> list[Layer]:
    """Returns coloured cells, grey ones with a cross for lost losses, lines, and numbers.

    A column is so many ``pixels`` wide; numbers are drawn where they have room.
    """
    is_known = pl.col("loss").is_finite()
    lost, found = cells.filter(~is_known).drop("loss", "number"), cells.filter(is_known)
    low = extent(found["loss"], low=0.0)[0]
    high = max(ceiling(found["loss"], found["loss"]), low + SPAN)
    scale = {"scheme": "viridis", "reverse": True, "domain": [low, high], "clamp": True}
    title = ["final loss", "(nats/token)"]
    shade = {"field": "loss", "type": "quantitative", "title": title, "scale": scale}
    ends: Spec = {"x2": "right", "y2": "top"}
    middle: Spec = {"x": "middle", "y": "height"}
    cut = f"Losses above {high:.2f} have the colour of {high:.2f}."
    seeds, gone = ([n] if n in cells.columns else [] for n in ("seeds", "diverged"))
    of_cell = tips(*where, *([("loss", ".4f"), *seeds] if seeds else []))
    note = cut if (found["loss"] > high).any() else ""
    layers = plot.draw(found, _BOX, note=note, color=shade, tooltip=of_cell, **ends)
    note, grey = "Grey with a cross: a seed diverged.", _BOX | {"fill": "#D9D9D9"}
    layers += plot.draw(lost, grey, note=note, tooltip=tips(*where, *gone), **ends)
    cross = {"text": "×", "fontSize": 15, "fontWeight": "bold", "color": "#333333"}
    layers += plot.draw(lost, _TEXT | cross, **middle)
    layers += [] if lines is None else _lines(plot, lines)
    room = found.filter((pl.col("right") - pl.col("left")) * pixels >= CELL)
    light = (pl.col("loss") - low) / (high - low) > 0.45  # of viridis, reversed
    for its, ink, around in ((light, "#FFFFFF", "#000000"), (~light, "#000000", "#FFFFFF")):
        halo: Spec = {"stroke": around, "strokeWidth": 2, "strokeOpacity": 0.5}
        halo["strokeJoin"] = "round"
        for style in [*([] if lines is None else [halo]), {"color": ink}]:
            layers += plot.draw(room.filter(its), _TEXT | style, text="number", **middle)
    return layers


def _lines(plot: Plot, lines: pl.DataFrame) -> list[Layer]:
    known = {role: dash for role, dash in DASHES.items() if role in lines["role"].unique()}
    legend = {"symbolType": "stroke", "symbolSize": 500}  # wide enough for a dash and a gap
    dash = scaled("role", known, ["eps = gradient", "RMS of"], **legend)
    tooltip = tips("role", ("eps", ".3~e", "gradient RMS"))
    halo = LINE | {"color": "white", "strokeWidth": 4, "opacity": 0.7}
    ink = LINE | {"color": "black", "strokeWidth": 1.8}
    layers = plot.draw(lines, halo, detail="role", order="bottom")
    rms = "eps equals the root mean square of the gradient"
    note = f"Black line: {rms}; right of it eps rules the update."
    own: Spec = {"strokeDash": dash, "order": "bottom", "tooltip": tooltip}
    return layers + plot.draw(lines, ink, note=note, **own)
