r"""What a learning rate carried from one width to another costs there.

With :math:`L_n(x)` the loss of width n at :math:`x = \log_2(\text{rate})`, read off the grid as in
:mod:`isolab.analysis.rate_curve`, :math:`x^*_n` its lowest point and :math:`n_0` the base width:

.. math:: \text{regret}_n = L_n(x^*_{n_0}) - L_n(x^*_n) \qquad
          \text{grid steps}_n = x^*_n - x^*_{n_0}

Metric 2 of transfer is the regret; grid steps, of a factor of two each, say how far the best rate
moved. Metric 3 is the sensitivity, which says what a step costs: the increase of the loss a factor
f off the optimum, averaged over both sides,

.. math:: \tfrac{1}{2} \left[L_n(x^*_n + \log_2 f) + L_n(x^*_n - \log_2 f)\right] - L_n(x^*_n)

Where a resample's rate falls off a width's grid, its regret or increase may be anything from 0 to
infinity; its grid steps are unbounded towards the side where a best rate is an end of its grid.

Reference: the metrics follow Kalra and Barkeshli, arXiv:2605.21486; reading them off seed-averaged
parabolas is this project's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import Options, ends, group_frame, joined, told
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import WidthGroup, width_groups

_RATES = ["transferred_rate", "transferred_loss", "best_rate", "best_loss"]
_SHIFT = [*ends("grid_steps"), "note", "reason"]
_SENSITIVITIES = ["factor", *ends("increase"), "increase_below", "increase_above", "note"]


def regrets(
    runs: pl.DataFrame,
    by: Sequence[str],
    base_width: float | None = None,
    **options: Unpack[Options],
) -> pl.DataFrame:
    """Carries each group's best rate at its base width to its other widths.

    Args:
        runs, by, options: of :func:`width_groups`.
        base_width: None takes each group's smallest.

    Returns:
        A row per group and width but the base: ``by``, width, transferred_rate, transferred_loss
        (+inf where diverged), best_rate, best_loss, regret (nats/token, never below 0) and
        grid_steps with their intervals, note and reason. Losses and regret are null where the
        transferred rate is off the width's grid. A group of one width has one row, of nulls.

    Raises:
        ValueError: for a base width that a group does not have, and as :func:`width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": "adam", "width": n, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": 2 + 0.1 * (x + np.log2(n) - 1) ** 2}
        ...     for n, x in product([32, 64, 128], range(-9, 0))])
        >>> regrets(runs, by=["optimizer"]).select(
        ...     "width", pl.col("regret", "grid_steps").round(6)).rows()
        [(64, 0.1, -1.0), (128, 0.4, -2.0)]
    """
    rows = []
    for group in width_groups(runs, by, **options):
        base = _base(group, base_width)
        others = [curve for curve in group.curves if curve is not base] or [base]
        rows += [group.name | _regret(group, base, curve) for curve in others]
    return group_frame(rows, runs, [*by, "width"], [*_RATES, *ends("regret"), *_SHIFT])


def worst_shift(
    runs: pl.DataFrame,
    by: Sequence[str],
    base_width: float | None = None,
    **options: Unpack[Options],
) -> pl.DataFrame:
    """Returns how far each group's best rate moved at its largest width, where drift adds up.

    Args: as :func:`regrets`.

    Returns:
        A row per group: ``by``, width, grid_steps with its interval, note and reason, as of
        :func:`regrets`. Nulls and a reason where the largest width is the base.

    Raises:
        ValueError: as :func:`regrets`.
    """
    groups = width_groups(runs, by, **options)
    rows = [g.name | _regret(g, _base(g, base_width), g.curves[-1]) for g in groups]
    return group_frame(rows, runs, [*by, "width"], _SHIFT)


def sensitivities(
    runs: pl.DataFrame,
    by: Sequence[str],
    factors: Sequence[float] = (2, 4),
    **options: Unpack[Options],
) -> pl.DataFrame:
    """Measures what a rate some factors off the best one costs, at each group's every width.

    Args:
        runs, by, options: of :func:`width_groups`.
        factors: above 1; each is taken above and below the best rate.

    Returns:
        A row per group, width and factor: ``by``, width, factor, increase (nats/token, the mean of
        both sides) with its interval, increase_below and increase_above (one side each), note.
        +inf where a side diverged; null where the grid ends before a side.

    Raises:
        ValueError: for a factor that is not above 1 and finite, and as :func:`width_groups`.
    """
    if not len(factors) or not all(1 < factor < math.inf for factor in factors):
        raise ValueError(f"factors must be above 1 and finite, and one at least, got {factors}")
    rows = [
        group.name | {"width": curve.width, "factor": float(factor)} | _off(group, curve, factor)
        for group in width_groups(runs, by, **options)
        for curve in group.curves
        for factor in factors
    ]
    return group_frame(rows, runs, [*by, "width"], _SENSITIVITIES)


def _base(group: WidthGroup, base_width: float | None) -> RateCurve:
    base = group.curves[0] if base_width is None else group.curve(base_width)
    if base is None:
        raise ValueError(f"{group.name}: base_width {base_width} is not in {group.widths}")
    return base


def _regret(group: WidthGroup, base: RateCurve, curve: RateCurve) -> dict[str, Any]:
    row: dict[str, Any] = {"width": curve.width}
    if curve is base:
        where = f"width {base.width} is the base and the largest"
        return row | told([f"{where}: add larger ones, or take a smaller base"])
    reasons = [base.edge_note, curve.edge_note]
    if not base.diverged:
        carried, rate = curve.at(base.best.x), 2.0 ** float(base.best.x[0])
        row["transferred_rate"] = rate
        if np.isnan(carried[0]):
            reasons.append(_off_grid(curve, rate, "the transferred rate"))
        else:
            row["transferred_loss"] = carried[0]
    if not curve.diverged:
        row["best_rate"] = 2.0 ** float(curve.best.x[0])
        row["best_loss"] = curve.best.loss[0]
    if not (base.diverged or curve.diverged):
        best, its = curve.best, base.best
        row |= group.columns("grid_steps", best.x - its.x, best.low - its.high, best.high - its.low)
        if "transferred_loss" in row:
            row |= _nonnegative(group, "regret", carried - best.loss)
    return row | told(reasons, [base.step_note, curve.step_note, group.one_seed])


def _off(group: WidthGroup, curve: RateCurve, factor: float) -> dict[str, Any]:
    if curve.diverged:
        return {"note": curve.edge_note}
    row: dict[str, Any] = {}
    notes, increases = [curve.edge_note, curve.step_note], []
    for side, shift in (("below", -math.log2(factor)), ("above", math.log2(factor))):
        x = curve.best.x + shift
        increase, rate = curve.at(x) - curve.best.loss, 2.0 ** float(x[0])
        increases.append(increase)
        where = f"a factor of {factor:g} {side} the best rate"
        if np.isnan(increase[0]):
            notes.append(_off_grid(curve, rate, where))
            continue
        row[f"increase_{side}"] = increase[0]
        if np.isinf(increase[0]):
            notes.append(f"diverged at {rate:.3g}, {where}")
    both = np.stack(increases)
    mean = np.where(np.isinf(both).any(axis=0), np.inf, both.mean(axis=0))
    if not np.isnan(mean[0]):
        row |= _nonnegative(
            group, "increase", mean, np.nan_to_num(both, posinf=np.inf).mean(axis=0)
        )
    return row | {"note": joined([*notes, group.one_seed])}


def _nonnegative(
    group: WidthGroup, name: str, values: Array, least: Array | None = None
) -> dict[str, float]:
    """Returns the columns of a loss above the best one; NaN, off the grid, may be anything."""
    unknown = np.isnan(values)
    least = np.where(unknown, 0.0, values) if least is None else least
    return group.columns(name, values, least, np.where(unknown, np.inf, values), floor=0.0)


def _off_grid(curve: RateCurve, rate: float, what: str) -> str:
    first, last = 2.0 ** curve.x[[0, -1]]
    way = "lower" if rate < first else "higher"
    return (
        f"width {curve.width}: {what}, {rate:.3g}, is off the grid from {first:.3g} to "
        f"{last:.3g}: widen it to {way} rates"
    )
