r"""The loss that a parameterization tends to as the width grows, and what it costs against another.

.. math:: L(n) = L_\infty + k\,n^{-p}

fitted by :mod:`isolab.analysis.power_law` to each width's loss at its own best rate. Metric 4 of
transfer, the penalty, is one group's :math:`L_\infty` less the reference's.

THIS IS AN EXTRAPOLATION, from the few widths that ran to ones that nobody can run. The interval is
over seeds: it does not cover the law being the wrong one, and three widths fit three parameters
exactly. Nor does a limit over the width alone exist at a fixed number of steps unless the rates
suit the parameterization. Compare with the plain difference at the largest width,
:func:`~isolab.analysis.ranking.loss_differences`, before believing a penalty.

Reference: the metric follows Kalra and Barkeshli, arXiv:2605.21486.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.power_law import EXPONENTS, fit_rows
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import (
    WidthGroup,
    group_frame,
    joined,
    reference_of,
    width_groups,
)

_LIMITS = {
    **dict.fromkeys(["limit", "limit_low", "limit_high", "exponent"], pl.Float64),
    **dict.fromkeys(["widths", "seeds"], pl.Int64),
    **dict.fromkeys(["note", "reason"], pl.String),
}
_PENALTIES = {
    **dict.fromkeys(
        ["penalty", "penalty_low", "penalty_high", "limit", "reference_limit"], pl.Float64
    ),
    **dict.fromkeys(["note", "reason"], pl.String),
}


def limits(
    runs: pl.DataFrame,
    by: Sequence[str],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Extrapolates each group's loss at its best rates to infinite width.

    Args:
        runs: a row per run; columns ``by``, ``width``, ``rate``, ``loss`` (+inf or NaN where
            diverged) and ``seed``. Three widths at least, four for the fit to be able to miss.
        by: columns that tell groups apart.
        rate, loss, seed: names of columns.
        confidence, resamples: of the interval over seeds; the generator is seeded.

    Returns:
        A row per group: ``by``, limit with limit_low and limit_high (nats/token, not below 0),
        exponent (p), widths (how many the fit counts), seeds, note, and reason: why a claim on the
        row must be inconclusive, or null. Nulls where fewer than three widths have a rate that did
        not diverge, or the loss does not fall with the width.

    Raises:
        ValueError: as :func:`~isolab.analysis.width_group.width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": "adam", "width": n, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": 1.5 + 8 / n + 0.1 * (x + 5) ** 2}
        ...     for n, x in product([32, 64, 128], range(-9, 0))])
        >>> limits(runs, by=["optimizer"]).select(pl.col("limit", "exponent").round(4)).rows()
        [(1.5, 1.0)]
    """
    rows = []
    for group in width_groups(runs, by, rate, loss, seed, confidence, resamples):
        found = _limit(group)
        row: dict[str, Any] = {"widths": found.widths, "seeds": len(group.seeds)}
        if found.rows is not None:
            low, high = group.interval(found.rows, floor=0.0)
            row |= {"limit": found.rows[0], "limit_low": low, "limit_high": high}
            row |= {"exponent": found.exponent}
        rows.append(group.name | row | {"note": found.note, "reason": found.reason or None})
    return group_frame(rows, runs, by, _LIMITS)


