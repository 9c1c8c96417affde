"""Groups: a statistic for each group of runs, as a frame with intervals, notes and reasons.

What the metrics of this room share, told here once. They take

- ``runs``: a row per run; columns ``by``, ``learning_rate``, ``seed``, ``final_validation_loss``
  (nats/token, +inf or NaN where diverged) and, where it is over widths, ``width``;
- ``by``: the columns that tell groups apart.

They return a row per group (and width), sorted, with the columns ``by`` (and ``width``). A
statistic ``x`` comes with its 95% interval over seeds in ``x_low`` and ``x_high``, infinite where
open; it is null where a group has no such number. ``note`` says what to know of the row, or "", and
``reason``, where it is not null, why a claim built on it must be inconclusive. They raise
ValueError for missing columns, no rows, ``by`` empty or with a column that varies in a group, and
whatever :func:`~isolab.analysis.seeds.loss_table` refuses, with the group's values in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl

from isolab.analysis import seeds as over_seeds
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array

T = TypeVar("T")
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(["edge", "note", "reason"], pl.String), "seeds": pl.Int64
}  # fmt: skip


def each_group(
    runs: pl.DataFrame, by: Sequence[str], function: Callable[[dict[str, Any], pl.DataFrame], T]
) -> list[T]:
    """Applies ``function`` to the values of ``by`` and the rows of each group, sorted by ``by``.

    Raises:
        ValueError: missing columns, no columns, no rows, and whatever the function refuses, with
            the group's values in front.
    """
    over_seeds.require_columns(runs, by)
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


def with_ends(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    """Returns the columns of a statistic and of its interval with their values."""
    return dict(zip(ends(name), (value, *interval), strict=True))


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
    samples: over_seeds.Resamples

    @property
    def widths(self) -> list[float]:
        """Returns the widths, ascending."""
        return [curve.width for curve in self.curves]

    @property
    def one_seed(self) -> str:
        """Returns a note where there is one seed, or ""."""
        return over_seeds.ONE_SEED if len(self.seeds) == 1 else ""

    def columns(
        self,
        name: str,
        values: Array,
        low: Array | None = None,
        high: Array | None = None,
        floor: float = -math.inf,
    ) -> dict[str, float]:
        """Returns row 0's value with :meth:`isolab.analysis.seeds.Resamples.interval` around it."""
        return with_ends(name, float(values[0]), self.samples.interval(values, low, high, floor))


def width_groups(runs: pl.DataFrame, by: Sequence[str]) -> list[WidthGroup]:
    """Splits runs by the columns ``by`` and then by width, sorted.

    Raises:
        ValueError: as the module says, and for a width that is not a positive number, or seeds that
            differ between the widths of a group.
    """
    own = ["width", "learning_rate", "final_validation_loss", "seed"]
    over_seeds.require_columns(runs, [*by, *own])
    if set(by) & set(own) or len(set(by)) < len(by):
        raise ValueError(
            f"by={list(by)} must name each column once and none of {own}, which vary in a group"
        )
    positive = pl.col("width").cast(pl.Float64).is_between(0, 2.0**53, "right")
    bad = runs.filter(~positive.fill_null(False))
    if not bad.is_empty():
        raise ValueError(f"width must be a positive number, got {bad['width'][0]}")
    return each_group(runs.select(*by, *own), by, _width_group)


def _width_group(name: dict[str, Any], runs: pl.DataFrame) -> WidthGroup:
    tables = each_group(
        runs, ["width"], lambda at, part: (at["width"], over_seeds.loss_table(part))
    )
    seeds = tables[0][1].seeds
    if any(table.seeds != seeds for _, table in tables):
        each = "; ".join(f"width {width} has {list(table.seeds)}" for width, table in tables)
        raise ValueError(
            f"unequal seeds: {each}: each width must have the same, so that resamples are "
            "paired; add the missing runs, or leave out the other seeds"
        )
    samples = over_seeds.seed_resamples(len(seeds))
    curves = (
        RateCurve(width, np.log2(table.settings), samples.means(table.losses))
        for width, table in tables
    )
    return WidthGroup(name, tuple(curves), seeds, samples)
