r"""Losses at one width, the largest unless said, every group at its own best rate.

A group's loss is the lowest point of its parabola in log2(rate) (:mod:`isolab.analysis.optimum`),
so that a grid that happens to hit its best rate has no advantage over one that falls between two.
Intervals are over seeds, and every resample chooses its rates again.
:func:`~isolab.analysis.speedup.paired_difference` compares two sweeps on their grid points, with a
Student-t interval and the rates held; :func:`loss_differences` here compares many, as ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.width_group import (
    WidthGroup,
    group_frame,
    joined,
    reference_of,
    width_groups,
)

_RANKING = {
    "width": pl.Float64,
    "rank": pl.Int64,
    **dict.fromkeys(["rate", "loss", "loss_low", "loss_high"], pl.Float64),
    "seeds": pl.Int64,
    **dict.fromkeys(["note", "reason"], pl.String),
}
_NUMBERS = [
    *("width", "difference", "difference_low", "difference_high"),
    *("loss", "reference_loss"),
]
_DIFFERENCES = dict.fromkeys(_NUMBERS, pl.Float64) | dict.fromkeys(["note", "reason"], pl.String)


def ranking(
    runs: pl.DataFrame,
    by: Sequence[str],
    width: float | None = None,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Ranks groups by their loss at one width, each at its own best rate, the lowest first.

    Args:
        runs: a row per run; columns ``by``, ``width``, ``rate``, ``loss`` (+inf or NaN where
            diverged) and ``seed``.
        by: columns that tell groups apart.
        width: None takes the largest of all runs.
        rate, loss, seed: names of columns.
        confidence, resamples: of the intervals over seeds; the generator is seeded.

    Returns:
        A row per group: ``by``, width, rank (1 is best, equal losses share one), rate, loss
        (nats/token) with loss_low and loss_high, seeds, note, and reason: why a claim on the row
        must be inconclusive, or null. A group whose every rate diverged has loss +inf and ranks
        last; one without runs at the width has nulls and comes after.

    Raises:
        ValueError: for a width that no run has, and as
            :func:`~isolab.analysis.width_group.width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": o, "width": 32, "learning_rate": 2.0**x, "seed": 0,
        ...      "final_validation_loss": least + 0.1 * (x + 5) ** 2}
        ...     for (o, least), x in product([("adam", 1.75), ("muon", 1.5)], range(-9, 0))])
        >>> ranking(runs, ["optimizer"]).select("optimizer", "rank", pl.col("loss").round(3)).rows()
        [('muon', 1, 1.5), ('adam', 2, 1.75)]
    """
    groups = width_groups(runs, by, rate, loss, seed, confidence, resamples)
    width = _width(groups, width)
    rows = [group.name | {"width": width} | _ranked(group, width) for group in groups]
    found = [row["loss"] for row in rows if "loss" in row]
    for row in rows:
        if "loss" in row:
            row["rank"] = 1 + sum(other < row["loss"] for other in found)
    rows.sort(key=lambda row: row.get("rank", math.inf))
    return group_frame(rows, runs, by, _RANKING)


def loss_differences(
    runs: pl.DataFrame,
    by: Sequence[str],
    against: Mapping[str, Any],
    width: float | None = None,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
    resamples: int = 2000,
) -> pl.DataFrame:
    """Returns each group's loss at one width less its reference's, paired over seeds.

    Args:
        runs, by, width, rate, loss, seed, confidence, resamples: as in :func:`ranking`.
        against: values of some columns of ``by``; a group's reference is the one that has these
            and its own values of the others.

    Returns:
        A row per group that is not a reference: ``by``, width, difference (nats/token, above 0
        where the group is worse) with difference_low and difference_high, loss, reference_loss,
        note, and reason: why a claim on the row must be inconclusive, or null. +inf where the group
        diverged at every rate; null where the reference did, or either has no runs at the width.

    Raises:
        ValueError: for a column or values in ``against`` that no group has, a width that no run
            has, seeds that differ between a group and its reference, and as
            :func:`~isolab.analysis.width_group.width_groups`.

    Example:
        >>> from itertools import product
        >>> runs = pl.DataFrame([
        ...     {"optimizer": o, "width": 32, "learning_rate": 2.0**x, "seed": s,
        ...      "final_validation_loss": least + 0.01 * s + 0.1 * (x + 5) ** 2}
        ...     for (o, least), x, s in product(
        ...         [("adam", 1.75), ("muon", 1.5)], range(-9, 0), [0, 1])])
        >>> loss_differences(runs, ["optimizer"], against={"optimizer": "adam"}).select(
        ...     "optimizer", pl.col("difference", "difference_high").round(3)).rows()
        [('muon', -0.25, -0.25)]
    """
    groups = width_groups(runs, by, rate, loss, seed, confidence, resamples)
    width = _width(groups, width)
    rows = []
    for group in groups:
        reference = reference_of(groups, dict(against), group)
        if reference is group:
            continue
        row: dict[str, Any] = group.name | {"width": width}
        if reference is None:
            why = f"no reference: there is no group {group.name | dict(against)}"
            rows.append(row | {"note": why, "reason": why})
        else:
            rows.append(row | _difference(group, reference, width))
    return group_frame(rows, runs, by, _DIFFERENCES)


def _width(groups: Sequence[WidthGroup], width: float | None) -> float:
    known = sorted({its for group in groups for its in group.widths})
    if width is not None and width not in known:
        raise ValueError(f"width {width} is not among those that ran: {known}")
    return known[-1] if width is None else width


def _ranked(group: WidthGroup, width: float) -> dict[str, Any]:
    curve, note, reason = _at(group, width)
    row: dict[str, Any] = {"seeds": len(group.seeds), "note": note, "reason": reason or None}
    if curve is None:
        return row
    if curve.diverged:
        return row | dict.fromkeys(["loss", "loss_low", "loss_high"], math.inf)
    low, high = group.interval(curve.best.loss)
    own = {"rate": 2.0 ** float(curve.best.x[0]), "loss": float(curve.best.loss[0])}
    return row | own | {"loss_low": low, "loss_high": high}


def _difference(group: WidthGroup, reference: WidthGroup, width: float) -> dict[str, Any]:
    own, note, reason = _at(group, width)
    other, other_note, other_reason = _at(reference, width)
    row: dict[str, Any] = {
        "note": joined([note, f"reference: {other_note}" if other_note else ""]),
        "reason": joined([reason, f"reference: {other_reason}" if other_reason else ""]) or None,
    }
    if own is not None:
        row["loss"] = float(own.best.loss[0])  # +inf where diverged
    if other is not None:
        row["reference_loss"] = float(other.best.loss[0])
    if own is None or other is None or other.diverged:
        return row
    if own.diverged:
        ends = ["difference", "difference_low", "difference_high"]
        return row | dict.fromkeys(ends, math.inf)
    difference = own.best.loss - other.best.loss
    low, high = group.interval(difference)
    return row | {"difference": difference[0], "difference_low": low, "difference_high": high}


def _at(group: WidthGroup, width: float) -> tuple[RateCurve | None, str, str]:
    """Returns the curve at ``width``, what to know of it, and why not to judge by it."""
    curve = group.curve(width)
    if curve is None:
        why = f"no runs at width {width}: it has {group.widths}"
        return None, why, why
    # A single rate was fixed by hand; divergence at every rate is a result, and ranks last.
    reason = curve.edge_note if curve.edge in ("low", "high") and not curve.diverged else ""
    one_seed = "one seed: no interval" if len(group.seeds) == 1 else ""
    return curve, joined([curve.edge_note, curve.step_note, one_seed]), reason
