"""Series of a chart: their rows ready to draw, what tells them apart, and how they look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.analysis.seeds import require_unique
from isolab.charts import theme
from isolab.charts.channels import scaled
from isolab.charts.frames import finite, with_intervals
from isolab.charts.theme import DASH, NAMES, Spec

_APART = 0.09  # octaves between series at one width
_REFERENCE: Spec = {"line": {"strokeDash": DASH}, "point": {"filled": False, "fill": "white"}}
# Equal parameters of two charts that are shown side by side would be linked.
_NUMBERS = itertools.count(1)


def number_of(name: str) -> str:
    """Returns a parameter's name that no other chart of this process has."""
    return f"{name}_{next(_NUMBERS)}"


def keys_of(frame: pl.DataFrame, *columns: str | None) -> list[str]:
    """Returns the columns, and "origin" where there is one, whose values must be known ones."""
    keys = [name for name in columns if name is not None]
    if "origin" in frame.columns:
        unknown = [v for v in frame["origin"].unique().to_list() if v not in NAMES["origin"]]
        if unknown:
            raise ValueError(f"unknown origin {unknown[0]!r}; known: {list(NAMES['origin'])}")
        keys.append("origin")
    return list(dict.fromkeys(keys))


@dataclass(frozen=True)
class Series:
    """The rows of a chart, in words, and how its series look.

    The values of the columns ``rows`` and ``columns`` go down and across the panels; ``keys`` name
    a row's panel, series and origin, ``apart`` what tells the series of a panel apart. ``both``:
    there are two origins, and ``series`` names shades of numbers. ``color`` is the colour's
    channel, ``pick`` the parameter that the legend selects series by.
    """

    points: pl.DataFrame
    rows: str | None
    columns: str | None
    keys: list[str]
    apart: list[str]
    both: bool
    color: Spec | None
    pick: str

    @property
    def note(self) -> str:
        """What to say of the two origins."""
        return "Dashed and hollow: reference runs; solid and filled: yours." if self.both else ""

    @property
    def panel(self) -> list[str]:
        """The columns that tell panels apart."""
        return [name for name in (self.rows, self.columns) if name is not None]

    @property
    def groups(self) -> list[str]:
        """The columns that tell the series of all panels apart."""
        return list(dict.fromkeys([*self.panel, *self.apart]))

    def levels(self, column: str | None) -> list[Any]:
        """Returns the sorted values of a column of panels; [None] of None."""
        return self.points[column].unique().sort().to_list() if column else [None]

    @property
    def height(self) -> int:
        """How tall a panel is, in pixels: taller where there is only one."""
        alone = not self.panel or len(self.points.select(self.panel).unique()) == 1
        return theme.HEIGHT if alone else theme.PANEL_HEIGHT

    @property
    def width(self) -> int:
        """How wide a panel is, in pixels."""
        return theme.panel_width(len(self.levels(self.columns)))

    def spread(
        self,
        rows: pl.DataFrame,
        on: Sequence[str],
        value: str,
        count: str = "seeds",
        /,
        **middle: pl.Expr,
    ) -> pl.DataFrame:
        """Returns ``mean`` or what is named, ``low``, ``high`` and a count, of series by ``on``."""
        its, each = pl.col(value), list(dict.fromkeys([*self.groups, *self.keys, *on]))
        ends: dict[str, Any] = {"low": its.min(), "high": its.max(), count: pl.len()}
        return rows.group_by(each).agg(**(middle or {"mean": its.mean()}), **ends).sort(each)

    def at(self, opacity: float) -> Spec:
        """Returns the channels of colour and of an opacity that falls where others are picked."""
        if self.color is None:
            return {}
        faded = {"condition": {"param": self.pick, "value": opacity}, "value": min(opacity, 0.07)}
        return {"color": self.color, "opacity": faded}

    def parts(self, rows: pl.DataFrame, mark: Spec) -> list[tuple[pl.DataFrame, Spec]]:
        """Returns rows and mark by origin: the reference's lines are dashed, its points hollow."""
        if not self.both or mark["type"] not in _REFERENCE or "origin" not in rows.columns:
            return [(rows, mark)]
        reference = pl.col("origin") == "reference"
        other = {"strokeWidth": 2, **mark, **_REFERENCE[mark["type"]]}
        other.pop("stroke", None)  # a hollow point has the colour of its series
        return [(rows.filter(reference), other), (rows.filter(~reference), mark)]

    def moved(self) -> pl.DataFrame:
        """Returns the points with ``at``: widths moved so that series do not cover each other."""
        order = self.points.select(self.apart).unique().sort(self.apart).with_row_index("turn")
        turns = pl.col("turn").cast(pl.Float64) - (len(order) - 1) / 2
        width = pl.col("width").cast(pl.Float64)
        return self.points.join(
            order, on=self.apart, how="left", maintain_order="left"
        ).with_columns(width, (width * (turns * _APART * math.log(2)).exp()).alias("at"))


