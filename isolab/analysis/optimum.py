r"""The best learning rate of a sweep, with its interval over seeds.

It is the lowest point of the seed-averaged loss as :mod:`isolab.analysis.rate_curve` reads it: of
the parabola through the best grid point and its neighbours in log2(rate), or the grid point itself
where there is none. :mod:`isolab.analysis.seeds` has the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import ONE_SEED, Options, each_group, ends, group_frame, joined
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import AllDivergedError, loss_table, require_columns, seed_resamples

_COLUMNS = ["rate", "log2_rate", "loss", "grid_rate", "grid_loss", *ends("rate")[1:],
            *ends("loss")[1:], "edge", "seeds", "note"]  # fmt: skip


@dataclass(frozen=True)
class Optimum:
    """The best rate of one sweep.

    rate, log2_rate: the parabola's lowest point, or the best grid point where ``note`` says so;
    loss: there, nats/token; grid_rate, grid_loss: the best grid point and its seed-averaged loss;
    rate_interval, loss_interval: over seeds, the rate's open (0 or inf) at an end of the grid that
    it reaches; edge: "low" or "high" where the best rate is that end; seeds: how many.
    """

    rate: float
    log2_rate: float
    loss: float
    grid_rate: float
    grid_loss: float
    rate_interval: tuple[float, float]
    loss_interval: tuple[float, float]
    edge: str | None
    seeds: int
    note: str


def optimum(
    runs: pl.DataFrame,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Optimum:
    """Finds the best rate of one configuration's ``runs``, whose rate and seed alone vary.

    The other arguments are those of :class:`~isolab.analysis.groups.Options`.

    Raises:
        ValueError: for fewer than 3 rates, and as :func:`~isolab.analysis.seeds.loss_table`.
        AllDivergedError: a ValueError, where every rate has a diverged seed.

    Example:
        >>> runs = pl.DataFrame({
        ...     "learning_rate": [0.25, 0.5, 1.0], "seed": [0, 0, 0],
        ...     "final_validation_loss": [2.0, 1.0, 1.5]})
        >>> best = optimum(runs)
        >>> round(best.log2_rate, 3), round(best.loss, 4), best.edge
        (-0.833, 0.9792, None)
    """
    table = loss_table(runs, rate, loss, seed)
    if len(table.settings) < 3:
        raise ValueError(
            f"a parabola needs at least 3 rates, got {table.settings.tolist()}: widen the grid"
        )
    seeds, x = len(table.seeds), np.log2(table.settings)
    samples = seed_resamples(seeds, resamples, confidence)
    curve = RateCurve(math.nan, x, samples.means(table.losses))
    grid_best, best = table.best, curve.best  # the first raises where every rate diverged
    low, high = samples.interval(best.x)
    return Optimum(
        rate=curve.rate,
        log2_rate=float(best.x[0]),
        loss=float(best.loss[0]),
        grid_rate=float(table.settings[grid_best]),
        grid_loss=float(table.means[grid_best]),
        rate_interval=(
            0.0 if low <= x[0] or curve.edge == "low" else 2.0**low,
            math.inf if high >= x[-1] or curve.edge == "high" else 2.0**high,
        ),
        loss_interval=samples.interval(best.loss),
        edge=curve.edge,
        seeds=seeds,
        note=joined([curve.edge_note, curve.step_note, ONE_SEED if seeds == 1 else ""]),
    )


def optima(runs: pl.DataFrame, by: Sequence[str], **options: Unpack[Options]) -> pl.DataFrame:
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
    seed = options.get("seed", "seed")

    def row(name: dict[str, Any], group: pl.DataFrame) -> dict[str, Any]:
        try:
            best = optimum(group, **options)
        except AllDivergedError as error:
            return name | {"seeds": group[seed].n_unique(), "note": str(error)}
        found = dict(zip(ends("rate")[1:], best.rate_interval, strict=True))
        found |= dict(zip(ends("loss")[1:], best.loss_interval, strict=True))
        return name | vars(best) | found

    return group_frame(each_group(runs, by, row), runs, by, _COLUMNS)


def at_best_rate(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
) -> pl.DataFrame:
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
    require_columns(runs, [*by, rate, loss, seed])
    if runs.is_empty():
        return runs

    def at_best(_: dict[str, Any], group: pl.DataFrame) -> pl.DataFrame:
        table = loss_table(group, rate, loss, seed)
        return group.filter(pl.col(rate).cast(pl.Float64) == table.settings[table.best])

    return pl.concat(each_group(runs, by, at_best))
