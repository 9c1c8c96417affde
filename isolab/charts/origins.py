"""Whose runs they are: the reference results' or the reader's own, told apart in one chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from isolab.charts.parts import NAMES, Faded, colour, log_axis, log_domain, words

ORIGINS = tuple(NAMES["origin"])  # values of the column "origin", which a frame may have
_APART = 0.09  # octaves between series at one width
_RAMPS = {"reference": ("#08306B", "#6BAED6"), "yours": ("#7F2704", "#FD8D3C")}


@dataclass(frozen=True)
class Series:
    """How the series of a chart look, and the columns that tell them apart.

    ``frame`` holds the column ``series``; ``both`` says whether two origins are drawn.
    """

    frame: pl.DataFrame
    columns: tuple[str, ...]
    both: bool
    color: alt.Color
    pick: alt.Parameter
    faded: Faded

    @property
    def note(self) -> list[str]:
        """Returns what to say of the two origins."""
        return ["Dashed and hollow: reference runs; solid and filled: yours."] if self.both else []

    def width_axis(self, points: pl.DataFrame) -> alt.X:
        """Returns the axis of ``at``, with ticks at the widths.

        Raises:
            ValueError: for a width that is not positive.
        """
        x = log_axis("at", points["width"], "width (log2 axis)", format="d")
        domain = log_domain("at", points["at"])
        return x.scale(type="log", base=2, domain=domain, nice=False)

    def apart(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns the rows with ``at``: widths moved so that series do not cover each other."""
        on = list(self.columns)
        order = self.frame.select(on).unique().sort(on).with_row_index("turn")
        turns = pl.col("turn").cast(pl.Float64) - (len(order) - 1) / 2
        width = pl.col("width").cast(pl.Float64)
        return frame.join(order, on=on, how="left", maintain_order="left").with_columns(
            width, (width * (turns * _APART * math.log(2)).exp()).alias("at")
        )

    def parts(
        self, frame: pl.DataFrame
    ) -> list[tuple[pl.DataFrame, dict[str, Any], dict[str, Any]]]:
        """Returns the rows of each origin with the properties of its lines and of its points."""
        if not self.both:
            return [(frame, {}, {"filled": True})]
        reference = pl.col("origin") == "reference"
        dashed: dict[str, Any] = {"strokeDash": [5, 3]}
        hollow: dict[str, Any] = {"filled": False, "fill": "white"}
        return [
            (frame.filter(reference), dashed, hollow),
            (frame.filter(~reference), {}, {"filled": True}),
        ]


def origins(frame: pl.DataFrame) -> list[str]:
    """Returns the column by which rows of two origins must be told apart, or none.

    Raises:
        ValueError: for a value of ``origin`` that is not one of :data:`ORIGINS`.
    """
    if "origin" not in frame.columns:
        return []
    unknown = [v for v in frame["origin"].unique().to_list() if v not in ORIGINS]
    if unknown:
        raise ValueError(f"unknown origin {unknown[0]!r}; known: {list(ORIGINS)}")
    return ["origin"]


def series(frame: pl.DataFrame, color: str) -> Series:
    """Returns how the series of ``color``, and of ``origin`` where there are two, look.

    Numbers of two origins are shades of blue (reference) and orange (yours).
    """
    both = bool(origins(frame)) and frame["origin"].n_unique() == 2
    columns = tuple(dict.fromkeys([color, *(["origin"] if both else [])]))
    if not both or color == "origin" or not frame.schema[color].is_numeric():
        return Series(frame, columns, both, *colour(frame[color], color))
    named: list[tuple[str, Any]] = []
    hexes: list[str] = []
    labels: list[str] = []
    for origin in ORIGINS:
        levels = frame.filter(pl.col("origin") == origin)[color].unique().sort().to_list()
        named += [(origin, level) for level in levels]
        labels += [f"{level:,g}" + (", yours" if origin == "yours" else "") for level in levels]
        hexes += _ramp(*_RAMPS[origin], len(levels))
    table = pl.DataFrame(
        {
            "origin": [origin for origin, _ in named],
            color: [level for _, level in named],
            "series": pl.Series(labels, dtype=pl.Enum(labels)),
        },
        schema_overrides={color: frame.schema[color], "origin": frame.schema["origin"]},
    )
    frame = frame.join(table, on=["origin", color], how="left", maintain_order="left")
    hue, pick, faded = colour(frame["series"], "series")
    hue = hue.scale(domain=labels, range=hexes).title(words(color))
    return Series(frame, (*columns, "series"), both, hue, pick, faded)


def _ramp(first: str, last: str, count: int) -> Sequence[str]:
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (first, last)]
    parts = [i / max(count - 1, 1) for i in range(count)]
    mixed = [[round(a + (b - a) * t) for a, b in zip(*ends, strict=True)] for t in parts]
    return [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in mixed]
