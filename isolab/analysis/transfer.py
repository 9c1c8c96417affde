r"""How well a learning rate transfers across widths, in numbers with intervals over seeds.

With :math:`L_n(x)` the loss of width n at :math:`x = \log_2(\text{rate})`, read off the grid as in
:mod:`isolab.analysis.rate_curve`, :math:`x^*_n` its lowest point and :math:`n_0` the base width:

1. :func:`exponents`: the power of the width with which the best rate moves, and its residual, the
   root mean square misfit of :math:`x^*_n = c_0 + e \log_2 n`;
2. :func:`regrets`: :math:`L_n(x^*_{n_0}) - L_n(x^*_n)`, what the base width's best rate costs at
   the others, and grid steps, :math:`x^*_n - x^*_{n_0}`, of a factor of two each, by which the best
   rate moved; :func:`worst_shift`: those at the largest width;
3. :func:`sensitivities`: what a step costs, the increase a factor f off the best rate:
   :math:`\tfrac{1}{2} [L_n(x^*_n + \log_2 f) + L_n(x^*_n - \log_2 f)] - L_n(x^*_n)`;
4. :func:`~isolab.analysis.ranking.limits` and :func:`~isolab.analysis.ranking.penalties`: losses
   extrapolated to infinite width, and against a reference;
   :func:`~isolab.analysis.ranking.ranking` and :func:`~isolab.analysis.ranking.loss_differences`:
   the same at the largest width.

A best rate at an end of its grid, or where every rate diverged, is a bound: the fit leaves such a
width out, and the number gets a reason. In a resample that reaches an end of a grid the steps and
the exponent are unbounded towards that side; one whose rate falls off a width's grid may have any
regret or increase from 0 to infinity. A best rate next to a diverged one is known to half a grid
step, and intervals are widened by what that can do. They are over seeds: they do not say whether a
power law holds; the residual does.

What ``runs``, ``by``, ``options``, notes and reasons are, and what is refused:
:mod:`isolab.analysis.groups`.

Reference: the metrics follow Kalra and Barkeshli, arXiv:2605.21486; the exponents that theory gives
are Everett et al., arXiv:2407.05872. Reading losses off seed-averaged parabolas is this project's
choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import (
    Options,
    WidthGroup,
    ends,
    group_frame,
    joined,
    told,
    width_groups,
)
from isolab.analysis.ranking import limits, loss_differences, penalties, ranking
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array

__all__ = [
    "exponents",
    "limits",
    "loss_differences",
    "penalties",
    "ranking",
    "regrets",
    "sensitivities",
    "worst_shift",
]

_EXPONENTS = [*ends("exponent"), "intercept", "residual", "widths", "seeds", "note", "reason"]
_RATES = ["transferred_rate", "transferred_loss", "best_rate", "best_loss"]
_SHIFT = [*ends("grid_steps"), "note", "reason"]
_SENSITIVITIES = ["factor", *ends("increase"), "increase_below", "increase_above", "note"]


def exponents(runs: pl.DataFrame, by: Sequence[str], **options: Unpack[Options]) -> pl.DataFrame:
    """Fits the power of the width with which each group's best rate moves, by least squares.

    Returns:
        A row per group: exponent with its interval, intercept (log2 of the fitted rate at width 1),
        residual (log2 units) and widths (how many the fit counts; it can miss from three on). Nulls
        where fewer than two widths count.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": "adam", "width": n, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": 2 + 0.1 * (x + np.log2(n) - 1) ** 2}
        ...     for n, x in product([32, 64, 128], range(-9, 0))])
        >>> found = exponents(runs, by=["optimizer"]).row(0, named=True)
        >>> round(found["exponent"], 6), round(found["intercept"], 6), found["exponent_low"]
        (-1.0, 1.0, -inf)
    """
    rows = [group.name | _exponent(group) for group in width_groups(runs, by, **options)]
    return group_frame(rows, runs, by, _EXPONENTS)


def regrets(
    runs: pl.DataFrame,
    by: Sequence[str],
    base_width: float | None = None,
    **options: Unpack[Options],
) -> pl.DataFrame:
    """Carries each group's best rate at ``base_width`` (None: its smallest) to its other widths.

    Returns:
        A row per group and width but the base: transferred_rate, transferred_loss (+inf where
        diverged), best_rate, best_loss, regret (nats/token, never below 0) and grid_steps with
        their intervals. Losses and regret are null where the transferred rate is off the width's
        grid. A group of one width has one row, of nulls.

    Raises:
        ValueError: for a base width that a group does not have.

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

    Returns:
        A row per group: grid_steps with its interval, as of :func:`regrets`. Nulls and a reason
        where the largest width is the base.
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
    """Measures what a rate some factors above and below the best one costs, at every width.

    Returns:
        A row per group, width and factor: increase (nats/token, the mean of both sides) with its
        interval, increase_below and increase_above (one side each); no reason. +inf where a side
        diverged; null where the grid ends before a side.

    Raises:
        ValueError: for a factor that is not above 1 and finite.
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


def _exponent(group: WidthGroup) -> dict[str, Any]:
    used = [curve for curve in group.curves if not curve.edge_note]
    edges = [curve.edge_note for curve in group.curves]
    steps = [curve.step_note for curve in group.curves]
    row: dict[str, Any] = {"widths": len(used), "seeds": len(group.seeds)}
    if len(used) < 2:
        of = f" of {group.widths}" if len(used) < len(group.curves) else ""
        counted = f"{[curve.width for curve in used]}{of}"
        few = f"an exponent needs the best rates of 2 widths or more, got {counted}"
        return row | told([few, *edges], steps)
    x = np.log2([curve.width for curve in used])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    best, low, high = (
        np.stack([getattr(curve.best, name) for curve in used], axis=1)
        for name in ("x", "low", "high")
    )
    slope = best @ weights
    least, most = _least(weights, low, high), -_least(-weights, low, high)
    row |= group.columns("exponent", slope, least, most)
    row["intercept"] = best[0].mean() - slope[0] * x.mean()
    row["residual"] = np.sqrt(np.mean((best[0] - row["intercept"] - slope[0] * x) ** 2))
    two = "two widths: the line runs through both, and the residual says nothing"
    left_out = "left out of the fit" if any(edges) else ""
    return row | told([*edges, left_out], [*steps, two if len(used) == 2 else "", group.one_seed])


def _least(weights: Array, low: Array, high: Array) -> Array:
    """Returns each row's least weighted sum of (rows, n) numbers between low and high, (rows,)."""
    counted = np.abs(weights) > 1e-12  # the middle of three widths: 0 * inf would be NaN
    weights, low, high = weights[counted], low[:, counted], high[:, counted]
    return np.asarray((weights * np.where(weights > 0, low, high)).sum(axis=1))


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
        carried = curve.at(base.best.x)
        row["transferred_rate"] = base.rate
        if np.isnan(carried[0]):
            reasons.append(_off_grid(curve, base.rate, "the transferred rate"))
        else:
            row["transferred_loss"] = carried[0]
    if not curve.diverged:
        row |= {"best_rate": curve.rate, "best_loss": curve.best.loss[0]}
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
        least = np.nan_to_num(both, posinf=np.inf).mean(axis=0)
        row |= _nonnegative(group, "increase", mean, least)
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
