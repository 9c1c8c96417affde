r"""How much sooner a challenger reaches the baseline's loss, in steps and in time.

With :math:`T_c` the challenger's steps and :math:`L_c` its final validation loss,

.. math:: \text{speedup} = \frac{T_b(L_c)}{T_c} \qquad
          T_b(L) = \Big(\frac{k}{L - L_\infty}\Big)^{1/p}

where :math:`L_\infty + k T^{-p}` is fitted to the baseline's final losses at several horizons,
each a run with a full schedule of its own; a loss in the middle of a schedule is no substitute.
Both sides take the best learning rate of their grid by seed-averaged loss, at every horizon anew.

The interval is over seeds; every resample chooses its rates and fits its law again. It does not
cover the law being the wrong one: compare ``law.residual`` with the difference between the sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import each_group, joined
from isolab.analysis.power_law import PowerLaw, fit_power_law, fit_rows, inverse
from isolab.analysis.seeds import (
    Array,
    LossTable,
    check_confidence,
    loss_table,
    require_columns,
    require_same_seeds,
    seed_resamples,
)
from isolab.analysis.tost import PairedDifference, edge_note, paired_difference

__all__ = [
    "PairedDifference",
    "Speedup",
    "TimeSpeedup",
    "paired_difference",
    "speedup",
    "time_speedup",
]


@dataclass(frozen=True)
class Speedup:
    """A speedup in steps at equal final validation loss.

    value: baseline's steps over the challenger's; None where ``reason`` says why there is none.
    interval: over seeds; open (0 or inf) at a side that reaches past the baseline's horizons;
    None where value is. baseline_steps: what the baseline needs. challenger_steps,
    challenger_loss: the challenger's horizon and seed-averaged loss, nats/token. law: fitted to
    ``losses``, the baseline's seed-averaged losses at ``horizons`` and ``rates``. reason: why a
    verdict must be inconclusive, or None; it can come with a value, where a best rate lies at
    the edge of its grid.
    """

    value: float | None
    interval: tuple[float, float] | None
    baseline_steps: float | None
    challenger_steps: int
    challenger_loss: float
    challenger_rate: float
    law: PowerLaw | None
    horizons: tuple[int, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: int
    reason: str | None


@dataclass(frozen=True)
class TimeSpeedup:
    """A speedup in time: value and interval as in :class:`Speedup`, and its reason."""

    value: float | None
    interval: tuple[float, float] | None
    reason: str | None


def speedup(
    baseline: pl.DataFrame,
    challenger: pl.DataFrame,
    steps: str = "steps",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Speedup:
    """Measures how many times fewer steps the challenger needs than the baseline.

    Without a value where the challenger's loss lies outside what the baseline reaches between its
    shortest and longest horizon: that would be an extrapolation. Arguments that are not named are
    those of :class:`~isolab.analysis.groups.Options`.

    Args:
        baseline: a row per run; 2 horizons or more in ``steps``, each with its own full schedule
            and one or more rates. Take 4: see :mod:`isolab.analysis.power_law` for 2 and 3.
        challenger: the same columns and seeds, one horizon.

    Raises:
        ValueError: for too few or too many horizons, seeds that differ between the sides, a side
            whose every rate diverged, and as :func:`~isolab.analysis.seeds.loss_table`.

    Example:
        >>> def runs(steps, losses):
        ...     return pl.DataFrame({"steps": steps, "learning_rate": 0.1, "seed": 0,
        ...                          "final_validation_loss": losses})
        >>> adam = runs([16, 64, 256], [3.0, 2.0, 1.5])  # 1 + 8 / sqrt(T)
        >>> found = speedup(adam, runs([32], [2.0]))
        >>> round(found.value, 4), found.reason
        (2.0, None)
    """
    check_confidence(confidence)
    base = _by_horizon(baseline, steps, rate, loss, seed, "baseline")
    other = _by_horizon(challenger, steps, rate, loss, seed, "challenger")
    if len(base) < 2:
        raise ValueError(f"the baseline needs 2 horizons or more, got {list(base)}: add some")
    if len(other) != 1:
        raise ValueError(f"the challenger needs one horizon, got {list(other)}: keep one")
    ((challenger_steps, table),) = other.items()
    for horizon, its in base.items():
        side = f"the baseline at {horizon} {steps}"
        require_same_seeds(side, its.seeds, "the challenger", table.seeds)

    horizons = np.array(list(base), dtype=np.float64)
    losses = np.array([its.means[its.best] for its in base.values()])
    target = float(table.means[table.best])
    notes = [edge_note(its, f"baseline's best rate at {t} {steps}") for t, its in base.items()]
    notes.append(edge_note(table, "challenger's best rate"))

    value: float | None = None
    interval: tuple[float, float] | None = None
    law: PowerLaw | None = None
    try:
        law = fit_power_law(horizons, losses)
    except ValueError as error:
        notes = [str(error)]
    else:
        outside = _outside(law, horizons, target, challenger_steps)
        notes.insert(0, outside)
        if not outside:
            value = law.steps(target) / challenger_steps
            samples = seed_resamples(len(table.seeds), resamples, confidence)
            best = [samples.means(its.losses).min(axis=1) for its in (*base.values(), table)]
            reached = inverse(*fit_rows(horizons, np.stack(best[:-1], axis=1)), best[-1])
            with np.errstate(divide="ignore"):
                low, high = samples.interval(np.log(reached / challenger_steps))
            shortest, longest = np.log(horizons[[0, -1]] / challenger_steps)
            interval = (
                0.0 if low < shortest else min(math.exp(low), value),
                math.inf if high > longest else max(math.exp(high), value),
            )
    return Speedup(
        value=value,
        interval=interval,
        baseline_steps=None if value is None else value * challenger_steps,
        challenger_steps=challenger_steps,
        challenger_loss=target,
        challenger_rate=float(table.settings[table.best]),
        law=law,
        horizons=tuple(base),
        losses=tuple(losses.tolist()),
        rates=tuple(float(its.settings[its.best]) for its in base.values()),
        seeds=len(table.seeds),
        reason=joined(notes) or None,
    )


def time_speedup(
    steps_speedup: Speedup | float,
    step_time_ratio: float,
    step_time_interval: tuple[float, float] | None = None,
) -> TimeSpeedup:
    """Turns a speedup in steps into one in time: steps speedup times the ratio of step times.

    Args:
        steps_speedup: a plain number is its own interval.
        step_time_ratio: the baseline's step time over the challenger's, measured interleaved in
            one process. Below 1 where the challenger's steps are slower: 1 / 1.15 for 15% slower.
        step_time_interval: of that ratio. Both lower ends are multiplied, and both upper ends,
            which is wider than the stated confidence.

    Raises:
        ValueError: for a ratio, speedup or interval that is not positive, or an interval that does
            not hold its ratio.

    Example:
        >>> time_speedup(2.0, 1 / 1.25).value
        1.6
    """
    low, high = step_time_interval or (step_time_ratio, step_time_ratio)
    if not (0 < low <= step_time_ratio <= high < math.inf):
        raise ValueError(
            f"step_time_ratio must be positive and within its interval, got {step_time_ratio} in "
            f"{(low, high)}"
        )
    if isinstance(steps_speedup, Speedup):
        value, interval = steps_speedup.value, steps_speedup.interval
        reason = steps_speedup.reason
    else:
        if not 0 < steps_speedup < math.inf:
            raise ValueError(f"steps_speedup must be positive and finite, got {steps_speedup}")
        value, interval, reason = steps_speedup, (steps_speedup, steps_speedup), None
    if value is None or interval is None:
        return TimeSpeedup(None, None, reason)
    return TimeSpeedup(value * step_time_ratio, (interval[0] * low, interval[1] * high), reason)


def _by_horizon(
    runs: pl.DataFrame, steps: str, rate: str, loss: str, seed: str, side: str
) -> dict[int, LossTable]:
    """Returns a table for each horizon, none of which diverged at every rate."""
    require_columns(runs, [steps, rate, loss, seed])

    def table(name: dict[str, Any], its: pl.DataFrame) -> tuple[int, LossTable]:
        found = loss_table(its, rate, loss, seed)
        _ = found.best  # raises if all diverged
        return int(name[steps]), found

    try:
        return dict(each_group(runs, [steps], table))
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from None


def _outside(law: PowerLaw, horizons: Array, target: float, challenger_steps: int) -> str:
    """Returns why ``target`` cannot be read off between the horizons, or ""."""
    first, last = horizons[[0, -1]]
    reached = law.steps(target)
    if first <= reached <= last:
        return ""
    bound, at, more = ("above", last, "longer") if reached > last else ("below", first, "shorter")
    return (
        f"the challenger's loss {target:.4g} after {challenger_steps} steps is not one that the "
        f"baseline reaches between its horizons of {first:.0f} and {last:.0f} steps: the speedup "
        f"is {bound} {at / challenger_steps:.3g}; add {more} horizons"
    )
