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
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import Options, ends, group_frame, joined
from isolab.analysis.power_law import EXPONENTS, fit_rows
from isolab.analysis.ranking import Level, differences
from isolab.analysis.width_group import WidthGroup, width_groups

_LIMITS = [*ends("limit"), "exponent", "widths", "seeds", "note", "reason"]
_PENALTIES = [*ends("penalty"), "limit", "reference_limit", "note", "reason"]


def limits(runs: pl.DataFrame, by: Sequence[str], **options: Unpack[Options]) -> pl.DataFrame:
    """Extrapolates each group's loss at its best rates to infinite width.

    Args:
        runs, by, options: of :func:`width_groups`. Three widths at
            least, four for the fit to be able to miss.

    Returns:
        A row per group: ``by``, limit with its interval (nats/token, not below 0), exponent (p),
        widths (how many the fit counts), seeds, note and reason. Nulls where fewer than three
        widths have a rate that did not diverge, or the loss does not fall with the width.

    Raises:
        ValueError: as :func:`width_groups`.

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
    for group in width_groups(runs, by, **options):
        level, exponent, widths = _limit(group)
        row: dict[str, Any] = {"exponent": exponent, "widths": widths, "seeds": len(group.seeds)}
        row |= {"note": level.note, "reason": level.reason or None}
        rows.append(group.name | row | level.columns(group, "limit", floor=0.0))
    return group_frame(rows, runs, by, _LIMITS)


def penalties(
    runs: pl.DataFrame, by: Sequence[str], against: Mapping[str, Any], **options: Unpack[Options]
) -> pl.DataFrame:
    """Returns each group's loss at infinite width less its reference's: an extrapolation.

    Args:
        runs, by, options: as in :func:`limits`.
        against: ``{"parameterization": "standard"}`` compares every parameterization with
            standard under the same other values of ``by``.

    Returns:
        A row per group that is not a reference: ``by``, penalty (nats/token, above 0 where the
        group is worse) with its interval, limit, reference_limit, note and reason.

    Raises:
        ValueError: as :func:`limits` and :func:`~isolab.analysis.ranking.differences`.
    """
    groups = width_groups(runs, by, **options)
    levels = [_limit(group)[0] for group in groups]
    return group_frame(
        differences(groups, levels, against, ("penalty", "limit")), runs, by, _PENALTIES
    )


def _limit(group: WidthGroup) -> tuple[Level, float | None, int]:
    """Returns L_inf, the law's exponent and how many widths the fit counts."""
    used = [curve for curve in group.curves if not curve.diverged]
    widths = [curve.width for curve in used]
    edges = [curve.edge_note for curve in group.curves]

    def none(why: str) -> tuple[Level, None, int]:
        why = joined([why, *edges])
        return Level(None, group.widths, why, why), None, len(used)

    if len(used) < 3:
        return none(f"a limit needs the losses of 3 widths or more, got {widths}")
    losses = np.stack([curve.best.loss for curve in used], axis=1)
    found = f"losses {[round(float(value), 4) for value in losses[0]]} at widths {widths}"
    if not (losses > 0).all():
        return none(f"{found} are not all above 0, as a loss in nats is")
    rows, scale, exponents = fit_rows(np.array(widths, dtype=np.float64), losses)
    if not scale[0] > 0:
        return none(f"{found} do not fall with the width: no power law fits")
    power = float(exponents[0])
    reasons = list(edges)
    if not EXPONENTS[0] * 1.01 < power < EXPONENTS[1] / 1.01:
        reasons.append(f"the law's exponent {power:.3g} is at an end of those sought, {EXPONENTS}")
    if rows[0] == 0:
        reasons.append("the losses fall as fast as ever: these widths show no limit above 0")
    reason = joined(reasons)
    exact = "three widths: the law runs through all, and cannot miss" if len(used) == 3 else ""
    note = joined([reason, exact, group.one_seed])
    return Level(rows, group.widths, note, reason), power, len(used)
