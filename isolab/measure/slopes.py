r"""How measured sizes go with the width: a slope per group, with an interval over seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import ONE_SEED, each_group, ends, group_frame
from isolab.analysis.seeds import check_confidence, require_columns, seed_interval
from isolab.analysis.width_lines import width_lines


def width_slopes(
    frame: pl.DataFrame, by: Sequence[str], size: str, confidence: float = 0.95
) -> pl.DataFrame:
    r"""Fits a line per seed to log2(size) over log2(width), in each group.

    .. math:: \text{size} \sim n^{\mathrm{slope}}

    The slope is the mean of the seeds' and its interval Student's t over seeds.

    Args:
        frame: columns ``by``, ``width``, ``seed`` and ``size``.
        by: what tells groups apart.
        size: the column of sizes.
        confidence: of the interval.

    Returns:
        A row per group, sorted: ``by``, ``slope``, ``slope_low``, ``slope_high`` ((-inf, inf) for
        one seed), ``residual`` (rms misfit of the line, in log2 units), float64, and ``note``.
        Where a size is 0 or not finite, or missing at a width and seed that another group has,
        there are nulls, and ``note`` says where.

    Raises:
        ValueError: missing columns, no rows, one width only, a group that has a width and seed
            twice, or a confidence out of (0, 1).
    """
    check_confidence(confidence)
    require_columns(frame, ["width", "seed", size])
    widths, seeds = (frame[name].unique().sort().to_list() for name in ("width", "seed"))
    slope = functools.partial(_slope, size, widths, seeds, confidence)
    rows = each_group(frame, by, slope)
    return group_frame(rows, frame, by, [*ends("slope"), "residual", "note"])


def _slope(
    size: str,
    widths: list[int],
    seeds: list[int],
    confidence: float,
    name: dict[str, Any],
    group: pl.DataFrame,
) -> dict[str, Any]:
    found = {(width, seed): x for width, seed, x in group.select("width", "seed", size).rows()}
    if len(found) < len(group):
        raise ValueError("a width and seed is there twice: group by what differs")
    sizes = np.array([[found.get((w, s)) for w in widths] for s in seeds], np.float64)
    wrong = np.argwhere(~(np.isfinite(sizes) & (sizes > 0)))
    if len(wrong):
        seed, width = wrong[0]
        there = (widths[width], seeds[seed]) in found
        what = f"is {sizes[seed, width]:g}" if there else "is missing"
        where = f"at width {widths[width]}, seed {seeds[seed]}, it {what}"
        return name | {"note": f"no slope: {where}"}
    lines = width_lines(sizes, widths)
    fitted = (float(lines.slopes.mean()), *seed_interval(lines.slopes, confidence))
    note = "" if len(seeds) > 1 else ONE_SEED
    slope = dict(zip(ends("slope"), fitted, strict=True))
    return name | slope | {"residual": lines.residual, "note": note}
