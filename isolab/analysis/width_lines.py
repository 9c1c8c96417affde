r"""How a size goes with the width: one straight line a seed through its logarithms.

.. math:: \log_2 \text{size} = c + s \log_2 n

by least squares over the widths; intervals are Student's t over the seeds' lines. They say how well
the line is known, not whether the size follows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import each_group, ends, group_frame, with_ends
from isolab.analysis.seeds import ONE_SEED, Array, require_columns, student_interval


def width_lines(sizes: Array, widths: Sequence[float]) -> tuple[Array, Array]:
    """Returns slope and intercept (log2 at width 1) of every seed of ``sizes``, (seeds, widths).

    Raises:
        ValueError: fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"a slope needs at least 2 widths, got {list(widths)}: add widths")
    x, y = np.log2(np.asarray(widths, dtype=np.float64)), np.log2(sizes)
    away = x - x.mean()
    slopes = y @ away / (away @ away)
    return slopes, y.mean(axis=1) - slopes * x.mean()


def width_slopes(frame: pl.DataFrame, by: Sequence[str], size: str) -> pl.DataFrame:
    r"""Fits a line per seed to log2(size) over log2(width), in each group.

    .. math:: \text{size} \sim n^{\mathrm{slope}}

    Returns:
        A row per group, sorted: ``by``, ``slope`` (the mean of the seeds') with its interval
        ((-inf, inf) for one seed) and ``note``. Where a size is 0 or not finite, or missing at a
        width and seed that another group has, there are nulls, and ``note`` says where.

    Raises:
        ValueError: one width only, and as :func:`size_tables`.
    """
    rows = []
    for name, sizes, widths, wrong in size_tables(frame, by, size):
        if wrong:
            rows.append(name | {"note": f"no slope: {wrong}"})
            continue
        slopes, _ = width_lines(sizes, widths)
        note = "" if len(sizes) > 1 else ONE_SEED
        slope = with_ends("slope", float(slopes.mean()), student_interval(slopes))
        rows.append(name | slope | {"note": note})
    return group_frame(rows, frame, by, [*ends("slope"), "note"])


def size_tables(
    frame: pl.DataFrame, by: Sequence[str], size: str
) -> list[tuple[dict[str, Any], Array, list[int], str]]:
    """Arranges the column ``size`` by group: values of ``by``, (seeds, widths), widths, a note.

    Widths and seeds are those of the whole frame; the note says where a group has no size, or one
    without a logarithm.

    Raises:
        ValueError: missing columns (also ``width`` and ``seed``), no rows, or a group that has a
            width and seed twice.
    """
    require_columns(frame, ["width", "seed", size])
    widths, seeds = (frame[name].unique().sort().to_list() for name in ("width", "seed"))

    def table(
        name: dict[str, Any], group: pl.DataFrame
    ) -> tuple[dict[str, Any], Array, list[int], str]:
        found = {(width, seed): x for width, seed, x in group.select("width", "seed", size).rows()}
        if len(found) < len(group):
            raise ValueError("a width and seed is there twice: group by what differs")
        sizes = np.array([[found.get((w, s)) for w in widths] for s in seeds], np.float64)
        wrong = np.argwhere(~(np.isfinite(sizes) & (sizes > 0)))
        if not len(wrong):
            return name, sizes, widths, ""
        seed, width = wrong[0]
        there = (widths[width], seeds[seed]) in found
        what = f"is {sizes[seed, width]:g}" if there else "is missing"
        return name, sizes, widths, f"at width {widths[width]}, seed {seeds[seed]}, it {what}"

    return each_group(frame, by, table)
