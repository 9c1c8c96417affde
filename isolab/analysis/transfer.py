r"""How well a learning rate transfers across widths, in numbers with intervals over seeds.

With :math:`L_n(x)` the loss of width n at :math:`x = \log_2(\text{rate})`, read off the grid as in
:mod:`isolab.analysis.rate_curve`, :math:`x^*_n` its lowest point and :math:`n_0` the least width:

- exponent: e of :math:`x^*_n = c_0 + e \log_2 n`, whose root mean square misfit is the residual;
- regret: :math:`L_n(x^*_{n_0}) - L_n(x^*_n)`, and grid steps, of a factor of two each:
  :math:`x^*_n - x^*_{n_0}`;
- increase, a factor f off the best rate:
  :math:`\tfrac{1}{2} [L_n(x^*_n + \log_2 f) + L_n(x^*_n - \log_2 f)] - L_n(x^*_n)`.

A best rate at an end of its grid, or where every rate diverged, is a bound: the fit leaves such a
width out, and the number gets a reason. In a resample that reaches an end of a grid the steps and
the exponent are unbounded towards that side; one whose rate falls off a width's grid may have any
regret or increase from 0 to infinity. A best rate next to a diverged one is known to half a grid
step, and intervals are widened by what that can do. They are over seeds: they do not say whether a
power law holds; the residual does.

What ``runs``, ``by``, notes and reasons are, and what is refused: :mod:`isolab.analysis.groups`.

Reference: the metrics follow Kalra and Barkeshli, arXiv:2605.21486; losses are read off
seed-averaged parabolas by this project's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import WidthGroup, ends, group_frame, joined, told, width_groups
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array

FACTORS = (2, 4)
"""How far off the best rate :func:`sensitivities` looks."""


def exponents(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Fits the power of the width with which each group's best rate moves, by least squares.

    A row per group: exponent with its interval, intercept (log2 of the fitted rate at width 1) and
    residual (log2 units; it can miss from three widths on). Nulls where fewer than two count.
    """
    rows = [group.name | _exponent(group) for group in width_groups(runs, by)]
    columns = [*ends("exponent"), "intercept", "residual", "note", "reason"]
    return group_frame(rows, runs, by, columns)


def regrets(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Carries each group's best rate at its smallest width to its other widths.

    Returns:
        A row per group and width but the smallest: regret (nats/token, never below 0; +inf where
        the transferred rate diverged, null where it is off the width's grid) and grid_steps with
        their intervals. A group of one width has one row, of nulls.

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
    rows = [
        group.name | _regret(group, group.curves[0], curve)
        for group in width_groups(runs, by)
        for curve in group.curves[1:] or group.curves
    ]
    columns = [*ends("regret"), *ends("grid_steps"), "note", "reason"]
    return group_frame(rows, runs, [*by, "width"], columns)


def worst_shift(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Returns the rows of :func:`regrets` at each group's largest width, where drift adds up."""
    return regrets(runs, by).group_by(by, maintain_order=True).last()


def sensitivities(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Measures what a rate some :data:`FACTORS` above and below the best one costs, by width.

    Returns:
        A row per group, width and factor: increase (nats/token, the mean of both sides) with its
        interval; no reason. +inf where a side diverged; null where the grid ends before a side.
    """
    rows = [
        group.name | {"width": curve.width, "factor": float(factor)} | _off(group, curve, factor)
        for group in width_groups(runs, by)
        for curve in group.curves
        for factor in FACTORS
    ]
    return group_frame(rows, runs, [*by, "width"], ["factor", *ends("increase"), "note"])


def _exponent(group: WidthGroup) -> dict[str, Any]:
    used = [curve for curve in group.curves if not curve.edge_note]
    edges = [curve.edge_note for curve in group.curves]
    steps = [curve.step_note for curve in group.curves]
    if len(used) < 2:
        of = f" of {group.widths}" if len(used) < len(group.curves) else ""
        counted = f"{[curve.width for curve in used]}{of}"
        few = f"an exponent needs the best rates of 2 widths or more, got {counted}"
        return told([few, *edges], steps)
    x = np.log2([curve.width for curve in used])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    best, low, high = (
        np.stack([getattr(curve.best, name) for curve in used], axis=1)
        for name in ("x", "low", "high")
    )
    slope = best @ weights
    least, most = _least(weights, low, high), -_least(-weights, low, high)
    intercept = best[0].mean() - slope[0] * x.mean()
    residual = np.sqrt(np.mean((best[0] - intercept - slope[0] * x) ** 2))
    row = group.columns("exponent", slope, least, most)
    row |= {"intercept": intercept, "residual": residual}
    two = "two widths: the line runs through both, and the residual says nothing"
    left_out = "left out of the fit" if any(edges) else ""
    return row | told([*edges, left_out], [*steps, two if len(used) == 2 else "", group.one_seed])


def _least(weights: Array, low: Array, high: Array) -> Array:
    """Returns each row's least weighted sum of (rows, n) numbers between low and high, (rows,)."""
    counted = np.abs(weights) > 1e-12  # the middle of three widths: 0 * inf would be NaN
    weights, low, high = weights[counted], low[:, counted], high[:, counted]
    return np.asarray((weights * np.where(weights > 0, low, high)).sum(axis=1))


def _regret(group: WidthGroup, base: RateCurve, curve: RateCurve) -> dict[str, Any]:
    row: dict[str, Any] = {"width": curve.width}
    if curve is base:
        return row | told([f"width {base.width} is the only one: add larger ones"])
    reasons = [base.edge_note, curve.edge_note]
    carried = np.array([np.nan]) if base.diverged else curve.at(base.best.x)
    if np.isnan(carried[0]) and not base.diverged:
        reasons.append(_off_grid(curve, base.rate, "the transferred rate"))
    if not (base.diverged or curve.diverged):
        best, its = curve.best, base.best
        row |= group.columns("grid_steps", best.x - its.x, best.low - its.high, best.high - its.low)
        if not np.isnan(carried[0]):
            row |= _nonnegative(group, "regret", carried - best.loss)
    return row | told(reasons, [base.step_note, curve.step_note, group.one_seed])


def _off(group: WidthGroup, curve: RateCurve, factor: float) -> dict[str, Any]:
    if curve.diverged:
        return {"note": curve.edge_note}
    notes, increases = [curve.edge_note, curve.step_note], []
    for side, shift in (("below", -math.log2(factor)), ("above", math.log2(factor))):
        x = curve.best.x + shift
        increases.append(curve.at(x) - curve.best.loss)
        rate, where = 2.0 ** float(x[0]), f"a factor of {factor:g} {side} the best rate"
        if np.isnan(increases[-1][0]):
            notes.append(_off_grid(curve, rate, where))
        elif np.isinf(increases[-1][0]):
            notes.append(f"diverged at {rate:.3g}, {where}")
    both, row = np.stack(increases), {}
    mean = np.where(np.isinf(both).any(axis=0), np.inf, both.mean(axis=0))
    if not np.isnan(mean[0]):
        least = np.nan_to_num(both, posinf=np.inf).mean(axis=0)
        row = _nonnegative(group, "increase", mean, least)
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