def penalties(
    runs: pl.DataFrame,
    by: Sequence[str],
    against: Mapping[str, Any],
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Returns each group's loss at infinite width less its reference's: an extrapolation.

    Args:
        runs, by, rate, loss, seed, confidence, resamples: as in :func:`limits`.
        against: values of some columns of ``by``; a group's reference is the one that has these
            and its own values of the others. ``{"parameterization": "standard"}`` compares every
            parameterization with standard under the same optimizer and rate rule.

    Returns:
        A row per group that is not a reference: ``by``, penalty (nats/token, above 0 where the
        group is worse) with penalty_low and penalty_high, paired over seeds, limit,
        reference_limit, note, and reason as in :func:`limits`.

    Raises:
        ValueError: for a column or values in ``against`` that no group has, seeds that differ
            between a group and its reference, and as
            :func:`~isolab.analysis.width_group.width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": o, "width": n, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": least + 8 / n + 0.1 * (x + 5) ** 2}
        ...     for (o, least), n, x in product(
        ...         [("adam", 1.5), ("sgd", 1.75)], [32, 64, 128], range(-9, 0))])
        >>> penalties(runs, ["optimizer"], against={"optimizer": "adam"}).select(
        ...     "optimizer", pl.col("penalty").round(3)).rows()
        [('sgd', 0.25)]
    """
    groups = width_groups(runs, by, rate, loss, seed, confidence, resamples)
    fits = {id(group): _limit(group) for group in groups}  # once, though many share a reference
    rows = []
    for group in groups:
        reference = reference_of(groups, dict(against), group)
        if reference is group:
            continue
        if reference is None:
            why = f"no reference: there is no group {group.name | dict(against)}"
            rows.append(group.name | {"note": why, "reason": why})
        else:
            fit, other = fits[id(group)], fits[id(reference)]
            rows.append(group.name | _penalty(group, fit, reference, other))
    return group_frame(rows, runs, by, _PENALTIES)


@dataclass(frozen=True)
class _Limit:
    """rows: (rows,) L_inf of the seed average and each resample; None where there is none."""

    rows: Array | None
    exponent: float
    widths: int
    note: str
    reason: str


def _limit(group: WidthGroup) -> _Limit:
    used = [curve for curve in group.curves if not curve.diverged]
    widths = [curve.width for curve in used]
    edges = [curve.edge_note for curve in group.curves]
    if len(used) < 3:
        why = joined([f"a limit needs the losses of 3 widths or more, got {widths}", *edges])
        return _Limit(None, 0.0, len(used), why, why)
    losses = np.stack([curve.best.loss for curve in used], axis=1)
    said = f"losses {[round(float(value), 4) for value in losses[0]]} at widths {widths}"
    if not (losses > 0).all():
        why = joined([f"{said} are not all above 0, as a loss in nats is", *edges])
        return _Limit(None, 0.0, len(used), why, why)
    rows, scale, exponent = fit_rows(np.array(widths, dtype=np.float64), losses)
    if not scale[0] > 0:
        why = joined([f"{said} do not fall with the width: no power law fits", *edges])
        return _Limit(None, 0.0, len(used), why, why)
    power = float(exponent[0])
    reasons = list(edges)
    if not EXPONENTS[0] * 1.01 < power < EXPONENTS[1] / 1.01:
        reasons.append(f"the law's exponent {power:.3g} is at an end of those sought, {EXPONENTS}")
    if rows[0] == 0:
        reasons.append("the losses fall as fast as ever: these widths show no limit above 0")
    exact = "three widths: the law runs through all, and cannot miss" if len(used) == 3 else ""
    notes = [exact, "one seed: no interval" if len(group.seeds) == 1 else ""]
    reason = joined(reasons)
    return _Limit(rows, power, len(used), joined([reason, *notes]), reason)


def _penalty(
    group: WidthGroup, own: _Limit, reference: WidthGroup, other: _Limit
) -> dict[str, Any]:
    differ = group.widths != reference.widths
    apart = f"widths differ: {group.widths} against {reference.widths}" if differ else ""
    named = f"reference: {other.note}" if other.note else ""
    reasons = [own.reason, f"reference: {other.reason}" if other.reason else "", apart]
    row: dict[str, Any] = {
        "note": joined([own.note, named, apart]),
        "reason": joined(reasons) or None,
    }
    if own.rows is not None:
        row["limit"] = own.rows[0]
    if other.rows is not None:
        row["reference_limit"] = other.rows[0]
    if own.rows is not None and other.rows is not None:
        difference = own.rows - other.rows
        low, high = group.interval(difference)
        row |= {"penalty": difference[0], "penalty_low": low, "penalty_high": high}
    return row
