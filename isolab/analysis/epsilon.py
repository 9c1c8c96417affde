r"""What epsilon and the scale of the loss do to the final loss, and where 1e-8 begins to matter.

:func:`variants` and :func:`cases` name what is compared; :func:`eps_map` and :func:`flat_decades`
say over which eps, widths and loss scales the final loss stays as it is; :func:`eps_lines` and
:func:`crossing_width` say where eps equals a gradient.

Reference: Everett et al., arXiv:2407.05872, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from isolab.analysis.groups import each_group, ends, group_frame, joined, told, with_ends
from isolab.analysis.seeds import (
    ONE_SEED,
    Array,
    LossTable,
    loss_table,
    require_columns,
    require_unique,
    student_interval,
)
from isolab.analysis.width_lines import size_tables, width_lines
from isolab.theory.parameterization import parameterization
from isolab.training.config import with_later_fields

DEFAULT_EPS = 1e-8
_NAMED = ("eps_rule", "moment_dtype", "dtype", "atan2_a", "atan2_b")
_ROLE = ["parameterization", "step", "role"]


def variants(runs: pl.DataFrame) -> pl.DataFrame:
    """Adds a column ``variant``, such as "adam", "adam, eps per layer" or "adam_atan2".

    It names the optimizer and whatever of the rule of eps, the dtypes of moments and computation
    and Adam-atan2's a and b is not the default. Columns of these that stored runs lack, or have
    null, are filled with the defaults, which is what those runs did; so is ``loss_scale``.

    Example:
        >>> runs = pl.DataFrame({"optimizer": ["adam", "adam"], "eps_rule": [None, "per_layer"]})
        >>> variants(runs)["variant"].to_list()
        ['adam', 'adam, eps per layer']
    """
    require_columns(runs, ["optimizer"])
    filled = with_later_fields(runs, (*_NAMED, "loss_scale"))
    moments, compute = pl.col("moment_dtype"), pl.col("dtype")
    narrow = moments != "float32", compute != "float32"
    both = narrow[0] & narrow[1] & (moments == compute)
    parts = [
        pl.when(pl.col("eps_rule") == "per_layer").then(pl.lit(", eps per layer")),
        pl.when(both).then(pl.format(", all in {}", compute)),
        pl.when(narrow[0] & ~both).then(pl.format(", {} moments", moments)),
        pl.when(narrow[1] & ~both).then(pl.format(", {} compute", compute)),
        *(
            pl.when(pl.col(name) != 1.0).then(
                pl.format(f", {name[-1]} = {{}}", pl.col(name).round_sig_figs(3))
            )
            for name in ("atan2_a", "atan2_b")
        ),
    ]
    name = pl.concat_str(pl.col("optimizer"), *parts, ignore_nulls=True)
    return filled.with_columns(name.alias("variant"))


def cases(runs: pl.DataFrame) -> pl.DataFrame:
    """Adds columns ``variant`` (:func:`variants`) and ``case``: the variant and its eps.

    Example:
        >>> runs = pl.DataFrame({"optimizer": ["adam", "adam_atan2"], "eps": [1e-8, None]})
        >>> cases(runs)["case"].to_list()
        ['adam, eps = 1e-8', 'adam_atan2']
    """
    named = variants(runs)
    require_columns(named, ["eps"])
    values = named["eps"].unique().drop_nulls()
    texts = [f", eps = {eps_text(eps)}" for eps in values]
    eps = pl.col("eps").replace_strict(values, texts, default=None, return_dtype=pl.String)
    return named.with_columns(
        pl.concat_str(pl.col("variant"), eps, ignore_nulls=True).alias("case")
    )


def eps_text(eps: float) -> str:
    """Returns an eps as people write it, such as 1e-8, 0.01 or 0."""
    return f"{eps:.3g}".replace("e-0", "e-")


def at_best_eps(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs of the eps with the lowest mean loss, at its best rate, at each width."""
    mean = pl.col("final_validation_loss").cast(pl.Float64).fill_nan(math.inf).mean()
    each = runs.group_by("width", "eps", "learning_rate").agg(mean.alias("_mean"))
    best = each.sort("_mean", "eps").group_by("width", maintain_order=True).first()
    on = ["width", "eps"]
    return runs.join(best.select(on), on=on, how="semi", maintain_order="left")


