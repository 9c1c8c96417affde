r"""What a learning rate carried from one width to another costs there.

With :math:`L_n(x)` the loss of width n at :math:`x = \log_2(\text{rate})`, read off the grid as in
:mod:`isolab.analysis.rate_curve`, :math:`x^*_n` its lowest point and :math:`n_0` the base width:

.. math:: \text{regret}_n = L_n(x^*_{n_0}) - L_n(x^*_n) \qquad
          \text{grid steps}_n = x^*_n - x^*_{n_0}

Metric 2 of transfer is the regret; grid steps, of a factor of two each, say how far the best rate
moved. Metric 3 is the sensitivity, which says what a step costs: the increase of the loss a factor
f off the optimum, averaged over both sides,

.. math:: \tfrac{1}{2} \left[L_n(x^*_n + \log_2 f) + L_n(x^*_n - \log_2 f)\right] - L_n(x^*_n)

In a resample of the seeds whose rate falls off the grid of a width, a loss may be anything: the
regret's or increase's interval is then taken at its widest, from 0 to infinity. Grid steps are
unbounded towards the side where a best rate lies at an end of its grid.

Reference: the metrics follow Kalra and Barkeshli, arXiv:2605.21486; reading them off seed-averaged
parabolas is this project's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import WidthGroup, group_frame, joined, width_groups

_NUMBERS = [
    *("width", "transferred_rate", "transferred_loss", "best_rate", "best_loss"),
    *("regret", "regret_low", "regret_high", "grid_steps", "grid_steps_low", "grid_steps_high"),
]
_TEXTS = ["note", "reason"]
_REGRETS = dict.fromkeys(_NUMBERS, pl.Float64) | dict.fromkeys(_TEXTS, pl.String)
_SHIFT = ["width", "grid_steps", "grid_steps_low", "grid_steps_high", "note", "reason"]
_SENSITIVITIES = dict.fromkeys(
    [
        *("width", "factor", "increase", "increase_low", "increase_high"),
        *("increase_below", "increase_above"),
    ],
    pl.Float64,
) | {"note": pl.String}


def regrets(
    runs: pl.DataFrame,
    by: Sequence[str],
    base_width: float | None = None,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Carries each group's best rate at its base width to its other widths.

    Args:
        runs: a row per run; columns ``by``, ``width``, ``rate``, ``loss`` (+inf or NaN where
            diverged) and ``seed``.
        by: columns that tell groups apart.
        base_width: None takes each group's smallest.
        rate, loss, seed: names of columns.
        confidence, resamples: of the intervals over seeds; the generator is seeded.

    Returns:
        A row per group and width but the base: ``by``, width, transferred_rate, transferred_loss
        (+inf where diverged), best_rate, best_loss, regret (nats/token, never below 0) and
        grid_steps, each with _low and _high, note, and reason: why a claim on the row must be
        inconclusive, or null. Losses and regret are null where the transferred rate is off the
        width's grid. A group of one width has one row, of nulls.

    Raises:
        ValueError: for a base width that a group does not have, and as
            :func:`~isolab.analysis.width_group.width_groups`.

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
    for group in width_groups(runs, by, rate, loss, seed, confidence, resamples):
        base = _base(group, base_width)
        others = [curve for curve in group.curves if curve is not base]
        rows += [group.name | _regret(group, base, curve) for curve in others]
        if not others:
            rows.append(group.name | _alone(base))
    return group_frame(rows, runs, by, _REGRETS)


def worst_shift(
    runs: pl.DataFrame,
    by: Sequence[str],
    base_width: float | None = None,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Returns how far each group's best rate moved at its largest width, where drift adds up.

    Args: as :func:`regrets`.

    Returns:
        A row per group: ``by``, width, grid_steps, grid_steps_low, grid_steps_high, note, reason.
        Nulls and a reason where the largest width is the base.

    Raises:
        ValueError: as :func:`regrets`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": "adam", "width": n, "learning_rate": 2.0**x, "seed": s,
        ...      "final_validation_loss": 2 + 0.1 * (x + np.log2(n) / 4 + 5) ** 2}
        ...     for n, x, s in product([32, 64, 128], range(-9, 0), [0, 1])])
        >>> worst_shift(runs, by=["optimizer"]).select(
        ...     "width", pl.col("grid_steps", "grid_steps_low").round(6)).rows()
        [(128, -0.5, -0.5)]
    """
    rows = []
    for group in width_groups(runs, by, rate, loss, seed, confidence, resamples):
        base, largest = _base(group, base_width), group.curves[-1]
        row = _alone(base) if largest is base else _regret(group, base, largest)
        rows.append(group.name | {name: row.get(name) for name in _SHIFT})
    return group_frame(rows, runs, by, {name: _REGRETS[name] for name in _SHIFT})


