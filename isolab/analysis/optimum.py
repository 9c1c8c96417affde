r"""The best learning rate of a sweep, with its interval over seeds.

With :math:`x = \log_2(\text{rate})` and losses averaged over seeds, a parabola through the best
grid point :math:`(x_1, y_1)` and its neighbours has its lowest point at

.. math:: x^* = x_1 - \frac{1}{2}
    \frac{(x_1 - x_0)^2 (y_1 - y_2) - (x_1 - x_2)^2 (y_1 - y_0)}
         {(x_1 - x_0) (y_1 - y_2) - (x_1 - x_2) (y_1 - y_0)}

which lies between the midpoints towards the neighbours. Where a neighbour is missing (the best is
the first or last rate of the grid) or diverged, the grid point itself is the answer, and says so.
A rate where any seed diverged counts as diverged: its mean is +inf and it ranks last.

The interval resamples seeds, the same ones at every rate, since a seed fixes initialization and
batches. See :mod:`isolab.analysis.seeds` for how it is kept honest with few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import (
    AllDivergedError,
    Array,
    LossTable,
    bootstrap_interval,
    check_confidence,
    loss_table,
    require_columns,
    resampled_seeds,
)


@dataclass(frozen=True)
class Optimum:
    """The best rate of one sweep.

    rate, log2_rate: the parabola's lowest point, or the best grid point where ``note`` says so;
    loss: the parabola's value there, nats/token; grid_rate, grid_loss: the best grid point and its
    seed-averaged loss; rate_interval, loss_interval: over seeds, the rate's open (0 or inf) at an
    end of the grid that it reaches, since the grid cannot bound it; edge: "low" or "high" where
    the best is the first or last rate of the grid; seeds: how many; note: what to know, or "".
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
    """Finds the best rate of one sweep by a parabola in log2(rate), with intervals over seeds.

    Args:
        runs: a row per run of one configuration, whose rate and seed alone vary.
        rate, loss, seed: its columns; a loss of +inf or NaN is a diverged run.
        confidence: of both intervals.
        resamples: of the seeds; the generator is seeded.

    Raises:
        ValueError: for missing columns, fewer than 3 rates, seeds missing at some rates, and
            whatever :func:`~isolab.analysis.seeds.loss_table` refuses.
        AllDivergedError: a ValueError, where every rate has a diverged seed.

    Example:
        >>> runs = pl.DataFrame({
        ...     "learning_rate": [0.25, 0.5, 1.0], "seed": [0, 0, 0],
        ...     "final_validation_loss": [2.0, 1.0, 1.5]})
        >>> best = optimum(runs)
        >>> round(best.log2_rate, 3), round(best.loss, 4), best.edge
        (-0.833, 0.9792, None)
    """
    check_confidence(confidence)
    table = loss_table(runs, rate, loss, seed)
    if len(table.settings) < 3:
        raise ValueError(
            f"a parabola needs at least 3 rates, got {table.settings.tolist()}: widen the grid"
        )
    x = np.log2(table.settings)
    best = table.best
    vertex_x, vertex_y = (float(values[0]) for values in parabola_vertices(x, table.means[None]))
    draws = resampled_seeds(len(table.seeds), resamples)
    sampled_x, sampled_y = parabola_vertices(x, table.losses[:, draws].mean(axis=2).T)
    low, high = bootstrap_interval(vertex_x, sampled_x, len(table.seeds), confidence)
    edge = "low" if best == 0 else "high" if best == len(x) - 1 else None
    return Optimum(
        rate=2.0**vertex_x,
        log2_rate=vertex_x,
        loss=vertex_y,
        grid_rate=float(table.settings[best]),
        grid_loss=float(table.means[best]),
        rate_interval=(
            0.0 if low <= x[0] or edge == "low" else 2.0**low,
            math.inf if high >= x[-1] or edge == "high" else 2.0**high,
        ),
        loss_interval=bootstrap_interval(vertex_y, sampled_y, len(table.seeds), confidence),
        edge=edge,
        seeds=len(table.seeds),
        note=_note(table, best, edge),
    )


def parabola_vertices(x: Array, losses: Array) -> tuple[Array, Array]:
    """Returns each row's best x and loss, by the parabola or, where there is none, on the grid.

    Args:
        x: (n,) ascending log2 rates.
        losses: (rows, n); +inf where diverged, at least one finite value a row.

    Returns:
        The lowest points' x and loss, (rows,) each.
    """
    rows = np.arange(len(losses))
    best = np.argmin(losses, axis=1)
    middle = np.clip(best, 1, len(x) - 2)
    y0, y1, y2 = (losses[rows, middle + shift] for shift in (-1, 0, 1))
    left, right = x[middle] - x[middle - 1], x[middle + 1] - x[middle]
    usable = (best == middle) & np.isfinite(y0) & np.isfinite(y2)
    rise0, rise2 = np.where(usable, y0, 0.0), np.where(usable, y2, 0.0)
    y1 = np.where(usable, y1, 0.0)
    slope0, slope2 = (y1 - rise0) / left, (rise2 - y1) / right  # <= 0 and >= 0
    curvature = (slope2 - slope0) / (left + right)  # of y1 + slope * dx + curvature * dx**2
    slope = (slope0 * right + slope2 * left) / (left + right)  # at the middle point
    usable &= curvature > 0  # three equal losses have no vertex
    shift = np.where(usable, -slope / (2 * np.where(usable, curvature, 1.0)), 0.0)
    drop = np.where(usable, slope * shift / 2, 0.0)
    return x[best] + shift, losses[rows, best] + drop


