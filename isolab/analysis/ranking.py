r"""Losses at one width, the largest unless told, every group at its own best rate.

A group's loss is the lowest point of its parabola in log2(rate) (:mod:`isolab.analysis.optimum`),
so that a grid that happens to hit its best rate has no advantage over one that falls between two.
:func:`~isolab.analysis.speedup.paired_difference` compares two sweeps on their grid points, with a
Student-t interval and the rates held; :func:`loss_differences` here compares many, as ranked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import Options, ends, group_frame, joined, told
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import WidthGroup, width_groups

_RANKING = ["rank", "rate", *ends("loss"), "seeds", "note", "reason"]
_DIFFERENCES = [*ends("difference"), "loss", "reference_loss", "note", "reason"]


@dataclass(frozen=True)
class Level:
    """A group's loss at a width, or at infinite width.

    rows: (rows,) nats/token, of the seed average and each resample, +inf where diverged; None where
    there is none; widths: it rests on; note, reason: as in :mod:`isolab.analysis.groups`, or "".
    """

    rows: Array | None
    widths: Sequence[float]
    note: str
    reason: str

    def columns(self, group: WidthGroup, name: str, floor: float = -math.inf) -> dict[str, float]:
        """Returns the level and its interval as columns; a group that diverged is +inf for sure."""
        if self.rows is None:
            return {}
        if np.isinf(self.rows[0]):
            return dict.fromkeys(ends(name), math.inf)
        return group.columns(name, self.rows, floor=floor)


def ranking(
    runs: pl.DataFrame, by: Sequence[str], width: float | None = None, **options: Unpack[Options]
) -> pl.DataFrame:
    """Ranks groups by their loss at one width, each at its own best rate, the lowest first.

    Args:
        runs, by, options: of :func:`width_groups`.
        width: None takes the largest of all runs.

    Returns:
        A row per group: ``by``, width, rank (1 is best, equal losses share one), rate, loss
        (nats/token) with its interval, seeds, note and reason. A group whose every rate diverged
        has loss +inf and ranks last; one without runs at the width has nulls and comes after.

    Raises:
        ValueError: for a width that no run has, and as :func:`width_groups`.

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
        against: the reference's values of some columns of ``by``, as in :func:`differences`.

    Returns:
        A row per group that is not a reference: ``by``, width, difference (nats/token, above 0
        where the group is worse) with its interval, loss, reference_loss, note and reason. +inf
        where the group diverged at every rate; null where the reference did, or either has no runs
        at the width.

    Raises:
        ValueError: as :func:`ranking` and :func:`differences`.
    """
    groups = width_groups(runs, by, **options)
    width = _width(groups, width)
    levels = [_level(group, width) for group in groups]
    rows = differences(groups, levels, against, ("difference", "loss"))
    return group_frame((row | {"width": width} for row in rows), runs, [*by, "width"], _DIFFERENCES)


def differences(
    groups: Sequence[WidthGroup],
    levels: Sequence[Level],
    against: Mapping[str, Any],
    names: tuple[str, str],
) -> Iterator[dict[str, Any]]:
    """Returns a row per group that is not a reference: the difference of two levels.

    Args:
        groups, levels: one level a group.
        against: values of some columns of the groups' names; a group's reference is the one that
            has these and its own values of the others.
        names: of the columns of the difference (with its interval) and of the level; the
            reference's level is ``reference_`` and that.

    Raises:
        ValueError: for a column or values in ``against`` that no group has, or a reference with
            other seeds than the group's.
    """
    _check(groups, against)
    level_of = {id(group): level for group, level in zip(groups, levels, strict=True)}
    for group in groups:
        wanted = {**group.name, **against}
        if wanted == group.name:
            continue
        reference = next((its for its in groups if its.name == wanted), None)
        if reference is None:
            yield group.name | told([f"no reference: there is no group {wanted}"])
        elif reference.seeds != group.seeds:
            raise ValueError(
                f"seeds must be the same on both sides: {group.name} has {list(group.seeds)}, "
                f"{reference.name} has {list(reference.seeds)}"
            )
        else:
            levels_of_both = level_of[id(group)], level_of[id(reference)]
            yield group.name | _difference(group, *levels_of_both, *names)


def _check(groups: Sequence[WidthGroup], against: Mapping[str, Any]) -> None:
    columns = list(groups[0].name)
    if not against or not set(against) <= set(columns):
        raise ValueError(f"against={against} must give values of some of the columns {columns}")
    if not any(against.items() <= its.name.items() for its in groups):
        known = list(dict.fromkeys(str({c: g.name[c] for c in against}) for g in groups))
        raise ValueError(f"no group has {against}; there are {', '.join(known)}")


def _difference(
    group: WidthGroup, own: Level, other: Level, name: str, level: str
) -> dict[str, Any]:
    apart = f"widths differ: {own.widths} against {other.widths}"
    apart = apart if own.widths != other.widths else ""
    note, reason = (f"reference: {text}" if text else "" for text in (other.note, other.reason))
    row: dict[str, Any] = told([own.reason, reason, apart])
    row["note"] = joined([own.note, note, apart])
    if own.rows is not None:
        row[level] = own.rows[0]
    if other.rows is not None:
        row[f"reference_{level}"] = other.rows[0]
    if own.rows is None or other.rows is None or np.isinf(other.rows[0]):
        return row
    with np.errstate(invalid="ignore"):  # resamples in which both diverged
        rows = own.rows - other.rows
    return row | Level(rows, own.widths, "", "").columns(group, name)


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
