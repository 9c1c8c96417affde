r"""How a size goes with the width: one straight line a seed through its logarithms; and eps.

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

from isolab.analysis.groups import ONE_SEED, each_group, ends, group_frame, joined
from isolab.analysis.seeds import (
    Array,
    check_confidence,
    check_positive,
    require_columns,
    seed_interval,
)
from isolab.theory.parameterization import parameterization

_GROUP = ["parameterization", "step", "role"]
_CROSSING = ["eps", "ratio", *ends("width"), "beyond", "theory_width", "residual", "note"]


@dataclass(frozen=True)
class WidthLines:
    """The lines of all seeds.

    slopes, intercepts: (seeds,) float64, the intercept in log2 units at width 1; residual: root
    mean square misfit of the seeds' mean, in log2 units.
    """

    slopes: Array
    intercepts: Array
    residual: float

    def log2_width_at(self, size: float) -> Array:
        """Returns log2 of the width at which each line has this size, (seeds,); inf where flat."""
        far = math.log2(size) - self.intercepts
        flat = self.slopes == 0
        return np.asarray(np.where(flat, np.inf, far / np.where(flat, 1.0, self.slopes)))


def width_lines(sizes: Array, widths: Sequence[float]) -> WidthLines:
    """Fits a line to every seed of ``sizes``, (seeds, widths) float64.

    Raises:
        ValueError: fewer than two widths, or a size that is not a positive number.
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
    return WidthLines(slopes, intercepts, float(np.sqrt(np.mean(misfit**2))))


