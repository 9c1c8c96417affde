r"""What epsilon and the scale of the loss do to the final loss, and where 1e-8 begins to matter.

:func:`variants` and :func:`cases` name what is compared; :func:`eps_map` and :func:`flat_decades`
say over which eps, widths and loss scales the final loss stays as it is. Where eps equals a
gradient is in :mod:`isolab.analysis.width_lines`, whether two sweeps end on the same loss in
:mod:`isolab.analysis.tost`.

Reference: Everett et al., arXiv:2407.05872, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from isolab.analysis.groups import ONE_SEED, each_group, ends, group_frame, joined, told
from isolab.analysis.seeds import (
    Array,
    LossTable,
    check_confidence,
    check_positive,
    loss_table,
    require_columns,
    require_rows,
    require_unique,
    seed_interval,
)
from isolab.analysis.tost import TostResult, tost
from isolab.analysis.width_lines import crossing_width, eps_lines
from isolab.training.config import with_later_fields

__all__ = [
    "TostResult",
    "at_best_eps",
    "cases",
    "crossing_width",
    "eps_lines",
    "eps_map",
    "eps_text",
    "flat_decades",
    "tost",
    "variants",
]

_NAMED = ("eps_rule", "moment_dtype", "dtype", "atan2_a", "atan2_b")
_FLAT = [*ends("decades"), "from_scale", "to_scale", "equal_decades", "equal_share",
         "scales", "seeds", "note", "reason"]  # fmt: skip


def variants(runs: pl.DataFrame) -> pl.DataFrame:
    """Adds a column ``variant``, such as "adam", "adam, eps per layer" or "adam_atan2".

    It names the optimizer and whatever of the rule of eps, the dtypes of moments and computation
    and Adam-atan2's a and b is not the default. Columns of these that stored runs lack, or have
    null, are filled with the defaults, which is what those runs did; so is ``loss_scale``.

    Raises:
        ValueError: no column ``optimizer``.

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
    """Returns an eps as people write it.

    Example:
        >>> [eps_text(eps) for eps in (1e-8, 1e-5, 0.01, 0.0)]
        ['1e-8', '1e-5', '0.01', '0']
    """
    return f"{eps:.3g}".replace("e-0", "e-")


def at_best_eps(
    runs: pl.DataFrame,
    by: Sequence[str] = ("width",),
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
) -> pl.DataFrame:
    """Returns the runs of the eps with the lowest mean loss, at its best rate, in each group.

    Raises:
        ValueError: missing columns, or no rows.

    Example:
        >>> runs = pl.DataFrame({"width": 32, "eps": [1e-8, 1e-8, 1e-4, 1e-4],
        ...     "learning_rate": [0.1, 0.2] * 2, "final_validation_loss": [2.0, 2.3, 2.1, 1.9]})
        >>> at_best_eps(runs)["eps"].to_list()
        [0.0001, 0.0001]
    """
    require_rows(runs, [*by, "eps", rate, loss])
    value = pl.col(loss).cast(pl.Float64).fill_nan(math.inf).mean()
    each = runs.group_by(*by, "eps", rate).agg(value.alias("_mean"))
    best = each.sort("_mean", "eps").group_by(by, maintain_order=True).first()
    return runs.join(best.select(*by, "eps"), on=[*by, "eps"], how="semi", maintain_order="left")


def eps_map(
    runs: pl.DataFrame,
    over: str = "width",
    loss: str = "final_validation_loss",
    seed: str = "seed",
) -> pl.DataFrame:
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
    require_columns(runs, ["optimizer", "eps", seed, loss])
    runs = variants(runs)
    cell = ["variant", "eps", over]
    require_rows(runs, cell)
    require_unique(runs, [*cell, seed], "keep one learning rate, width or loss scale")
    value = pl.col(loss).cast(pl.Float64).fill_nan(math.inf)
    found = runs.group_by(cell).agg(
        value.mean().alias("loss"),
        pl.len().cast(pl.Int64).alias("seeds"),
        (value == math.inf).sum().cast(pl.Int64).alias("diverged"),
    )
    return found.sort(cell, nulls_last=True)


def flat_decades(
    runs: pl.DataFrame,
    margin: float,
    by: Sequence[str] = ("variant", "eps"),
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
) -> pl.DataFrame:
    r"""Returns over how many decades of loss scale the final loss stays within a margin.

    The range around scale 1, without a gap, where the mean over seeds of the difference to the same
    seed's loss at scale 1 is at most ``margin``. Its low end counts a scale only while the Student
    interval of that difference lies within the margin, its high end until the interval lies outside
    it; what the grid does not decide, up to the next scale or beyond its ends, is open.

    Conventions are those of :mod:`isolab.analysis.groups`, with columns ``optimizer`` and
    ``loss_scale`` for the rate; ``variant`` is :func:`variants`'. The margin is in nats/token.

    Returns:
        A row per group: decades with its interval, from_scale and to_scale (the ends of the range),
        equal_decades (the same for losses equal to the last bit, at every seed), equal_share (of
        the runs at other scales than 1) and scales, how many.

    Raises:
        ValueError: a margin that is not positive, no scale 1 or no other one in a group.

    Example:
        >>> runs = pl.DataFrame({"optimizer": "adam_atan2", "eps": None, "seed": [0, 1] * 3,
        ...     "loss_scale": [1.0, 1.0, 1e-6, 1e-6, 1e-12, 1e-12],
        ...     "final_validation_loss": [2.0, 2.1, 2.0, 2.1, 2.5, 2.6]})
        >>> flat_decades(runs, 0.01).select("decades", "decades_low", "equal_share").rows()
        [(6.0, 6.0, 0.5)]
    """
    check_confidence(confidence)
    check_positive("margin", margin)
    require_columns(runs, ["optimizer", "loss_scale", loss, seed])
    runs = variants(runs)

    def row(name: dict[str, Any], group: pl.DataFrame) -> dict[str, Any]:
        return name | _flat(loss_table(group, "loss_scale", loss, seed), margin, confidence)

    return group_frame(each_group(runs, by, row), runs, by, _FLAT)


def _flat(table: LossTable, margin: float, confidence: float) -> dict[str, Any]:
    scales, losses = table.settings, table.losses
    if 1.0 not in scales or len(scales) < 2:
        raise ValueError(f"loss scales are {scales.tolist()}: needs 1 and another one")
    one, last, seeds = int(np.searchsorted(scales, 1.0)), len(scales) - 1, len(table.seeds)
    row: dict[str, Any] = {"scales": len(scales), "seeds": seeds}
    if not np.isfinite(losses[one]).all():
        return row | told(["a run at loss scale 1 diverged: nothing to compare with"])
    away = losses - losses[one]  # inf where diverged
    intervals = np.array([seed_interval(its, confidence) for its in away])
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
    row |= {
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