def eps_map(runs: pl.DataFrame, over: str = "width") -> pl.DataFrame:
    """Returns the mean final loss of every variant, eps and ``over``, "width" or "loss_scale".

    ``eps`` is null where the optimizer has none; all but the seed must be the same in a cell.

    Returns:
        A row per cell, sorted: ``variant`` (:func:`variants`), ``eps``, ``over``, ``loss`` (mean
        over seeds, +inf where any seed diverged), ``seeds`` and ``diverged`` (how many).

    Raises:
        ValueError: missing columns, no rows, or two runs of one cell and seed.

    Example:
        >>> runs = pl.DataFrame({"optimizer": "adam", "eps": 1e-8, "width": 32, "seed": [0, 1],
        ...                      "final_validation_loss": [2.0, 3.0]})
        >>> eps_map(runs).rows()
        [('adam', 1e-08, 32, 2.5, 2, 0)]
    """
    runs, cell = variants(runs), ["variant", "eps", over]
    require_columns(runs, ["final_validation_loss"])
    require_unique(runs, [*cell, "seed"], "keep one learning rate, width or loss scale")
    loss = pl.col("final_validation_loss").cast(pl.Float64).fill_nan(math.inf)
    found = runs.group_by(cell).agg(
        loss.mean().alias("loss"),
        pl.len().cast(pl.Int64).alias("seeds"),
        (loss == math.inf).sum().cast(pl.Int64).alias("diverged"),
    )
    return found.sort(cell, nulls_last=True)


def flat_decades(runs: pl.DataFrame, margin: float) -> pl.DataFrame:
    r"""Returns over how many decades of loss scale each case's final loss stays within a margin.

    The range around scale 1, without a gap, where the mean over seeds of the difference to the same
    seed's loss at scale 1 is at most ``margin``, nats/token. Its low end counts a scale only while
    the Student interval of that difference lies within the margin, its high end until the interval
    lies outside it; what the grid does not decide, up to the next scale or beyond its ends, is
    open. Conventions are those of :mod:`isolab.analysis.groups`, with columns ``optimizer``,
    ``eps`` and ``loss_scale`` for the rate.

    Returns:
        A row per variant and case (:func:`cases`): decades with its interval, from_scale and
        to_scale (the ends of the range), equal_decades (the same for losses equal to the last bit,
        at every seed) and equal_share (of the runs at other scales than 1).

    Raises:
        ValueError: no scale 1 or no other one in a group.
    """
    runs, by = cases(runs), ["variant", "case"]

    def row(name: dict[str, Any], group: pl.DataFrame) -> dict[str, Any]:
        return name | _flat(loss_table(group, "loss_scale"), margin)

    columns = ["from_scale", "to_scale", "equal_decades", "equal_share", "note", "reason"]
    return group_frame(each_group(runs, by, row), runs, by, [*ends("decades"), *columns])


def _flat(table: LossTable, margin: float) -> dict[str, Any]:
    scales, losses = table.settings, table.losses
    if 1.0 not in scales or len(scales) < 2:
        raise ValueError(f"loss scales are {scales.tolist()}: needs 1 and another one")
    one, last, seeds = int(np.searchsorted(scales, 1.0)), len(scales) - 1, len(table.seeds)
    if not np.isfinite(losses[one]).all():
        return told(["a run at loss scale 1 diverged: nothing to compare with"])
    away = losses - losses[one]  # inf where diverged
    intervals = np.array([student_interval(its) for its in away])
    intervals[~np.isfinite(away).all(axis=1)] = math.inf
    intervals[one] = 0.0
    near = np.abs(away.mean(axis=1)) <= margin
    surely = (np.abs(intervals) <= margin).all(axis=1)
    maybe = (intervals[:, 0] <= margin) & (intervals[:, 1] >= -margin)
    equal = np.isfinite(losses) & (losses == losses[one])
    low, high = _around(near, one)
    widest_low, widest_high = _around(maybe, one)
    open_end = (widest_low == 0 < one) or (widest_high == last > one)
    widest = max(widest_low - 1, 0), min(widest_high + 1, last)
    row = {
        "decades": _decades(scales, (low, high)),
        "decades_low": _decades(scales, _around(surely, one)),
        "decades_high": math.inf if open_end else _decades(scales, widest),
        "from_scale": scales[low],
        "to_scale": scales[high],
        "equal_decades": _decades(scales, _around(equal.all(axis=1), one)),
        "equal_share": np.delete(equal, one, axis=0).mean(),
    }
    ends_tried = [
        f"flat down to the smallest scale tried, {scales[0]:.2g}" if low == 0 else "",
        f"flat up to the largest scale tried, {scales[-1]:.2g}" if high == last > one else "",
    ]
    one_seed = ONE_SEED if seeds == 1 else ""
    return row | {"note": joined([*ends_tried, one_seed]), "reason": one_seed or None}


def _around(flat: npt.NDArray[np.bool_], one: int) -> tuple[int, int]:
    """Returns first and last index of the stretch without a gap that holds ``one``."""
    gaps = np.flatnonzero(~flat)
    return (
        int(max(gaps[gaps < one], default=-1)) + 1,
        int(min(gaps[gaps > one], default=len(flat))) - 1,
    )


