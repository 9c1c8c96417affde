r"""A sweep over widths and rates, split into groups: the ground of every transfer metric.

Seeds are resampled once a group and the same draw is used at every width and rate, since a seed
fixes initialization and batches; groups with equally many seeds share their draws, so that two of
them can be compared seed by seed. Every resample chooses its best rates again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import (
    Array,
    LossTable,
    bootstrap_interval,
    check_confidence,
    loss_table,
    require_columns,
    resampled_seeds,
)


@dataclass(frozen=True)
class WidthGroup:
    """One group's curves, a width each.

    name: the group's values of ``by``; curves: by ascending width, rows as in ``copies``; seeds:
    the same at every width and rate; copies: (resamples,) the row, less 1, of each resample, as
    equal draws are computed once; confidence: of its intervals.
    """

    name: dict[str, Any]
    curves: tuple[RateCurve, ...]
    seeds: tuple[Any, ...]
    copies: npt.NDArray[np.int64]
    confidence: float

    @property
    def widths(self) -> list[float]:
        """Returns the widths, ascending."""
        return [curve.width for curve in self.curves]

    def curve(self, width: float) -> RateCurve | None:
        """Returns the curve of ``width``, or None where the group has no runs of it."""
        return next((curve for curve in self.curves if curve.width == width), None)

    def interval(
        self,
        values: Array,
        low: Array | None = None,
        high: Array | None = None,
        floor: float = -math.inf,
    ) -> tuple[float, float]:
        """Turns a number of every row into an interval over seeds around row 0's.

        Args:
            values: (rows,) float64, row 0 the estimate.
            low, high: (rows,) what the number may be at least and at most where a row leaves it
                open; ``values`` where None. Row 0's distance from the estimate is added as it is.
            floor: the least that the number can be.

        Returns:
            (low, high), infinite where open. An infinite estimate, a diverged run, is bounded
            below only where no resample is finite.
        """
        low = values if low is None else low
        high = values if high is None else high
        estimate = float(values[0])
        if math.isinf(estimate):
            sure = len(self.seeds) > 1 and bool(np.isinf(low[1:]).all())
            return (math.inf if sure else floor), math.inf
        ends = []
        for side, samples in enumerate((low, high)):
            both = bootstrap_interval(
                estimate, samples[1:][self.copies], len(self.seeds), self.confidence
            )
            ends.append(both[side] + (float(samples[0]) - estimate))
        return max(min(ends[0], estimate), floor), max(ends[1], estimate)


def width_groups(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str,
    loss: str,
    seed: str,
    confidence: float,
    resamples: int,
) -> list[WidthGroup]:
    """Splits runs by the columns ``by`` and then by width, sorted.

    Raises:
        ValueError: for missing columns, no runs, an empty ``by`` or one that holds the width, rate,
            loss or seed, a width that is not a positive number, seeds that differ between the
            widths of a group, and whatever :func:`~isolab.analysis.seeds.loss_table` refuses, with
            the group and width in front.
    """
    check_confidence(confidence)
    own = ["width", rate, loss, seed]
    require_columns(runs, [*by, *own])
    if not by or runs.is_empty():
        raise ValueError(f"nothing to group: by={list(by)}, {len(runs)} runs")
    if set(by) & set(own) or len(set(by)) < len(by):
        raise ValueError(
            f"by={list(by)} must name each column once and none of {own}, which vary in a group"
        )
    runs = runs.select(*by, *own)
    bad = runs.filter(
        pl.col("width").is_null()
        | ~pl.col("width").cast(pl.Float64).is_between(0, 2.0**53, "right")
    )
    if not bad.is_empty():
        raise ValueError(f"width must be a positive number, got {bad['width'][0]}")
    groups = []
    for values, group in runs.sort(*by, "width").group_by(by, maintain_order=True):
        name = dict(zip(by, values, strict=True))
        groups.append(_group(name, group, rate, loss, seed, confidence, resamples))
    return groups


def _group(
    name: dict[str, Any],
    runs: pl.DataFrame,
    rate: str,
    loss: str,
    seed: str,
    confidence: float,
    resamples: int,
) -> WidthGroup:
    tables: dict[Any, LossTable] = {}
    for (width,), its in runs.group_by(["width"], maintain_order=True):
        try:
            tables[width] = loss_table(its, rate, loss, seed)
        except ValueError as error:
            raise ValueError(f"{name | {'width': width}}: {error}") from None
    seeds = next(iter(tables.values())).seeds
    if any(table.seeds != seeds for table in tables.values()):
        said = "; ".join(f"width {width} has {list(its.seeds)}" for width, its in tables.items())
        raise ValueError(
            f"{name}: unequal seeds: {said}: each width must have the same, so that resamples are "
            "paired; add the missing runs, or leave out the other seeds"
        )
    draws, copies = _draws(len(seeds), resamples)
    curves = tuple(
        RateCurve(width, np.log2(its.settings), _averages(its.losses, draws))
        for width, its in tables.items()
    )
    return WidthGroup(name, curves, seeds, copies, confidence)


def group_frame(
    rows: Iterable[dict[str, Any]], runs: pl.DataFrame, by: Sequence[str], schema: dict[str, Any]
) -> pl.DataFrame:
    """Returns rows as a frame of ``by``, with the dtypes of ``runs``, and ``schema``.

    A column that a row lacks is null; ``width`` has the dtype that it has in ``runs``.
    """
    own: dict[str, Any] = {name: runs.schema[name] for name in by}
    if "width" in schema:
        schema = schema | {"width": runs.schema["width"]}
    columns = own | schema
    return pl.DataFrame([dict.fromkeys(columns) | row for row in rows], schema=columns)


def joined(notes: Iterable[str | None]) -> str:
    """Returns the notes that say something, once each, with semicolons between."""
    return "; ".join(dict.fromkeys(note for note in notes if note))


def reference_of(
    groups: Sequence[WidthGroup], against: dict[str, Any], group: WidthGroup
) -> WidthGroup | None:
    """Returns the group that is like ``group`` but for the values in ``against``, or None.

    Raises:
        ValueError: for a column in ``against`` that groups do not have, values that no group has,
            or a reference with other seeds than the group's.
    """
    columns = list(groups[0].name)
    unknown = [column for column in against if column not in columns]
    if unknown or not against:
        raise ValueError(f"against={against} must give values of some of the columns {columns}")
    if not any(against.items() <= its.name.items() for its in groups):
        known = list(dict.fromkeys(str({c: g.name[c] for c in against}) for g in groups))
        raise ValueError(f"no group has {against}; there are {', '.join(known)}")
    wanted = group.name | against
    found = next((its for its in groups if its.name == wanted), None)
    if found is not None and found.seeds != group.seeds:
        raise ValueError(
            f"seeds must be the same on both sides: {group.name} has {list(group.seeds)}, "
            f"{found.name} has {list(found.seeds)}"
        )
    return found


def _averages(losses: Array, draws: npt.NDArray[np.int64]) -> Array:
    """Returns the mean over seeds and over each draw of them, (1 + draws, rates)."""
    return np.concatenate([losses.mean(axis=1)[None], losses[:, draws].mean(axis=2).T])


@functools.lru_cache(maxsize=8)
def _draws(seeds: int, resamples: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the draws that differ, and which of them each resample is: 10 at 3 seeds."""
    draws = np.sort(resampled_seeds(seeds, resamples), axis=1)
    unique, copies = np.unique(draws, axis=0, return_inverse=True)
    return unique, copies.reshape(-1)