def sensitivities(
    runs: pl.DataFrame,
    by: Sequence[str],
    factors: Sequence[float] = (2, 4),
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Measures what a rate some factors off the best one costs, at each group's every width.

    Args:
        runs, by, rate, loss, seed, confidence, resamples: as in :func:`regrets`.
        factors: above 1; each is taken above and below the best rate.

    Returns:
        A row per group, width and factor: ``by``, width, factor, increase (nats/token, the mean of
        both sides) with increase_low and increase_high, increase_below and increase_above (one
        side each), note. +inf where a side diverged; null where the grid ends before a side.

    Raises:
        ValueError: for a factor that is not above 1 and finite, and as
            :func:`~isolab.analysis.width_group.width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": "adam", "width": 32, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": 2 + 0.1 * (x + 5.25) ** 2} for x in range(-9, 0)])
        >>> sensitivities(runs, by=["optimizer"])["increase"].round(6).to_list()
        [0.1, 0.4]
    """
    wrong = [factor for factor in factors if not 1 < factor < math.inf]
    if wrong or not len(factors):
        raise ValueError(f"factors must be above 1 and finite, and one at least, got {factors}")
    groups = width_groups(runs, by, rate, loss, seed, confidence, resamples)
    rows = [
        group.name | {"width": curve.width, "factor": float(factor)} | _off(group, curve, factor)
        for group in groups
        for curve in group.curves
        for factor in factors
    ]
    return group_frame(rows, runs, by, _SENSITIVITIES)


def _base(group: WidthGroup, base_width: float | None) -> RateCurve:
    base = group.curve(group.widths[0] if base_width is None else base_width)
    if base is None:
        raise ValueError(f"{group.name}: base_width {base_width} is not in {group.widths}")
    return base


def _alone(base: RateCurve) -> dict[str, Any]:
    """Returns the row of a base width that has none to carry its rate to."""
    why = f"width {base.width} is the base and the largest: add larger ones, or take a smaller base"
    return {"width": base.width, "note": why, "reason": why}


def _regret(group: WidthGroup, base: RateCurve, curve: RateCurve) -> dict[str, Any]:
    reasons = [base.edge_note, curve.edge_note]
    one_seed = "one seed: no interval" if len(group.seeds) == 1 else ""
    notes = [base.step_note, curve.step_note, one_seed]
    row: dict[str, Any] = {"width": curve.width}
    if not base.diverged:
        carried = curve.at(base.best.x)
        row |= {"transferred_rate": 2.0 ** float(base.best.x[0]), "transferred_loss": carried[0]}
        if np.isnan(carried[0]):
            row["transferred_loss"] = None
            reasons.append(_off_grid(curve, float(base.best.x[0]), "the transferred rate"))
    if not curve.diverged:
        best_x, best_loss = float(curve.best.x[0]), float(curve.best.loss[0])
        row |= {"best_rate": 2.0**best_x, "best_loss": best_loss}
    if not (base.diverged or curve.diverged):
        steps = curve.best.x - base.best.x
        least, most = curve.best.low - base.best.high, curve.best.high - base.best.low
        low, high = group.interval(steps, least, most)
        row |= {"grid_steps": steps[0], "grid_steps_low": low, "grid_steps_high": high}
        if row["transferred_loss"] is not None:
            low, high = _nonnegative(group, carried - curve.best.loss)
            row |= {"regret": carried[0] - best_loss, "regret_low": low, "regret_high": high}
    reason = joined(reasons)
    return row | {"note": joined([reason, *notes]), "reason": reason or None}


def _off(group: WidthGroup, curve: RateCurve, factor: float) -> dict[str, Any]:
    if curve.diverged:
        return {"note": curve.edge_note}
    best, step = curve.best, math.log2(factor)
    sides = {"below": best.x - step, "above": best.x + step}
    increases = {name: curve.at(x) - best.loss for name, x in sides.items()}
    notes = [curve.edge_note, curve.step_note]
    row: dict[str, Any] = {}
    for name, increase in increases.items():
        if np.isnan(increase[0]):
            rate = float(sides[name][0])
            notes.append(_off_grid(curve, rate, f"a factor of {factor:g} {name} the best rate"))
        else:
            row[f"increase_{name}"] = increase[0]
            if np.isinf(increase[0]):
                at = f"{2.0 ** sides[name][0]:.3g}"
                notes.append(f"diverged at {at}, a factor of {factor:g} {name} the best rate")
    both = np.stack(list(increases.values()))
    mean = np.where(np.isinf(both).any(axis=0), np.inf, both.mean(axis=0))
    if len(group.seeds) == 1:
        notes.append("one seed: no interval")
    if not np.isnan(mean[0]):
        low, high = _nonnegative(group, mean, np.where(np.isnan(both), 0.0, both).mean(axis=0))
        row |= {"increase": mean[0], "increase_low": low, "increase_high": high}
    return row | {"note": joined(notes)}


def _nonnegative(
    group: WidthGroup, values: Array, least: Array | None = None
) -> tuple[float, float]:
    """Returns the interval of a loss above the best one; NaN, off the grid, may be anything."""
    least = np.where(np.isnan(values), 0.0, values) if least is None else least
    return group.interval(values, least, np.where(np.isnan(values), np.inf, values), floor=0.0)


def _off_grid(curve: RateCurve, x: float, what: str) -> str:
    first, last = 2.0 ** curve.x[[0, -1]]
    way = "lower" if x < curve.x[0] else "higher"
    return (
        f"width {curve.width}: {what}, {2.0**x:.3g}, is off the grid from {first:.3g} to "
        f"{last:.3g}: widen it to {way} rates"
    )