def _decades(scales: Array, span: tuple[int, int]) -> float:
    return float(np.log10(scales[span[1]] / scales[span[0]]))


def crossing_width(gradients: pl.DataFrame) -> pl.DataFrame:
    r"""Extrapolates to the width at which :data:`DEFAULT_EPS` equals a role's gradient RMS.

    It lies on each seed's line through the measured widths, as if the power law held beyond them;
    the interval is over seeds, and does not say whether it does. ``theory_width`` starts instead at
    the widest gradient measured and goes on with theory's exponent: how far the two are apart says
    more of the extrapolation than the interval.

    Args:
        gradients: from :func:`isolab.measure.gradients.gradient_sizes`; two widths or more.

    Returns:
        A row per parameterization, step and role: width with its interval (inf where open, or where
        the gradient does not fall with the width), beyond (width over the widest measured),
        theory_width (inf where its exponent is 0) and note.

    Raises:
        ValueError: a gradient that is not a positive number, and as
            :func:`isolab.analysis.width_lines.width_slopes`.

    Example:
        >>> gradients = pl.DataFrame({"parameterization": "mup", "step": 0, "role": "hidden",
        ...     "width": [32, 64], "seed": 0, "gradient_rms": [1024e-8, 512e-8]})
        >>> crossing_width(gradients).select(pl.col("width", "theory_width").round()).rows()
        [(32768.0, 32768.0)]
    """
    rows = []
    for name, sizes, widths in _gradient_tables(gradients):
        slopes, intercepts = width_lines(sizes, widths)
        found, note = (
            [math.inf, 0.0, math.inf],
            "the gradient does not fall with the width at every seed: no such width",
        )
        if (slopes < 0).all():
            logs = (math.log2(DEFAULT_EPS) - intercepts) / slopes
            with np.errstate(over="ignore"):  # a slope of nearly 0: beyond all numbers
                found = np.exp2([logs.mean(), *student_interval(logs)]).tolist()
            if student_interval(slopes)[1] >= 0:
                found[2] = math.inf
            note = _reach(found[0], widths, len(sizes))
        g = parameterization(name["parameterization"]).gradient_exponent(name["role"])
        short = float(sizes[:, -1].mean()) / DEFAULT_EPS  # gradient over what it has to fall to
        theory = widths[-1] * short ** (1 / g) if g else math.inf
        row = {"beyond": found[0] / widths[-1], "theory_width": theory, "note": note}
        rows.append(name | with_ends("width", found[0], (found[1], found[2])) | row)
    columns = [*ends("width"), "beyond", "theory_width", "note"]
    return group_frame(rows, gradients, _ROLE, columns)


def _gradient_tables(gradients: pl.DataFrame) -> list[tuple[dict[str, Any], Array, list[int]]]:
    tables = size_tables(gradients, _ROLE, "gradient_rms")
    for name, _, _, wrong in tables:
        if wrong:
            raise ValueError(f"{name}: {wrong}: a gradient must be positive and finite")
    return [table[:3] for table in tables]


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


def eps_lines(gradients: pl.DataFrame, base_width: int, ending: str = "") -> pl.DataFrame:
    r"""Returns the eps that equals each role's gradient RMS, for "adam" and "adam, eps per layer".

    Per layer, a role's eps is :math:`\epsilon (n / n_0)^{-g}`, so that the nominal one equals the
    gradient at :math:`\mathrm{rms}\, (n / n_0)^g`.

    ``gradients`` are as for :func:`crossing_width`, of one parameterization and step, at loss scale
    1; ``ending`` is that of the variants' names, such as ", all in bfloat16".

    Returns:
        A row per variant, role and width: ``variant``, ``role``, ``width`` and ``eps`` (geometric
        mean over seeds).
    """
    kinds = gradients.select("parameterization", "step").unique().rows()
    if len(kinds) != 1:
        raise ValueError(f"gradients are of {sorted(kinds)}: keep one parameterization and step")
    layers = parameterization(kinds[0][0])
    rows: list[tuple[str, str, int, float]] = []
    for variant, per_layer in ((f"adam{ending}", False), (f"adam, eps per layer{ending}", True)):
        for name, sizes, widths in _gradient_tables(gradients):
            role = name["role"]
            g = layers.gradient_exponent(role) if per_layer else 0.0
            eps = np.exp2(np.log2(sizes).mean(axis=0)) * (np.array(widths) / base_width) ** g
            rows += [(variant, role, *pair) for pair in zip(widths, eps.tolist(), strict=True)]
    return pl.DataFrame(rows, schema=["variant", "role", "width", "eps"], orient="row")
