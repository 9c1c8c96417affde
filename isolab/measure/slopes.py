r"""How measured sizes go with the width: a slope per group, with an interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

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
        A row per group, in the frame's order: ``by``, ``slope``, ``slope_low``, ``slope_high``
        ((-inf, inf) for one seed), ``residual`` (rms misfit of the line, in log2 units), float64,
        and ``note``. Where a size is 0 or not finite, or missing at a width and seed that another
        group has, there are nulls, and ``note`` says where.

    Raises:
        ValueError: missing columns, one width only, a group that has a width and seed twice, or a
            confidence out of (0, 1).
    """
    check_confidence(confidence)
    require_columns(frame, [*by, "width", "seed", size])
    widths, seeds = (frame[name].unique().sort().to_list() for name in ("width", "seed"))
    if len(widths) < 2:
        raise ValueError(f"a slope needs at least 2 widths, got {widths}: add widths")
    numbers = ("slope", "slope_low", "slope_high", "residual")
    rows = []
    for names, group in frame.group_by(by, maintain_order=True):
        found = {(width, seed): x for width, seed, x in group.select("width", "seed", size).rows()}
        if len(found) < len(group):
            raise ValueError(f"{dict(zip(by, names, strict=True))} has a width and seed twice")
        row: dict[str, Any] = dict(zip(by, names, strict=True)) | dict.fromkeys(numbers)
        sizes = np.array([[found.get((w, s)) for w in widths] for s in seeds], np.float64)
        wrong = np.argwhere(~(np.isfinite(sizes) & (sizes > 0)))
        if len(wrong):
            seed, width = wrong[0]
            what = f"is {sizes[seed, width]:g}"
            what = what if (widths[width], seeds[seed]) in found else "is missing"
            where = f"at width {widths[width]}, seed {seeds[seed]}, it {what}"
            rows.append(row | {"note": f"no slope: {where}"})
            continue
        lines = width_lines(sizes, widths)
        interval = seed_interval(lines.slopes, confidence)
        fitted = (float(lines.slopes.mean()), *interval, lines.residual)
        note = "" if len(seeds) > 1 else "one seed: no interval"
        rows.append(row | dict(zip(numbers, fitted, strict=True)) | {"note": note})
    schema = dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
