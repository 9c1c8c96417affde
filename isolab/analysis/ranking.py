r"""Losses of groups, each at its own best rates: at one width, at infinite width, and compared.

A loss is the lowest point of the parabola in log2(rate) (:mod:`isolab.analysis.rate_curve`), so
that a grid that happens to hit its best rate has no advantage over one that falls between two.
:func:`~isolab.analysis.tost.paired_difference` compares two sweeps on their grid points, with a
Student-t interval and the rates held; :func:`loss_differences` here compares many, as ranked.

The limit of infinite width is fitted to each width's loss by :mod:`isolab.analysis.power_law`:

.. math:: L(n) = L_\infty + k\,n^{-p}

THIS IS AN EXTRAPOLATION, from the few widths that ran to ones that nobody can run. The interval is
over seeds: it does not cover the law being the wrong one, and three widths fit three parameters
exactly. Nor does a limit over the width alone exist at a fixed number of steps unless the rates
suit the parameterization. Compare with the plain difference at the largest width before believing
a penalty.

What ``runs``, ``by``, ``options``, notes and reasons are, and what is refused:
:mod:`isolab.analysis.groups`.

Reference: the penalty follows metric 4 of Kalra and Barkeshli, arXiv:2605.21486.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from isolab.analysis.power_law import EXPONENTS, fit_rows
from isolab.analysis.rate_curve import RateCurve
from isolab.analysis.seeds import Array, require_same_seeds

_RANKING = ["rank", "rate", *ends("loss"), "seeds", "note", "reason"]
_DIFFERENCES = [*ends("difference"), "loss", "reference_loss", "note", "reason"]
_LIMITS = [*ends("limit"), "exponent", "widths", "seeds", "note", "reason"]
_PENALTIES = [*ends("penalty"), "limit", "reference_limit", "note", "reason"]


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

    @property
    def value(self) -> float | None:
        return None if self.rows is None else float(self.rows[0])

    def columns(self, group: WidthGroup, name: str, floor: float = -math.inf) -> dict[str, Any]:
        """Returns the level with its interval, +inf for sure where it diverged, and its notes."""
        row: dict[str, Any] = {"note": self.note, "reason": self.reason or None}
        if self.rows is None:
            return row
        if np.isinf(self.rows[0]):
            return row | dict.fromkeys(ends(name), math.inf)
        return row | group.columns(name, self.rows, floor=floor)


def ranking(
    runs: pl.DataFrame, by: Sequence[str], width: float | None = None, **options: Unpack[Options]
) -> pl.DataFrame:
    """Ranks groups by their loss at one width (None: the largest of all runs), the lowest first.

    Returns:
        A row per group: rank (1 is best, equal losses share one), rate, and loss (nats/token) with
        its interval. A group whose every rate diverged has loss +inf and ranks last; one without
        runs at the width has nulls and comes after.

    Raises:
        ValueError: for a width that no run has.

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
    rows = []
    for group in groups:
        curve = group.curve(width)
        row = group.name | {"width": width, "seeds": len(group.seeds)}
        if curve is not None and not curve.diverged:
            row["rate"] = curve.rate
        rows.append(row | _at_width(group, width).columns(group, "loss"))
    losses = [row["loss"] for row in rows if "loss" in row]
    for row in rows:
        if "loss" in row:
            row["rank"] = 1 + sum(other < row["loss"] for other in losses)
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
        against: as in :func:`penalties`.
        width: None takes the largest of all runs.

    Returns:
        A row per group that is not a reference: difference (nats/token, above 0 where the group is
        worse) with its interval, loss and reference_loss. +inf where the group diverged at every
        rate; null where the reference did, or either has no runs at the width.

    Raises:
        ValueError: for a width that no run has, and as :func:`penalties`.
    """
    groups = width_groups(runs, by, **options)
    width = _width(groups, width)
    levels = [_at_width(group, width) for group in groups]
    rows = _differences(groups, levels, against, "difference", "loss")
    return group_frame((row | {"width": width} for row in rows), runs, [*by, "width"], _DIFFERENCES)


def limits(runs: pl.DataFrame, by: Sequence[str], **options: Unpack[Options]) -> pl.DataFrame:
    """Extrapolates each group's loss at its best rates to infinite width.

    Returns:
        A row per group: limit with its interval (nats/token, not below 0), exponent (p) and widths
        (how many the fit counts; it can miss from four on). Nulls where fewer than three widths
        have a rate that did not diverge, or the loss does not fall with the width.
    """
    rows = []
    for group in width_groups(runs, by, **options):
        level, row = _limit(group)
        rows.append(group.name | row | level.columns(group, "limit", floor=0.0))
    return group_frame(rows, runs, by, _LIMITS)


def penalties(
    runs: pl.DataFrame, by: Sequence[str], against: Mapping[str, Any], **options: Unpack[Options]
) -> pl.DataFrame:
    """Returns each group's loss at infinite width less its reference's: an extrapolation.

    Args:
        against: values of some of the columns ``by``; a group's reference has these, and its own
            values of the others. ``{"parameterization": "standard"}`` compares every
            parameterization with standard under the same other values of ``by``.

    Returns:
        A row per group that is not a reference: penalty (nats/token, above 0 where the group is
        worse) with its interval, limit and reference_limit.

    Raises:
        ValueError: for a column or values in ``against`` that no group has, or a reference with
            other seeds than the group's.
    """
    groups = width_groups(runs, by, **options)
    levels = [_limit(group)[0] for group in groups]
    rows = _differences(groups, levels, against, "penalty", "limit")
    return group_frame(rows, runs, by, _PENALTIES)


def _differences(
    groups: Sequence[WidthGroup],
    levels: Sequence[_Level],
    against: Mapping[str, Any],
    difference: str,
    level: str,
) -> Iterator[dict[str, Any]]:
    """Returns a row per group that is not a reference, with columns named so."""
    columns = list(groups[0].name)
    if not against or not set(against) <= set(columns):
        raise ValueError(f"against={against} must give values of some of the columns {columns}")
    if not any(against.items() <= its.name.items() for its in groups):
        known = list(dict.fromkeys(str({c: g.name[c] for c in against}) for g in groups))
        raise ValueError(f"no group has {against}; there are {', '.join(known)}")
    pairs = list(zip(groups, levels, strict=True))
    for group, own in pairs:
        wanted = {**group.name, **against}
        if wanted == group.name:
            continue
        reference, other = next((pair for pair in pairs if pair[0].name == wanted), (None, None))
        if reference is None or other is None:
            yield group.name | told([f"no reference: there is no group {wanted}"])
            continue
        require_same_seeds(group.name, group.seeds, reference.name, reference.seeds)
        row = group.name | {level: own.value, f"reference_{level}": other.value}
        yield row | _less(own, other).columns(group, difference)


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


def _width(groups: Sequence[WidthGroup], width: float | None) -> float:
    known = sorted({its for group in groups for its in group.widths})
    if width is not None and width not in known:
        raise ValueError(f"width {width} is not among those that ran: {known}")
    return known[-1] if width is None else width


def _at_width(group: WidthGroup, width: float) -> _Level:
    curve = group.curve(width)
    if curve is None:
        why = f"no runs at width {width}: it has {group.widths}"
        return _Level(None, [width], why, why)
    # A single rate was fixed by hand; divergence at every rate is a result, and ranks last.
    reason = curve.edge_note if curve.edge in ("low", "high") and not curve.diverged else ""
    note = joined([curve.edge_note, curve.step_note, group.one_seed])
    return _Level(curve.best.loss, [width], note, reason)


def _limit(group: WidthGroup) -> tuple[_Level, dict[str, Any]]:
    """Returns L_inf, and the columns of how it was fitted."""
    used = [curve for curve in group.curves if not curve.diverged]
    edges = [curve.edge_note for curve in group.curves]
    row: dict[str, Any] = {"widths": len(used), "seeds": len(group.seeds)}
    try:
        rows, exponent = _fit(used)
    except ValueError as error:
        why = joined([str(error), *edges])
        return _Level(None, group.widths, why, why), row
    reasons = list(edges)
    if not EXPONENTS[0] * 1.01 < exponent < EXPONENTS[1] / 1.01:
        reasons.append(
            f"the law's exponent {exponent:.3g} is at an end of those sought, {EXPONENTS}"
        )
    if rows[0] == 0:
        reasons.append("the losses fall as fast as ever: these widths show no limit above 0")
    reason = joined(reasons)
    exact = "three widths: the law runs through all, and cannot miss" if len(used) == 3 else ""
    note = joined([reason, exact, group.one_seed])
    return _Level(rows, group.widths, note, reason), row | {"exponent": exponent}


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
