r"""Losses at one width, the largest unless told, every group at its own best rate.

A group's loss is the lowest point of its parabola in log2(rate) (:mod:`isolab.analysis.optimum`),
so that a grid that happens to hit its best rate has no advantage over one that falls between two.
Intervals are over seeds, and every resample chooses its rates again.
:func:`~isolab.analysis.speedup.paired_difference` compares two sweeps on their grid points, with a
Student-t interval and the rates held; :func:`loss_differences` here compares many, as ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import polars as pl

from isolab.analysis.difference import Level, differences
from isolab.analysis.groups import ends, group_frame, joined
from isolab.analysis.width_group import Options, WidthGroup, width_groups

_RANKING = ["rank", "rate", *ends("loss"), "seeds", "note", "reason"]
_DIFFERENCES = [*ends("difference"), "loss", "reference_loss", "note", "reason"]


def ranking(
    runs: pl.DataFrame, by: Sequence[str], width: float | None = None, **options: Unpack[Options]
) -> pl.DataFrame:
    """Ranks groups by their loss at one width, each at its own best rate, the lowest first.

    Args:
        runs, by, options: of :func:`~isolab.analysis.width_group.width_groups`.
        width: None takes the largest of all runs.

    Returns:
        A row per group: ``by``, width, rank (1 is best, equal losses share one), rate, loss
        (nats/token) with its interval, seeds, note and reason. A group whose every rate diverged
        has loss +inf and ranks last; one without runs at the width has nulls and comes after.

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
    groups = width_groups(runs, by, **options)
    width = _width(groups, width)
    rows = [group.name | {"width": width} | _ranked(group, width) for group in groups]
    found = [row["loss"] for row in rows if "loss" in row]
    for row in rows:
        if "loss" in row:
            row["rank"] = 1 + sum(other < row["loss"] for other in found)
    rows.sort(key=lambda row: row.get("rank", math.inf))
    return group_frame(rows, runs, [*by, "width"], _RANKING)


def loss_differences(
    runs: pl.DataFrame,
    by: Sequence[str],
    against: Mapping[str, Any],
    width: float | None = None,
    **options: Unpack[Options],
) -> pl.DataFrame:
    """Returns each group's loss at one width less its reference's, paired over seeds.

    Args:
        runs, by, width, options: as in :func:`ranking`.
        against: values of some columns of ``by``; a group's reference is the one that has these
            and its own values of the others.

    Returns:
        A row per group that is not a reference: ``by``, width, difference (nats/token, above 0
        where the group is worse) with its interval, loss, reference_loss, note and reason. +inf
        where the group diverged at every rate; null where the reference did, or either has no runs
        at the width.

    Raises:
        ValueError: as :func:`ranking` and :func:`~isolab.analysis.difference.differences`.
    """
    groups = width_groups(runs, by, **options)
    width = _width(groups, width)
    levels = [_level(group, width) for group in groups]
    rows = differences(groups, levels, against, ("difference", "loss"))
    return group_frame((row | {"width": width} for row in rows), runs, [*by, "width"], _DIFFERENCES)


def _width(groups: Sequence[WidthGroup], width: float | None) -> float:
    known = sorted({its for group in groups for its in group.widths})
    if width is not None and width not in known:
        raise ValueError(f"width {width} is not among those that ran: {known}")
    return known[-1] if width is None else width


def _ranked(group: WidthGroup, width: float) -> dict[str, Any]:
    curve, level = group.curve(width), _level(group, width)
    row: dict[str, Any] = {"seeds": len(group.seeds), "note": level.note}
    row["reason"] = level.reason or None
    if curve is not None and not curve.diverged:
        row["rate"] = 2.0 ** float(curve.best.x[0])
    return row | level.columns(group, "loss")


def _level(group: WidthGroup, width: float) -> Level:
    curve = group.curve(width)
    if curve is None:
        why = f"no runs at width {width}: it has {group.widths}"
        return Level(None, [width], why, why)
    # A single rate was fixed by hand; divergence at every rate is a result, and ranks last.
    reason = curve.edge_note if curve.edge in ("low", "high") and not curve.diverged else ""
    note = joined([curve.edge_note, curve.step_note, group.one_seed])
    return Level(curve.best.loss, [width], note, reason)
