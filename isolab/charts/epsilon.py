"""Final losses over eps and width, or eps and loss scale: a map for each variant.

Each eps has a column and each width, or loss scale, a row, all of one size; between two of them the
axes are logarithmic, so that a line has its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.charts.panels import Place, small_multiples
from isolab.charts.parts import bound, ceiling, duplicates, spelled, summarized, tip, words

NO_EPS = "no eps"
_CELL = 25.0  # pixels that a number in a cell takes
_GAP = 0.25  # between the columns of eps 0 and of the least eps above it
_INK = {"light": ("#FFFFFF", "#000000"), "dark": ("#000000", "#FFFFFF")}  # and what is around it
_DASHES = {"hidden": [1, 0], "embedding": [6, 3], "readout": [2, 2], "vector": [8, 2, 2, 2]}
_LOST = "#D9D9D9"
_SPAN = 0.3  # nats/token that the colours span at least, so that noise does not look like a pattern


def loss_by_eps(
    cells: pl.DataFrame,
    over: str = "width",
    lines: pl.DataFrame | None = None,
    rows: str | None = None,
    columns: str | None = "variant",
    title: str = "",
) -> alt.ConcatChart:
    """Draws a map of the final loss: eps to the right, width or loss scale upwards, by variant.

    Eps 0 is a column of its own at the left; a variant without eps is one cell for all of them. A
    cell where a seed diverged is grey with a cross. A black line is where eps equals the gradient's
    root mean square: right of it eps rules.

    Args:
        cells: from :func:`isolab.analysis.epsilon.eps_map`; ``rows`` and ``columns`` too.
        over: "width" or "loss_scale", both positive.
        lines: from :func:`isolab.analysis.epsilon.eps_lines`: ``variant``, ``role``, ``over`` and
            ``eps``; drawn in the panels of their variant.

    Raises:
        ValueError: for missing columns, no rows, two rows of a cell, an ``over`` that is not a
            positive number, a negative eps, lines without panels of variants, lines whose variants
            have no panel, or a role of theirs that is unknown.
    """
    panel = [name for name in (rows, columns) if name is not None]
    require_columns(cells, [*panel, "variant", "eps", over, "loss"])
    if cells.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    duplicates(cells, [*panel, "eps", over], "name the column that differs as rows or columns")
    if lines is not None:
        require_columns(lines, ["variant", "role", over, "eps"])
        if "variant" not in panel:
            raise ValueError(
                f"lines need panels of variants, got rows {rows!r}, columns {columns!r}"
            )
        theirs, shown = set(lines["variant"]), set(cells["variant"])
        if not theirs & shown:
            raise ValueError(f"lines are of {sorted(theirs)}; panels are of {sorted(shown)}")
        unknown = sorted(set(lines["role"].cast(pl.String)) - set(_DASHES))
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; known: {sorted(_DASHES)}")
    across, up = _columns(cells["eps"]), _rungs(cells[over], over)
    placed = _numbered(_placed(cells, over, across, up))
    lost = placed.filter(~pl.col("loss").is_finite()).drop("loss", "number")
    kept = placed.filter(pl.col("loss").is_finite())
    best = bound(kept["loss"], "min", 0.0)
    top = _top(kept["loss"])
    x = alt.X("left:Q", title="eps (log axis, a column each)")
    y = up.axis(alt.Y("bottom:Q", title=f"{words(over)} (log axis, a row each)"))
    shade = alt.Color("loss:Q", title=["final loss", "(nats/token)"]).scale(
        scheme="viridis", reverse=True, domain=[best, top], clamp=True
    )
    where = [*map(tip, panel), tip("eps shown", name="eps"), tip(over, "~g")]
    tips = [*where, tip("loss", ".4f"), tip("seeds")] if "seeds" in placed.columns else where
    curves = None if lines is None else _curves(lines, over, across, up)

    def draw(place: Place) -> list[alt.Chart]:
        pixels = place.width / (across.ends[1] - across.ends[0])  # of a column
        its_x = place.x(across.axis(x, crowded=pixels < _CELL))
        ends = {"x2": "right:Q", "y2": "top:Q", "x": its_x, "y": place.y(y)}
        box: dict[str, Any] = {"stroke": "white", "strokeWidth": 0.8, "clip": True}
        layers = [
            alt.Chart(place.of(kept)).mark_rect(**box).encode(color=shade, tooltip=tips, **ends)
        ]
        gone = place.of(lost)
        if not gone.is_empty():
            where_lost = [*where, *([tip("diverged")] if "diverged" in gone.columns else [])]
            grey = alt.Chart(gone)
            layers.append(grey.mark_rect(fill=_LOST, **box).encode(tooltip=where_lost, **ends))
            cross = grey.mark_text(text="×", fontSize=15, fontWeight="bold", color="#333333")
            layers.append(cross.encode(x=alt.X("middle:Q"), y=alt.Y("height:Q")))
        if curves is not None:
            layers += _drawn(place.of(curves), x=alt.X("left:Q"), y=alt.Y("bottom:Q"))
        for ink, (colour, halo) in _INK.items():
            fits = (pl.col("right") - pl.col("left")) * pixels >= _CELL
            said = place.of(kept).filter(fits & (pl.col("ink") == ink))
            text = alt.Chart(said).encode(x=alt.X("middle:Q"), y=alt.Y("height:Q"), text="number:N")
            if not said.is_empty():
                around: dict[str, Any] = {
                    "strokeJoin": "round",
                    "stroke": halo,
                    "strokeWidth": 2,
                    "strokeOpacity": 0.5,
                }
                layers += [text.mark_text(fontSize=10, **around)] if lines is not None else []
                layers.append(text.mark_text(fontSize=10, color=colour))
        return layers

    notes = []
    if curves is not None:
        notes.append(
            "Black line: eps equals the root mean square of the gradient; right of it eps rules the"
            " update."
        )
    if (kept["loss"] > top).any():
        notes.append(f"Losses above {top:.2f} have the colour of {top:.2f}.")
    if not lost.is_empty():
        notes.append("Grey with a cross: a seed diverged.")
    with_eps = cells.filter(pl.col("eps").is_not_null())
    each = with_eps["eps"].n_unique() * cells[over].n_unique()
    if len(with_eps) < each * len(with_eps.select(panel or [pl.lit(0)]).unique()):
        notes.append("White: not run.")
    tall = {1: 300, 2: 240}.get(len(cells.select(rows).unique()) if rows else 1, 180)
    title = title or f"Final loss by eps and {words(over)}"
    return small_multiples(
        placed, rows, columns, draw, title, summarized(notes, 4), height=tall, zoom=False
    )


@dataclass(frozen=True)
class _Scale:
    """One axis: a place for each value, and logarithmic ones between them.

    logs: of the values, ascending; names: as the ticks say; zero: a place at 0 for the value 0.
    """

    logs: tuple[float, ...]
    names: tuple[str, ...]
    zero: bool = False

    @property
    def places(self) -> np.ndarray:
        """Returns the places of the values but 0."""
        return np.arange(len(self.logs)) + (1 + _GAP if self.zero else 0.0)

    @property
    def ends(self) -> tuple[float, float]:
        """Returns where the axis begins and ends."""
        places = self.places
        first = 0.0 if self.zero or not len(places) else float(places[0])
        return first - 0.5, (float(places[-1]) if len(places) else 0.0) + 0.5

    def at(self, log: float) -> float:
        """Returns the place of a value's logarithm; -inf for the value 0."""
        if log == -math.inf:
            return 0.0
        logs, places = np.array(self.logs), self.places
        if len(logs) == 1:
            return float(places[0] + log - logs[0])
        left = int(np.clip(np.searchsorted(logs, log, side="right") - 1, 0, len(logs) - 2))
        return float(places[left] + (log - logs[left]) / (logs[left + 1] - logs[left]))

    def axis(self, channel: Any, crowded: bool = False) -> Any:
        """Returns the channel with this axis; ``crowded`` leaves names out where they overlap."""
        ticks = [*([0.0] if self.zero else []), *map(float, self.places)]
        said = "''"
        names = [*(["0"] if self.zero else []), *self.names]
        for tick, name in zip(ticks, names, strict=True):
            said = f"abs(datum.value - {tick!r}) < 1e-6 ? '{name}' : {said}"
        channel = channel.scale(domain=list(self.ends), nice=False, zero=False)
        if not ticks:
            return channel.axis(None)
        return channel.axis(
            values=ticks,
            tickCount=len(ticks),  # else Vega thins them
            labelExpr=said,
            grid=False,
            labelOverlap=crowded,
            labelFontSize=10,
            labelSeparation=1,
        )


