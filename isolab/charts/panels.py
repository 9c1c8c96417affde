"""Small multiples: one panel for each pair of values of two columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from isolab.charts.parts import HEIGHT, WIDTH, finish, words

_WIDTHS = {1: WIDTH, 2: 320, 3: 210}  # of a panel, by the number of columns; 210 for more


@dataclass(frozen=True)
class Place:
    """A panel's place: the values it is drawn for, whether it is outermost, its size in pixels."""

    values: dict[str, Any]
    left: bool
    bottom: bool
    width: int
    height: int

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Returns the rows of the frame that belong to this panel."""
        for column, value in self.values.items():
            its = pl.col(column)
            frame = frame.filter(its.is_null() if value is None else its == value)
        return frame

    def x(self, x: alt.X) -> alt.X:
        """Returns the axis as it is at the bottom, and without a title above other panels."""
        return x if self.bottom else x.title(None)

    def y(self, y: alt.Y) -> alt.Y:
        """Returns the axis as it is at the left, and without title and labels elsewhere."""
        axis: dict[str, Any] = dict(y["axis"]) if isinstance(y["axis"], dict) else {}
        if self.left:  # a label beyond the frame would lift this panel's heading over the others'
            return y.axis(**axis | {"labelBound": True})
        return y.title(None).axis(**axis | {"labels": False, "ticks": False})


def small_multiples(
    frame: pl.DataFrame,
    rows: str | None,
    columns: str | None,
    draw: Callable[[Place], Sequence[alt.Chart]],
    title: str,
    notes: Sequence[str],
    pick: alt.Parameter | None = None,
    height: int | None = None,
    zoom: bool = True,
) -> alt.ConcatChart:
    """Draws a panel for each value of ``rows`` and ``columns``, with one legend for all.

    Args:
        frame: tells which panels there are; a pair of values that it lacks says "no rows".
        rows: column whose values go down, or None; they are drawn in sorted order.
        columns: column whose values go across, or None.
        draw: returns a panel's layers.
        pick: the legend's selection.
        height: of a panel, in pixels.
    """
    down, across = _levels(frame, rows), _levels(frame, columns)
    width = _WIDTHS.get(len(across), 210)
    tall = height or (HEIGHT if len(down) * len(across) == 1 else 210)
    panels: list[alt.LayerChart] = []
    for i, below in enumerate(down):
        for j, beside in enumerate(across):
            values: dict[str, Any] = {}
            values |= {rows: below} if rows else {}
            values |= {columns: beside} if columns else {}
            place = Place(values, j == 0, i == len(down) - 1, width, tall)
            drawn = _nothing() if place.of(frame).is_empty() else draw(place)
            # A selection is known to all panels, so that the first one declares it.
            panel = finish(drawn, "", [], None if panels else pick, zoom)
            heading = alt.TitleParams(_heading(values), fontSize=12.5, offset=6, frame="group")
            panels.append(panel.properties(title=heading, width=width, height=tall))
    letters = max(60, min(130, len(across) * (width + 20) // 6))
    lines = [line for note in notes for line in textwrap.wrap(note, letters)]
    whole = alt.concat(
        *panels, columns=len(across), align="each", spacing={"row": 22, "column": 14}
    )
    shared: alt.ConcatChart = whole.resolve_scale(
        color="shared", shape="shared", strokeDash="shared"
    )
    heading = alt.TitleParams(title, subtitle=lines) if lines else alt.TitleParams(title)
    return shared.properties(title=heading)


def panel_columns(rows: str | None, columns: str | None) -> list[str]:
    """Returns the columns that tell panels apart.

    Raises:
        ValueError: if both are the same.
    """
    if rows is not None and rows == columns:
        raise ValueError(f"rows and columns are both {rows!r}: name two columns, or only one")
    return [name for name in (rows, columns) if name is not None]


def _levels(frame: pl.DataFrame, column: str | None) -> list[Any]:
    return frame[column].unique().sort().to_list() if column else [None]


def _heading(values: dict[str, Any]) -> str:
    """Returns names as they are, and numbers with what they count."""
    said = [v if isinstance(v, str) else f"{words(name)} {v:g}" for name, v in values.items()]
    return "; ".join(said)


def _nothing() -> list[alt.Chart]:
    text = alt.Chart(pl.DataFrame({"text": ["no rows"]})).mark_text(color="#777777", fontSize=12)
    return [text.encode(text="text:N")]