def optima(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Returns a row per group of ``by`` with the fields of its :class:`Optimum`, sorted by ``by``.

    Intervals become columns ``rate_low``, ``rate_high``, ``loss_low`` and ``loss_high`` (float64,
    0 or infinite where open). A group whose every rate diverged has nulls and its ``note``.

    Raises:
        ValueError: as :func:`optimum`, with the group's values in front.

    Example:
        >>> runs = pl.DataFrame({
        ...     "width": [32] * 3 + [64] * 3, "learning_rate": [1.0, 2.0, 4.0] * 2, "seed": 0,
        ...     "final_validation_loss": [2.0, 1.0, 2.0, 1.0, 2.0, 3.0]})
        >>> optima(runs, by=["width"]).select("width", "rate", "edge").rows()
        [(32, 2.0, None), (64, 1.0, 'low')]
    """
    by = list(by)
    require_columns(runs, [*by, rate, loss, seed])
    if not by or runs.is_empty():
        raise ValueError(f"nothing to group: by={by}, {len(runs)} runs")
    rows = []
    for values, group in runs.sort(by).group_by(by, maintain_order=True):
        name = dict(zip(by, values, strict=True))
        try:
            rows.append(name | _columns(optimum(group, rate, loss, seed, confidence, resamples)))
        except AllDivergedError as error:
            seeds = group[seed].n_unique()
            rows.append(name | dict.fromkeys(_SCHEMA) | {"seeds": seeds, "note": str(error)})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    schema: dict[str, Any] = {name: runs.schema[name] for name in by}
    return pl.DataFrame(rows, schema=schema | _SCHEMA)


def at_best_rate(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
) -> pl.DataFrame:
    """Keeps each group's runs at the grid rate of lowest seed-averaged loss, sorted by ``by``.

    Raises:
        ValueError: for missing columns, seeds missing at some rates, or a group whose every rate
            diverged.

    Example:
        >>> runs = pl.DataFrame({
        ...     "optimizer": ["adam", "adam", "iso"], "learning_rate": [1.0, 2.0, 1.0], "seed": 0,
        ...     "final_validation_loss": [2.0, 1.0, 3.0]})
        >>> at_best_rate(runs, by=["optimizer"]).select("optimizer", "learning_rate").rows()
        [('adam', 2.0), ('iso', 1.0)]
    """
    by = list(by)
    require_columns(runs, [*by, rate, loss, seed])
    kept = []
    for values, group in runs.sort(by).group_by(by, maintain_order=True):
        try:
            table = loss_table(group, rate, loss, seed)
            kept.append(group.filter(pl.col(rate).cast(pl.Float64) == table.settings[table.best]))
        except ValueError as error:
            raise ValueError(f"{dict(zip(by, values, strict=True))}: {error}") from None
    return pl.concat(kept) if kept else runs


_SCHEMA = {
    "rate": pl.Float64,
    "log2_rate": pl.Float64,
    "loss": pl.Float64,
    "grid_rate": pl.Float64,
    "grid_loss": pl.Float64,
    "rate_low": pl.Float64,
    "rate_high": pl.Float64,
    "loss_low": pl.Float64,
    "loss_high": pl.Float64,
    "edge": pl.String,
    "seeds": pl.Int64,
    "note": pl.String,
}


def _columns(best: Optimum) -> dict[str, object]:
    ends = {
        "rate_low": best.rate_interval[0],
        "rate_high": best.rate_interval[1],
        "loss_low": best.loss_interval[0],
        "loss_high": best.loss_interval[1],
    }
    return {name: ends[name] if name in ends else getattr(best, name) for name in _SCHEMA}


def _note(table: LossTable, best: int, edge: str | None) -> str:
    at = f"{table.settings[best]:.3g}"
    notes = []
    if edge:
        end = "lowest" if edge == "low" else "highest"
        way = "lower" if edge == "low" else "higher"
        notes.append(f"the best rate, {at}, is the {end} of the grid: widen it to {way} rates")
    for neighbour in (best - 1, best + 1):
        if 0 <= neighbour < len(table.settings) and not np.isfinite(table.means[neighbour]):
            diverged = f"{table.settings[neighbour]:.3g}"
            notes.append(f"its neighbour {diverged} diverged, so the grid point {at} is taken")
    if len(table.seeds) == 1:
        notes.append("one seed: no interval")
    return "; ".join(notes)