def series_of(
    frame: pl.DataFrame,
    color: str | None,
    rows: str | None = None,
    columns: str | None = None,
    kept: Sequence[str] = (),
    values: Mapping[str, str] | None = None,
    *,
    allowed: str = "",
    interval: str = "",
    unique: Sequence[str] | None = None,
    legend: Spec | None = None,
) -> Series:
    """Returns the rows of a chart as series, told apart by the values of ``color``.

    Names have their own colours; numbers are shades from dark to light, of two origins shades of
    blue (reference) and orange (yours). Where ``values`` or the name of an ``interval`` is given,
    rows are cleaned as by :func:`~isolab.charts.frames.finite` or
    :func:`~isolab.charts.frames.with_intervals`, and ``kept`` names further columns to keep.

    Raises:
        ValueError: for rows and columns that are the same, an unknown origin, two rows of a series
            that share the columns ``unique``, and what cleaning refuses.
    """
    if rows is not None and rows == columns:
        raise ValueError(f"rows and columns are both {rows!r}: name two columns, or only one")
    keys = keys_of(frame, rows, columns, color)
    if interval:
        frame = with_intervals(frame, [*keys, *kept], interval)
    elif values:
        frame = finite(frame, [*keys, *kept], values, allowed)
    points = theme.spelled(frame)
    both = color is not None and "origin" in keys and points["origin"].n_unique() == 2
    apart = list(dict.fromkeys([*([color] if color else []), *(["origin"] if both else [])]))
    hue: Spec | None = None
    if color is not None and points.schema[color].is_numeric():
        if both:
            points, hue = _shades_of_origins(points, color)
            apart.append("series")
        else:
            shades = {"name": "viridis", "extent": [0, 0.85]}
            domain = points[color].unique().sort().to_list()
            hue = {"field": color, "type": "ordinal", "title": theme.words(color)}
            hue["scale"] = {"domain": domain, "scheme": shades}
    elif color is not None:
        hue = scaled(color, theme.colours_of(points[color]), theme.words(color))
    if hue is not None and legend is not None:
        hue["legend"] = legend
    series = Series(points, rows, columns, keys, apart, both, hue, number_of("pick"))
    if unique is not None:
        advice = "keep one configuration, or name the column that differs as rows or columns"
        require_unique(points, list(dict.fromkeys([*series.groups, *unique])), advice)
    return series


def _shades_of_origins(points: pl.DataFrame, color: str) -> tuple[pl.DataFrame, Spec]:
    yours = pl.when(pl.col("origin") == "yours").then(pl.lit(", yours"))
    number = pl.col(color).map_elements("{:,g}".format, return_dtype=pl.String)
    points = points.with_columns(series=pl.concat_str(number, yours, ignore_nulls=True))
    shades: dict[str, str] = {}
    for origin, ends in theme.ORIGIN_RAMPS.items():
        its = points.filter(pl.col("origin") == origin).sort(color)
        names = its["series"].unique(maintain_order=True).to_list()
        shades |= dict(zip(names, theme.ramp(*ends, len(names)), strict=True))
    points = points.with_columns(pl.col("series").cast(pl.Enum([*shades])))
    return points, scaled("series", shades, theme.words(color))
