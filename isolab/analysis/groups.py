"""Groups: a statistic for each group of runs, as a frame with intervals, notes and reasons.

What the metrics of this room share, told here once. They take

- ``runs``: a row per run; columns ``by``, where it is over widths ``width``, and those that
  :class:`Options` names: the rate, the loss (nats/token, +inf or NaN where diverged) and the seed;
- ``by``: the columns that tell groups apart.

They return a row per group (and width), sorted, with the columns ``by`` (and ``width``). A
statistic ``x`` comes with its interval over seeds in ``x_low`` and ``x_high``, infinite where open;
it is null where a group has no such number. ``seeds`` says how many there are, ``note`` what to
know of the row, or "", and ``reason``, where it is not null, why a claim built on it must be
inconclusive. They raise ValueError for missing columns, no rows, ``by`` empty or with a column that
varies in a group, and whatever :func:`~isolab.analysis.seeds.loss_table` refuses, with the group's
values in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np
import polars as pl

from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import (
    Array,
    Resamples,
    check_confidence,
    loss_table,
    require_columns,
    seed_resamples,
)

T = TypeVar("T")
ONE_SEED = "one seed: no interval"
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(["edge", "note", "reason"], pl.String),
    **dict.fromkeys(["rank", "scales", "seeds", "widths"], pl.Int64),
}


class Options(TypedDict, total=False):
    """The columns of the rate, loss and seed, and the intervals' confidence and resamples."""

    rate: str
    loss: str
    seed: str
    confidence: float
    resamples: int


def each_group(
    runs: pl.DataFrame, by: Sequence[str], function: Callable[[dict[str, Any], pl.DataFrame], T]
) -> list[T]:
    """Applies ``function`` to the values of ``by`` and the rows of each group, sorted by ``by``.

    Raises:
        ValueError: missing columns, no columns, no rows, and whatever the function refuses, with
            the group's values in front.
    """
    require_columns(runs, by)
    if not len(by) or runs.is_empty():
        raise ValueError(f"nothing to group: by={list(by)}, {len(runs)} runs")
    found = []
    for values, group in runs.sort(by).group_by(by, maintain_order=True):
        name = dict(zip(by, values, strict=True))
        try:
            found.append(function(name, group))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def group_frame(
    rows: Iterable[dict[str, Any]], runs: pl.DataFrame, by: Sequence[str], columns: Sequence[str]
) -> pl.DataFrame:
    """Returns the columns ``by``, with the dtypes of ``runs``, and ``columns`` of all rows.

    A column that a row lacks is null. Counts are Int64, texts String, all others Float64.
    """
    schema: dict[str, Any] = {name: runs.schema[name] for name in by}
    schema |= {name: _DTYPES.get(name, pl.Float64) for name in columns}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def ends(name: str) -> tuple[str, str, str]:
    """Returns the columns of a statistic and of its interval: name, name_low and name_high."""
    return name, f"{name}_low", f"{name}_high"


def joined(notes: Iterable[str | None]) -> str:
    """Returns the notes that are not empty, once each, with semicolons between."""
    return "; ".join(dict.fromkeys(note for note in notes if note))


def told(reasons: Iterable[str], notes: Iterable[str] = ()) -> dict[str, str | None]:
    """Returns a row's ``note``, its reasons first, and its ``reason``."""
    reason = joined(reasons)
    return {"note": joined([reason, *notes]), "reason": reason or None}


@dataclass(frozen=True)
class WidthGroup:
    """One group's losses over widths and rates.

    name: its values of ``by``; curves: by ascending width; seeds: everywhere the same; samples: the
    resamples of which each curve has a row, shared by groups with equally many seeds, so that two
    of them can be compared seed by seed.
    """

    name: dict[str, Any]
    curves: tuple[RateCurve, ...]
    seeds: tuple[Any, ...]
    samples: Resamples

    @property
    def widths(self) -> list[float]:
        """Returns the widths, ascending."""
        return [curve.width for curve in self.curves]

    @property
    def one_seed(self) -> str:
        """Returns a note where there is one seed, or ""."""
        return ONE_SEED if len(self.seeds) == 1 else ""

    def curve(self, width: float) -> RateCurve | None:
        """Returns the curve of ``width``, or None where the group has no runs of it."""
        return next((curve for curve in self.curves if curve.width == width), None)

    def columns(
        self,
        name: str,
        values: Array,
        low: Array | None = None,
        high: Array | None = None,
        floor: float = -math.inf,
    ) -> dict[str, float]:
        """Returns the columns of a statistic: :meth:`Resamples.interval` around row 0's value."""
        interval = self.samples.interval(values, low, high, floor)
        return dict(zip(ends(name), (float(values[0]), *interval), strict=True))


def width_groups(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> list[WidthGroup]:
    """Splits runs by the columns ``by`` and then by width, sorted.

    Raises:
        ValueError: as the module says, and for a width that is not a positive number, or seeds that
            differ between the widths of a group.
    """
    check_confidence(confidence)
    own = ["width", rate, loss, seed]
    require_columns(runs, [*by, *own])
    if set(by) & set(own) or len(set(by)) < len(by):
        raise ValueError(
            f"by={list(by)} must name each column once and none of {own}, which vary in a group"
        )
    runs = runs.select(*by, *own)
    positive = pl.col("width").cast(pl.Float64).is_between(0, 2.0**53, "right")
    bad = runs.filter(~positive.fill_null(False))
    if not bad.is_empty():
        raise ValueError(f"width must be a positive number, got {bad['width'][0]}")

    def group(name: dict[str, Any], its: pl.DataFrame) -> WidthGroup:
        tables = each_group(
            its, ["width"], lambda at, part: (at["width"], loss_table(part, rate, loss, seed))
        )
        seeds = tables[0][1].seeds
        if any(table.seeds != seeds for _, table in tables):
            each = "; ".join(f"width {width} has {list(table.seeds)}" for width, table in tables)
            raise ValueError(
                f"unequal seeds: {each}: each width must have the same, so that resamples are "
                "paired; add the missing runs, or leave out the other seeds"
            )
        samples = seed_resamples(len(seeds), resamples, confidence)
        curves = (
            RateCurve(width, np.log2(table.settings), samples.means(table.losses))
            for width, table in tables
        )
        return WidthGroup(name, tuple(curves), seeds, samples)

    return each_group(runs, by, group)
