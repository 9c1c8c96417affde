r"""How the best learning rate moves with width: the exponent of a power law, with its interval.

.. math:: \log_2 \text{rate}^*(n) = c_0 + e \log_2 n

by least squares over the widths, :math:`\text{rate}^*` from the parabola of
:mod:`isolab.analysis.optimum`. The residual, metric 1 of transfer, is the root mean square misfit
in log2 units: factors of two in the rate.

A width whose best rate lies at an end of its grid, or whose every rate diverged, has a bound and
not a best rate: it is left out of the fit, ``note`` says so and which way to widen, and ``reason``
is set. A width counted in the fit may still
reach an end of its grid in some resamples of the seeds; the exponent is then unbounded towards
that side in those, and the interval opens where they are more than its tails. A best rate next to a
diverged one is known to half a grid step, and the interval is widened by what that can do.
The interval is over seeds: it does not say whether a power law holds; the residual does.

Reference: metric 1 follows Kalra and Barkeshli, arXiv:2605.21486; the exponents that theory gives
are Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import polars as pl

from isolab.analysis.groups import Options, ends, group_frame, told
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import WidthGroup, width_groups

_COLUMNS = [*ends("exponent"), "intercept", "residual", "widths", "seeds", "note", "reason"]


def exponents(runs: pl.DataFrame, by: Sequence[str], **options: Unpack[Options]) -> pl.DataFrame:
    """Fits the power of the width with which each group's best rate moves.

    Args:
        runs, by, options: of :func:`width_groups`. Two widths at
            least; three for the residual to say anything.

    Returns:
        A row per group: ``by``, exponent with its interval, intercept (log2 of the fitted rate at
        width 1), residual (log2 units), widths (how many the fit counts), seeds, note and reason.
        Nulls where fewer than two widths count.

    Raises:
        ValueError: as :func:`width_groups`.

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
    return group_frame(rows, runs, by, _COLUMNS)


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
    row |= group.columns(
        "exponent", slope, _least(weights, low, high), -_least(-weights, low, high)
    )
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