def _columns(values: pl.Series) -> _Scale:
    eps = values.cast(pl.Float64).drop_nulls()
    bad = eps.filter(~(eps.is_finite() & (eps >= 0)))
    if len(bad):
        raise ValueError(f"eps must be 0 or above and finite, got {bad[0]}")
    logs = sorted({math.log10(value) for value in eps if value > 0})
    zero = bool((eps == 0).any()) and bool(logs)
    return _Scale(tuple(logs), tuple(f"1e{log:.3g}" for log in logs), zero)


def _rungs(values: pl.Series, over: str) -> _Scale:
    heights = values.cast(pl.Float64)
    bad = heights.filter(~(heights.is_finite() & (heights > 0)).fill_null(False))
    if len(bad):
        raise ValueError(f"{over} must be positive and finite, got {bad[0]}")
    logs = sorted({math.log2(value) for value in heights})
    if over == "loss_scale":
        return _Scale(tuple(logs), tuple(f"2^{log:.3g}" for log in logs))
    return _Scale(tuple(logs), tuple(f"{2**log:.4g}" for log in logs))


def _placed(cells: pl.DataFrame, over: str, across: _Scale, up: _Scale) -> pl.DataFrame:
    """Returns cells with their edges and middles."""
    rows = []
    for eps, height in cells.select(pl.col("eps", over).cast(pl.Float64)).rows():
        middle = across.at(math.log10(eps) if eps else -math.inf) if eps is not None else 0.0
        left, right = across.ends if eps is None else (middle - 0.5, middle + 0.5)
        place = up.at(math.log2(height))
        shown = NO_EPS if eps is None else f"{eps:.3g}"
        rows.append((left, right, place - 0.5, place + 0.5, (left + right) / 2, place, shown))
    names = ["left", "right", "bottom", "top", "middle", "height", "eps shown"]
    sides = pl.DataFrame(rows, schema=names, orient="row")
    return spelled(pl.concat([cells, sides], how="horizontal"))


