r"""A challenger against a baseline: loss at equal steps, steps and time to an equal loss.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.claim import Estimate
from isolab.analysis.groups import each_group, joined
from isolab.analysis.power_law import PowerLaw, fit_power_law, fit_rows, inverse
from isolab.analysis.seeds import (
    Array,
    LossTable,
    loss_table,
    require_same_seeds,
    seed_resamples,
    student_interval,
)


@dataclass(frozen=True)
class Speedup(Estimate):
    """A speedup in steps at equal final validation loss: baseline's steps over the challenger's.

    Its interval is open (0 or inf) at a side that reaches past the baseline's horizons.
    baseline_steps: what the baseline needs. challenger_steps, challenger_loss: the challenger's
    horizon and seed-averaged loss, nats/token. law: fitted to ``losses``, the baseline's
    seed-averaged losses at ``horizons`` and ``rates``.
    """

    baseline_steps: float | None
    challenger_steps: int
    challenger_loss: float
    challenger_rate: float
    law: PowerLaw | None
    horizons: tuple[int, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: int


def speedup(baseline: pl.DataFrame, challenger: pl.DataFrame) -> Speedup:
    """Measures how many times fewer steps the challenger needs than the baseline.

    The baseline has 3 horizons or more in ``steps``, better 4, each with its own full schedule and
    one or more rates; the challenger has one, and the same seeds. Without a value where the
    challenger's loss lies outside what the baseline reaches between its shortest and longest
    horizon: that would be an extrapolation.

    Raises:
        ValueError: for several horizons of the challenger, seeds that differ between the sides, a
            side whose every rate diverged, and as :func:`~isolab.analysis.seeds.loss_table`.
    """
    base, other = _by_horizon(baseline, "baseline"), _by_horizon(challenger, "challenger")
    if len(other) != 1:
        raise ValueError(f"the challenger needs one horizon, got {list(other)}: keep one")
    ((steps, table),) = other.items()
    for horizon, its in base.items():
        side = f"the baseline at {horizon} steps"
        require_same_seeds(side, its.seeds, "the challenger", table.seeds)

    horizons = np.array(list(base), dtype=np.float64)
    losses = np.array([its.means[its.best] for its in base.values()])
    target = float(table.means[table.best])
    notes = [
        its.edge_note(f"the baseline's best rate at {horizon} steps")
        for horizon, its in base.items()
    ]
    notes.append(table.edge_note("the challenger's best rate"))
    value, interval, law = None, None, None
    try:
        law = fit_power_law(horizons, losses)
    except ValueError as error:
        notes = [str(error)]
    else:
        outside = _outside(law, horizons, target, steps)
        notes.insert(0, outside)
        if not outside:
            value = law.steps(target) / steps
            interval = _interval(value, horizons, [*base.values(), table], steps)
    return Speedup(
        value=value,
        interval=interval,
        reason=joined(notes) or None,
        baseline_steps=None if value is None else value * steps,
        challenger_steps=steps,
        challenger_loss=target,
        challenger_rate=float(table.settings[table.best]),
        law=law,
        horizons=tuple(base),
        losses=tuple(losses.tolist()),
        rates=tuple(float(its.settings[its.best]) for its in base.values()),
        seeds=len(table.seeds),
    )


def time_speedup(steps: Estimate, ratio: float, interval: tuple[float, float]) -> Estimate:
    """Turns a speedup in steps into one in time.

    ``ratio`` is the baseline's step time over the challenger's, measured interleaved in one
    process. Both lower ends of the intervals are multiplied, and both upper ends, which is wider
    than 95%.
    """
    if steps.value is None or steps.interval is None:
        return Estimate(None, None, steps.reason)
    low, high = steps.interval[0] * interval[0], steps.interval[1] * interval[1]
    return Estimate(steps.value * ratio, (low, high), steps.reason)


def _by_horizon(runs: pl.DataFrame, side: str) -> dict[int, LossTable]:
    """Returns a table for each horizon, none of which diverged at every rate."""

    def table(name: dict[str, Any], its: pl.DataFrame) -> tuple[int, LossTable]:
        found = loss_table(its)
        _ = found.best  # raises if all diverged
        return int(name["steps"]), found

    try:
        return dict(each_group(runs, ["steps"], table))
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from None


def _interval(
    value: float, horizons: Array, tables: Sequence[LossTable], steps: int
) -> tuple[float, float]:
    """Returns the interval of a speedup; ``tables`` are the horizons', then the challenger's."""
    samples = seed_resamples(len(tables[-1].seeds))
    best = [samples.means(table.losses).min(axis=1) for table in tables]
    reached = inverse(*fit_rows(horizons, np.stack(best[:-1], axis=1)), best[-1])
    with np.errstate(divide="ignore"):
        low, high = samples.interval(np.log(reached / steps))
    shortest, longest = np.log(horizons[[0, -1]] / steps)
    return (
        0.0 if low < shortest else min(math.exp(low), value),
        math.inf if high > longest else max(math.exp(high), value),
    )


def _outside(law: PowerLaw, horizons: Array, target: float, steps: int) -> str:
    """Returns why ``target`` cannot be read off between the horizons, or ""."""
    first, last = horizons[[0, -1]]
    reached = law.steps(target)
    if first <= reached <= last:
        return ""
    bound, at, more = ("above", last, "longer") if reached > last else ("below", first, "shorter")
    return (
        f"the challenger's loss {target:.4g} after {steps} steps is not one that the "
        f"baseline reaches between its horizons of {first:.0f} and {last:.0f} steps: the speedup "
        f"is {bound} {at / steps:.3g}; add {more} horizons"
    )


def paired_difference(first: pl.DataFrame, second: pl.DataFrame) -> Estimate:
    r"""Returns the first sweep's loss minus the second's, each at its best rates, in nats/token.

    :math:`\bar d \pm t_{n-1}\, s_d / \sqrt n`, :math:`d_i` the difference at seed i, which gave
    both the same initialization and batches, averaged over the widths. At each width a side's rate
    is the one of lowest seed-averaged loss on its grid, the same for all seeds; one at an end of
    its grid is a reason. In a claim that the difference lies within a margin, the interval makes
    the two one-sided tests at 2.5% each (Schuirmann, 1987): a mere failure to find a difference is
    not equivalence.

    Raises:
        ValueError: for widths or seeds that differ between the sides, seeds that differ between
            widths, a side whose every rate diverged, and as
            :func:`~isolab.analysis.seeds.loss_table`.
    """
    sides = [
        dict(each_group(runs, ["width"], lambda name, its: (name["width"], loss_table(its))))
        for runs in (first, second)
    ]
    widths, others = (list(side) for side in sides)
    if widths != others:
        raise ValueError(f"the sides' widths are {widths} and {others}; allowed: the same")
    differences, notes, seeds = [], [], set()
    for width, one, other in zip(widths, *(side.values() for side in sides), strict=True):
        require_same_seeds("the first side", one.seeds, "the second", other.seeds)
        differences.append(one.losses[one.best] - other.losses[other.best])
        edges = (
            one.edge_note("the first side's best rate"), other.edge_note("the second's best rate")
        )  # fmt: skip
        notes += [f"width {width}: {edge}" for edge in edges if edge]
        seeds.add(one.seeds)
    if len(seeds) > 1:
        raise ValueError("the widths have different seeds; allowed: the same")
    each = np.mean(differences, axis=0)
    return Estimate(float(each.mean()), student_interval(each), joined(notes) or None)