def size_tables(
    frame: pl.DataFrame, by: Sequence[str], size: str
) -> list[tuple[dict[str, Any], Array, list[int]]]:
    """Arranges the column ``size`` by group, sorted: its values of ``by``, (seeds, widths), widths.

    Raises:
        ValueError: missing columns (also ``width`` and ``seed``), no rows, or a width that lacks a
            seed or has it twice.
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


def crossing_width(
    gradients: pl.DataFrame, eps: float = 1e-8, ratio: float = 1.0, confidence: float = 0.95
) -> pl.DataFrame:
    r"""Extrapolates to the width at which eps is ``ratio`` times a role's gradient RMS.

    .. math:: \mathrm{rms}(n) = \epsilon / \text{ratio}

    on each seed's line through the measured widths, as if the power law held beyond them; the
    interval is over seeds, and does not say whether it does. ``theory_width`` starts instead at the
    widest gradient measured and goes on with theory's exponent: how far the two are apart says more
    of the extrapolation than the interval.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`; two widths or more.

    Returns:
        A row per parameterization, step and role: eps, ratio, width with its interval (inf where
        open, or where the gradient does not fall with the width), beyond (width over the widest
        measured), theory_width (inf where its exponent is 0), residual (of the line, in log2 units)
        and note.

    Raises:
        ValueError: an eps or ratio that is not positive, and as :func:`width_lines` and
            :func:`size_tables`.

    Example:
        >>> gradients = pl.DataFrame({"parameterization": "mup", "step": 0, "role": "hidden",
        ...     "width": [32, 64], "seed": 0, "gradient_rms": [2.0**-10, 2.0**-11]})
        >>> crossing_width(gradients, eps=2.0**-20).select("width", "theory_width").rows()
        [(32768.0, 32768.0)]
    """
    check_confidence(confidence)
    check_positive("eps", eps)
    check_positive("ratio", ratio)
    rows = []
    for name, sizes, widths in size_tables(gradients, _GROUP, "gradient_rms"):
        try:
            lines = width_lines(sizes, widths)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        g = parameterization(name["parameterization"]).gradient_exponent(name["role"])
        short = float(sizes[:, -1].mean()) * ratio / eps  # gradient over what it has to fall to
        row: dict[str, Any] = name | {"eps": eps, "ratio": ratio, "residual": lines.residual}
        row["theory_width"] = widths[-1] * short ** (1 / g) if g else math.inf
        if (lines.slopes < 0).all():
            logs = lines.log2_width_at(eps / ratio)
            with np.errstate(over="ignore"):  # a slope of nearly 0: beyond all numbers
                found = np.exp2([logs.mean(), *seed_interval(logs, confidence)])
            if seed_interval(lines.slopes, confidence)[1] >= 0:
                found[2] = math.inf
            row["note"] = _reach(float(found[0]), widths, len(sizes))
        else:
            found = np.array([math.inf, 0.0, math.inf])
            row["note"] = "the gradient does not fall with the width at every seed: no such width"
        row |= dict(zip(ends("width"), found.tolist(), strict=True))
        rows.append(row | {"beyond": row["width"] / widths[-1]})
    return group_frame(rows, gradients, _GROUP, _CROSSING)


def eps_lines(
    gradients: pl.DataFrame,
    base_width: int,
    width: int | None = None,
    loss_scales: Sequence[float] | None = None,
    ending: str = "",
) -> pl.DataFrame:
    r"""Returns the eps that equals each role's gradient RMS, for "adam" and "adam, eps per layer".

    Per layer, a role's eps is :math:`\epsilon (n / n_0)^{-g}`, so that the nominal one equals the
    gradient at :math:`\mathrm{rms}\, (n / n_0)^g`. A loss scale multiplies the gradient.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`, of one parameterization
            and step, at loss scale 1.
        width, loss_scales: of the runs; None: the runs vary the width.
        ending: of the variants' names, such as ", all in bfloat16".

    Returns:
        A row per variant, role, and width (or loss scale): ``variant``, ``role``, ``width`` (or
        ``loss_scale``), ``eps`` (geometric mean over seeds).

    Raises:
        ValueError: several parameterizations or steps, a width without gradients, loss scales
            without a width, or a gradient that is not a positive number.

    Example:
        >>> gradients = pl.DataFrame({"parameterization": "mup", "step": 0, "role": "hidden",
        ...     "width": [32, 64], "seed": 0, "gradient_rms": [0.25, 0.125]})
        >>> eps_lines(gradients, base_width=32)["eps"].to_list()
        [0.25, 0.125, 0.25, 0.25]
    """
    check_positive("base_width", base_width)
    kinds = gradients.select("parameterization", "step").unique().rows()
    if len(kinds) != 1:
        raise ValueError(f"gradients are of {sorted(kinds)}: keep one parameterization and step")
    if loss_scales is not None and width is None:
        raise ValueError("loss_scales without a width: say at which width they ran")
    layers = parameterization(kinds[0][0])
    rows: list[tuple[str, str, int, float]] = []
    for variant, per_layer in ((f"adam{ending}", False), (f"adam, eps per layer{ending}", True)):
        for name, sizes, widths in size_tables(gradients, _GROUP, "gradient_rms"):
            if not bool((np.isfinite(sizes) & (sizes > 0)).all()):
                raise ValueError(f"{name}: a gradient is 0 or not finite")
            role = name["role"]
            g = layers.gradient_exponent(role) if per_layer else 0.0
            eps = np.exp2(np.log2(sizes).mean(axis=0)) * (np.array(widths) / base_width) ** g
            if loss_scales is not None and width not in widths:
                raise ValueError(f"no gradients at width {width}; there are: {widths}")
            rows += [(variant, role, *pair) for pair in zip(widths, eps.tolist(), strict=True)]
    lines = pl.DataFrame(rows, schema=["variant", "role", "width", "eps"], orient="row")
    if loss_scales is None:
        return lines
    scales = pl.DataFrame({"loss_scale": loss_scales}, schema={"loss_scale": pl.Float64})
    at_width = lines.filter(width=width).join(scales, how="cross")
    eps_there = pl.col("eps") * pl.col("loss_scale")
    return at_width.select("variant", "role", "loss_scale", eps_there)


def _reach(width: float, widths: Sequence[int], seeds: int) -> str:
    if math.isinf(width):
        return "beyond all numbers: the gradient hardly falls"
    beyond = math.log10(width / widths[-1])
    if beyond > 0:
        note = f"extrapolated {beyond:.1f} decades beyond width {widths[-1]}"
    elif width < widths[0]:
        note = f"extrapolated below width {widths[0]}"
    else:
        note = "within the measured widths"
    return joined([note, ONE_SEED if seeds == 1 else ""])