def _numbered(placed: pl.DataFrame) -> pl.DataFrame:
    """Adds each cell's number and its ink."""
    kept = placed.filter(pl.col("loss").is_finite())["loss"]
    low = bound(kept, "min", 0.0)
    high = _top(kept)
    light = (pl.col("loss") - low) / (high - low) > 0.45  # of viridis, reversed
    whole = pl.when(pl.col("eps").is_null()).then(pl.lit(f", {NO_EPS}")).otherwise(pl.lit(""))
    number = pl.col("loss").map_elements(lambda loss: f"{loss:.2f}", return_dtype=pl.String)
    return placed.with_columns(
        pl.when(light).then(pl.lit("light")).otherwise(pl.lit("dark")).alias("ink"),
        pl.concat_str(number, whole).alias("number"),
    )


def _top(losses: pl.Series) -> float:
    """Returns the loss that has the last colour."""
    return max(ceiling(losses, losses), bound(losses, "min", 0.0) + _SPAN)


def _curves(lines: pl.DataFrame, over: str, across: _Scale, up: _Scale) -> pl.DataFrame:
    """Returns the lines' points at the places of the axes, close enough for straight pieces."""
    rows = []
    named = lines.with_columns(pl.col("role").cast(pl.String)).sort("variant", "role", over)
    for (variant, role), its in named.group_by(["variant", "role"], maintain_order=True):
        heights, logs = np.log2(its[over].to_numpy()), np.log10(its["eps"].to_numpy())
        for height in np.linspace(heights[0], heights[-1], 80):
            log = float(np.interp(height, heights, logs))
            place = across.at(log)
            if place >= 0.5 or not across.zero:  # not into the column of eps 0
                rows.append((variant, role, 10.0**log, place, up.at(float(height))))
    names = ["variant", "role", "eps", "left", "bottom"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _drawn(curves: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    if curves.is_empty():
        return []
    known = [role for role in _DASHES if role in curves["role"].unique()]
    dash = alt.StrokeDash(
        "role:N",
        scale=alt.Scale(domain=known, range=[_DASHES[role] for role in known]),
        title=["eps = gradient", "RMS of"],
        legend=alt.Legend(symbolType="stroke", symbolSize=500),  # wide enough for a dash and a gap
    )
    drawn = alt.Chart(curves).encode(x=x, y=y, order=alt.Order("bottom:Q"))
    tips = [tip("role"), tip("eps", ".3~e", "gradient RMS")]
    halo = drawn.mark_line(clip=True, color="white", strokeWidth=4, opacity=0.7)
    ink = drawn.mark_line(clip=True, color="black", strokeWidth=1.8)
    return [halo.encode(detail="role:N"), ink.encode(strokeDash=dash, tooltip=tips)]
