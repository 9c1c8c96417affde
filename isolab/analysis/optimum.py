r"""The best learning rate of a sweep, with its interval over seeds.

It is the lowest point of the seed-averaged loss as :mod:`isolab.analysis.rate_curve` reads it: of
the parabola through the best grid point and its neighbours in log2(rate), or the grid point itself
where there is none. :mod:`isolab.analysis.seeds` has the interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import each_group, group_frame, joined
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import (
    ONE_SEED,
    AllDivergedError,
    loss_table,
    seed_resamples,
)


@dataclass(frozen=True)
class Optimum:
    """The best rate of one sweep.

    rate: the parabola's lowest point, or the best grid point where ``note`` says so; loss: there,
    nats/token; grid_rate: the best grid point; their intervals over seeds, the rate's open (0 or
    inf) at an end of the grid that it reaches; edge: "low" or "high" where the best rate is that
    end; seeds: how many.
    """

    rate: float
    rate_low: float
    rate_high: float
    loss: float
    loss_low: float
    loss_high: float
    grid_rate: float
    edge: str | None
    seeds: int
    note: str


def optimum(runs: pl.DataFrame) -> Optimum:
    """Finds the best rate of one configuration's ``runs``, whose rate and seed alone vary.

    Raises:
        ValueError: for fewer than 3 rates, and as :func:`~isolab.analysis.seeds.loss_table`.
        AllDivergedError: a ValueError, where every rate has a diverged seed.
    """
    table = loss_table(runs)
    if len(table.settings) < 3:
        raise ValueError(
            f"a parabola needs at least 3 rates, got {table.settings.tolist()}: widen the grid"
        )
    seeds, x = len(table.seeds), np.log2(table.settings)
    samples = seed_resamples(seeds)
    curve = RateCurve(math.nan, x, samples.means(table.losses))
    grid_rate, best = table.settings[table.best], curve.best  # raises where every rate diverged
    low, high = samples.interval(best.x)
    loss_low, loss_high = samples.interval(best.loss)
    return Optimum(
        rate=curve.rate,
        rate_low=0.0 if low <= x[0] or curve.edge == "low" else 2.0**low,
        rate_high=math.inf if high >= x[-1] or curve.edge == "high" else 2.0**high,
        loss=float(best.loss[0]),
        loss_low=loss_low,
        loss_high=loss_high,
        grid_rate=float(grid_rate),
        edge=curve.edge,
        seeds=seeds,
        note=joined([curve.edge_note, curve.step_note, ONE_SEED if seeds == 1 else ""]),
    )


def optima(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Returns a row per group with the fields of its :class:`Optimum`, as of :func:`optimum`.

    Conventions are those of :mod:`isolab.analysis.groups`, without a reason; ``rate_low`` is 0
    where open. A group whose every rate diverged has nulls and its note.

    Example:
        >>> runs = pl.DataFrame({
        ...     "width": [32] * 3 + [64] * 3, "learning_rate": [1.0, 2.0, 4.0] * 2, "seed": 0,
        ...     "final_validation_loss": [2.0, 1.0, 2.0, 1.0, 2.0, 3.0]})
        >>> optima(runs, by=["width"]).select("width", "rate", "edge").rows()
        [(32, 2.0, None), (64, 1.0, 'low')]
    """
    fields = [field.name for field in dataclasses.fields(Optimum)]
    return group_frame(each_group(runs, by, _row), runs, by, fields)


def _row(name: dict[str, Any], group: pl.DataFrame) -> dict[str, Any]:
    try:
        return name | vars(optimum(group))
    except AllDivergedError as error:
        return name | {"seeds": group["seed"].n_unique(), "note": str(error)}


def at_best_rate(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Keeps each group's runs at the grid rate of lowest seed-averaged loss, sorted by ``by``.

    Raises:
        ValueError: as :mod:`isolab.analysis.groups`, and for a group whose every rate diverged.

    Example:
        >>> runs = pl.DataFrame({
        ...     "optimizer": ["adam", "adam", "iso"], "learning_rate": [1.0, 2.0, 1.0], "seed": 0,
        ...     "final_validation_loss": [2.0, 1.0, 3.0]})
        >>> at_best_rate(runs, by=["optimizer"]).select("optimizer", "learning_rate").rows()
        [('adam', 2.0), ('iso', 1.0)]
    """
    return pl.concat(each_group(runs, by, _at_best)) if len(runs) else runs


def _at_best(_: dict[str, Any], group: pl.DataFrame) -> pl.DataFrame:
    table = loss_table(group)
    return group.filter(pl.col("learning_rate").cast(pl.Float64) == table.settings[table.best])
