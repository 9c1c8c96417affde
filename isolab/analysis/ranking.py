r"""Losses of groups, each at its own best rates: at the largest width, at infinite width, compared.

A loss is the lowest point of the parabola in log2(rate) (:mod:`isolab.analysis.rate_curve`), so
that a grid that happens to hit its best rate has no advantage over one that falls between two;
:func:`~isolab.analysis.speedup.paired_difference` compares grid points.

The limit of infinite width is fitted to each width's loss by :mod:`isolab.analysis.power_law`:

.. math:: L(n) = L_\infty + k\,n^{-p}

THIS IS AN EXTRAPOLATION, from the few widths that ran to ones that nobody can run. The interval is
over seeds: it does not cover the law being the wrong one, and three widths fit three parameters
exactly. Nor does a limit over the width alone exist at a fixed number of steps unless the rates
suit the parameterization. Compare with the plain difference at the largest width before believing
a penalty.

What ``runs``, ``by``, notes and reasons are, and what is refused: :mod:`isolab.analysis.groups`.

Reference: the penalty follows metric 4 of Kalra and Barkeshli, arXiv:2605.21486.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import WidthGroup, ends, group_frame, joined, width_groups
from isolab.analysis.power_law import EXPONENTS, fit_rows
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array, require_same_seeds


@dataclass(frozen=True)
class _Level:
    """A group's loss at a width, or at infinite width, or the difference of two.

    rows: (rows,) nats/token, of the seed average and each resample, +inf where diverged; None where
    there is none; widths: it rests on; note, reason: "" where there is none.
    """

    rows: Array | None
    widths: Sequence[float]
    note: str
    reason: str

    def columns(self, group: WidthGroup, name: str) -> dict[str, Any]:
        """Returns the level with its interval, +inf for sure where it diverged, and its notes."""
        row: dict[str, Any] = {"note": self.note, "reason": self.reason or None}
        if self.rows is None:
            return row
        if np.isinf(self.rows[0]):
            return row | dict.fromkeys(ends(name), math.inf)
        return row | group.columns(name, self.rows)


def ranking(runs: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Ranks groups by their loss at the largest width of all, the lowest first.

    Returns:
        A row per group: rate, and loss (nats/token) with its interval. A group whose every rate
        diverged has loss +inf and ranks last; one without runs at the width has nulls and comes
        after.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": o, "width": 32, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": least + 0.1 * (x + 5) ** 2}
        ...     for (o, least), x in product([("adam", 1.75), ("muon", 1.5)], range(-9, 0))])
        >>> ranking(runs, ["optimizer"]).select("optimizer", pl.col("loss").round(3)).rows()
        [('muon', 1.5), ('adam', 1.75)]
    """
    groups = width_groups(runs, by)
    at_width = _at_largest(groups)
    rows = []
    for group in groups:
        level, curve = at_width(group), group.curves[-1]
        rate = None if level.rows is None or curve.diverged else curve.rate
        row = group.name | {"width": level.widths[0], "rate": rate}
        rows.append(row | level.columns(group, "loss"))
    rows.sort(key=lambda row: (row.get("loss") is None, row.get("loss")))
    return group_frame(rows, runs, [*by, "width"], ["rate", *ends("loss"), "note", "reason"])


def loss_differences(
    runs: pl.DataFrame, by: Sequence[str], against: Mapping[str, Any]
) -> pl.DataFrame:
    """Returns each group's loss at the largest width less its reference's, paired over seeds.

    Returns:
        As :func:`penalties`: difference, and width. +inf where the group diverged at every rate;
        null where the reference did, or either has no runs at the width.
    """
    groups = width_groups(runs, by)
    rows = _differences(groups, _at_largest(groups), against, "difference", "loss")
    columns = [*ends("difference"), "note", "reason"]
    return group_frame(rows, runs, [*by, "width"], columns)


def penalties(runs: pl.DataFrame, by: Sequence[str], against: Mapping[str, Any]) -> pl.DataFrame:
    """Returns each group's loss at infinite width less its reference's: an extrapolation.

    Args:
        against: values of some of the columns ``by``; a group's reference has these, and its own
            values of the others. ``{"parameterization": "standard"}`` compares every
            parameterization with standard under the same other values of ``by``.

    Returns:
        A row per group that is not a reference: penalty (nats/token, above 0 where the group is
        worse) with its interval, and limit, its loss at infinite width (not below 0).

    Raises:
        ValueError: for a column or values in ``against`` that no group has, or a reference with
            other seeds than the group's.
    """
    rows = _differences(width_groups(runs, by), _limit, against, "penalty", "limit")
    return group_frame(rows, runs, by, [*ends("penalty"), "limit", "note", "reason"])


