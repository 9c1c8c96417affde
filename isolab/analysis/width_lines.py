r"""How a size goes with the width: one straight line a seed through its logarithms.

.. math:: \log_2 \text{size} = c + s \log_2 n

by least squares over the widths; intervals are Student's t over the seeds' lines. They say how well
the line is known, not whether the size follows one: the residual does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.groups import each_group
from isolab.analysis.seeds import Array, require_columns


@dataclass(frozen=True)
class WidthLines:
    """The lines of all seeds.

    widths: ascending; slopes, intercepts: (seeds,) float64, the intercept in log2 units at width 1;
    residual: root mean square misfit of the seeds' mean, in log2 units.
    """

    widths: tuple[float, ...]
    slopes: Array
    intercepts: Array
    residual: float

    def log2_width_at(self, size: float) -> Array:
        """Returns log2 of the width at which each line has this size, (seeds,); inf where flat."""
        far = math.log2(size) - self.intercepts
        flat = self.slopes == 0
        return np.asarray(np.where(flat, np.inf, far / np.where(flat, 1.0, self.slopes)))


def width_lines(sizes: Array, widths: Sequence[float]) -> WidthLines:
    """Fits a line to every seed.

    Args:
        sizes: (seeds, widths) float64, positive and finite.
        widths: two or more different positive numbers.

    Raises:
        ValueError: fewer than two widths, or a size that is not a positive number.

    Example:
        >>> lines = width_lines(np.array([[0.5, 0.25], [1.0, 0.5]]), [32, 64])
        >>> lines.slopes.tolist(), lines.log2_width_at(0.125).tolist()
        ([-1.0, -1.0], [7.0, 8.0])
    """
    if len(widths) < 2:
        raise ValueError(f"a slope needs at least 2 widths, got {list(widths)}: add widths")
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        raise ValueError(f"sizes must be positive and finite, got {sizes[bad][0]:g}")
    x, y = np.log2(np.asarray(widths, dtype=np.float64)), np.log2(sizes)
    away = x - x.mean()
    slopes = y @ away / (away @ away)
    intercepts = y.mean(axis=1) - slopes * x.mean()
    misfit = (y - intercepts[:, None] - slopes[:, None] * x).mean(axis=0)
    residual = float(np.sqrt(np.mean(misfit**2)))
    return WidthLines(tuple(map(float, widths)), slopes, intercepts, residual)


def size_tables(
    frame: pl.DataFrame, by: Sequence[str], size: str
) -> list[tuple[dict[str, Any], Array, list[int]]]:
    """Arranges sizes by group, sorted: its values of ``by``, its (seeds, widths), and its widths.

    Args:
        frame: columns ``by``, ``width``, ``seed`` and ``size``.

    Raises:
        ValueError: missing columns, no rows, or a width that lacks a seed or has it twice.
    """
    require_columns(frame, [*by, "width", "seed", size])

    def table(name: dict[str, Any], group: pl.DataFrame) -> tuple[dict[str, Any], Array, list[int]]:
        widths, seeds = (group[column].unique().sort().to_list() for column in ("width", "seed"))
        group = group.sort("seed", "width")
        if group.select("seed", "width").rows() != [(s, w) for s in seeds for w in widths]:
            raise ValueError(
                f"each of the widths {widths} must have each of the seeds {seeds} once"
            )
        sizes = group[size].cast(pl.Float64).to_numpy().reshape(len(seeds), len(widths))
        return name, sizes, widths

    return each_group(frame, by, table)
