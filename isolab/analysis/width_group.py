"""A sweep over widths and rates, split into groups: the ground of every transfer metric.

Seeds are resampled once a group, the same draws at every width and rate; groups with equally many
seeds share their draws, so that two of them can be compared seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import ONE_SEED, each_group, ends
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import (
    Array,
    Resamples,
    check_confidence,
    loss_table,
    require_columns,
    seed_resamples,
)


@dataclass(frozen=True)
class WidthGroup:
    """One group's curves, a width each.

    name: the group's values of ``by``; curves: by ascending width; seeds: everywhere the same;
    samples: the resamples of which the curves have a row each.
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

    Args:
        runs: a row per run; columns ``by``, ``width``, ``rate``, ``loss`` (+inf or NaN where
            diverged) and ``seed``.
        by: columns that tell groups apart.
        rate, loss, seed: names of columns.
        confidence, resamples: of the intervals over seeds; the generator is seeded.

    Raises:
        ValueError: for missing columns, no runs, an empty ``by`` or one that holds the width, rate,
            loss or seed, a width that is not a positive number, seeds that differ between the
            widths of a group, and whatever :func:`~isolab.analysis.seeds.loss_table` refuses, with
            the group and width in front.
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
        tables = each_group(its, ["width"], lambda _, at: loss_table(at, rate, loss, seed))
        widths, seeds = its["width"].unique().sort().to_list(), tables[0].seeds
        if any(table.seeds != seeds for table in tables):
            pairs = zip(widths, tables, strict=True)
            each = "; ".join(f"width {width} has {list(table.seeds)}" for width, table in pairs)
            raise ValueError(
                f"unequal seeds: {each}: each width must have the same, so that resamples are "
                "paired; add the missing runs, or leave out the other seeds"
            )
        samples = seed_resamples(len(seeds), resamples, confidence)
        curves = (
            RateCurve(width, np.log2(table.settings), samples.means(table.losses))
            for width, table in zip(widths, tables, strict=True)
        )
        return WidthGroup(name, tuple(curves), seeds, samples)

    return each_group(runs, by, group)