def _differences(
    groups: Sequence[WidthGroup],
    level_of: Callable[[WidthGroup], _Level],
    against: Mapping[str, Any],
    difference: str,
    name: str,
) -> list[dict[str, Any]]:
    """Returns a row per group that is not a reference: its difference, and its level by name."""
    columns, rows = list(groups[0].name), []
    if not against or not set(against) <= set(columns):
        raise ValueError(f"against={against} must give values of some of the columns {columns}")
    if not any(against.items() <= its.name.items() for its in groups):
        known = list(dict.fromkeys(str({c: g.name[c] for c in against}) for g in groups))
        raise ValueError(f"no group has {against}; there are {', '.join(known)}")
    for group in groups:
        wanted = {**group.name, **against}
        if wanted == group.name:
            continue
        own, reference = level_of(group), next((g for g in groups if g.name == wanted), None)
        row = group.name | {"width": own.widths[-1]}
        if own.rows is not None:
            row[name] = float(own.rows[0])
        if reference is None:
            why = f"no reference: there is no group {wanted}"
            rows.append(row | {"note": why, "reason": why})
            continue
        require_same_seeds(group.name, group.seeds, reference.name, reference.seeds)
        rows.append(row | _less(own, level_of(reference)).columns(group, difference))
    return rows


def _less(own: _Level, other: _Level) -> _Level:
    """Returns the difference of two levels."""
    apart = f"widths differ: {own.widths} against {other.widths}"
    apart = apart if own.widths != other.widths else ""
    note, reason = (f"reference: {text}" if text else "" for text in (other.note, other.reason))
    rows = None
    if own.rows is not None and other.rows is not None and np.isfinite(other.rows[0]):
        with np.errstate(invalid="ignore"):  # resamples in which both diverged
            rows = own.rows - other.rows
    notes = joined([own.note, note, apart])
    return _Level(rows, own.widths, notes, joined([own.reason, reason, apart]))


def _at_largest(groups: Sequence[WidthGroup]) -> Callable[[WidthGroup], _Level]:
    """Returns what gives a group's loss at the largest width of all."""
    return functools.partial(_at_width, width=max(group.widths[-1] for group in groups))


def _at_width(group: WidthGroup, width: float) -> _Level:
    curve = group.curves[-1]
    if curve.width != width:
        why = f"no runs at width {width}: it has {group.widths}"
        return _Level(None, [width], why, why)
    # A single rate was fixed by hand; divergence at every rate is a result, and ranks last.
    reason = curve.edge_note if curve.edge in ("low", "high") and not curve.diverged else ""
    note = joined([curve.edge_note, curve.step_note, group.one_seed])
    return _Level(curve.best.loss, [width], note, reason)


def _limit(group: WidthGroup) -> _Level:
    """Returns L_inf."""
    used = [curve for curve in group.curves if not curve.diverged]
    reasons = [curve.edge_note for curve in group.curves]
    try:
        rows, exponent = _fit(used)
    except ValueError as error:
        why = joined([str(error), *reasons])
        return _Level(None, group.widths, why, why)
    if not EXPONENTS[0] * 1.01 < exponent < EXPONENTS[1] / 1.01:
        reasons.append(
            f"the law's exponent {exponent:.3g} is at an end of those sought, {EXPONENTS}"
        )
    if rows[0] == 0:
        reasons.append("the losses fall as fast as ever: these widths show no limit above 0")
    exact = "three widths: the law runs through all, and cannot miss" if len(used) == 3 else ""
    note = joined([*reasons, exact, group.one_seed])
    return _Level(rows, group.widths, note, joined(reasons))


def _fit(curves: Sequence[RateCurve]) -> tuple[Array, float]:
    """Returns the rows' limits and row 0's exponent; ValueError where there is no law."""
    widths = [curve.width for curve in curves]
    if len(curves) < 3:
        raise ValueError(f"a limit needs the losses of 3 widths or more, got {widths}")
    losses = np.stack([curve.best.loss for curve in curves], axis=1)
    found = f"losses {[round(float(value), 4) for value in losses[0]]} at widths {widths}"
    if not (losses > 0).all():
        raise ValueError(f"{found} are not all above 0, as a loss in nats is")
    limit, scale, exponent = fit_rows(np.array(widths, dtype=np.float64), losses)
    if not scale[0] > 0:
        raise ValueError(f"{found} do not fall with the width: no power law fits")
    return limit, float(exponent[0])
