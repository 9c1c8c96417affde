"""Chapter 2's claims, made from the frames of :mod:`isolab.analysis.transfer`.

Thresholds were fixed before the runs.  Each function takes a frame with the columns
``parameterization``, ``optimizer`` and ``rate_rule`` and picks its row.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from isolab.analysis.claim import Claim, interval_of, reason_of
from isolab.theory.parameterization import PARAMETERIZATIONS, parameterization

SOURCE = "arXiv:2407.05872"
_NAMES = {"ntk": "NTK", "mup": "muP", "mean_field": "mean-field", "sgd": "SGD", "adam": "Adam",
          "adafactor": "Adafactor"}  # fmt: skip


def exponent_claim(exponents: pl.DataFrame, scaling: str, optimizer: str) -> Claim:
    """Asks whether the best global rate moves with the power of the width that theory gives.

    The interval must contain the power at full alignment and not the one at no alignment.

    Args:
        exponents: as of :func:`isolab.analysis.exponent.exponents`.
        scaling: a parameterization.
        optimizer: "sgd", "adam" or "adafactor".

    Raises:
        ValueError: the frame has no such row, or theory gives one power for both alignments.
    """
    row = _row(exponents, scaling, optimizer, "global")
    full, none = (_global_power(scaling, optimizer, alignment) for alignment in ("full", "none"))
    if full == none:
        raise ValueError(
            f"{scaling} with {optimizer} has one power, {full:g}, at either alignment: no interval"
            " can tell them apart"
        )
    return Claim(
        f"{_said(scaling)}, {_said(optimizer)}, one global rate: with what power of the width does"
        " the best rate move?",
        measured=row["exponent"],
        interval=interval_of(row, "exponent"),
        threshold=full,
        direction="contains",
        rival=none,
        source=SOURCE,
        inconclusive=reason_of(row, "exponent"),
        prediction=f"{full:g} by full alignment, {none:g} by none",
    )


def shift_claim(shifts: pl.DataFrame, scaling: str, optimizer: str) -> Claim:
    """Asks whether per-layer rates keep the best rate within one grid step at the largest width.

    Args:
        shifts: as of :func:`isolab.analysis.regret.worst_shift`.
        scaling: a parameterization.
        optimizer: a name.

    Raises:
        ValueError: the frame has no such row.
    """
    row = _row(shifts, scaling, optimizer, "full")
    return Claim(
        f"{_said(scaling)}, {_said(optimizer)}, per-layer rates: how many factors of 2 from the"
        f" narrowest width's best rate lies that of width {row['width']}?",
        measured=row["grid_steps"],
        interval=interval_of(row, "grid_steps"),
        threshold=1.0,
        direction="within",
        unit="grid steps",
        source=SOURCE,
        inconclusive=reason_of(row, "grid_steps"),
        prediction="none: the rate transfers, within one grid step",
    )


def loss_claim(differences: pl.DataFrame, scaling: str, optimizer: str) -> Claim:
    """Asks whether standard has the lower loss at the largest width, both with per-layer rates.

    Args:
        differences: as of :func:`isolab.analysis.ranking.loss_differences`, against standard.
        scaling: the parameterization that is compared with it.
        optimizer: a name.

    Raises:
        ValueError: the frame has no such row.
    """
    row = _row(differences, scaling, optimizer, "full")
    return Claim(
        f"By how much does the standard parameterization end below {_said(scaling)} at width"
        f" {row['width']}, both with per-layer rates ({_said(optimizer)})?",
        measured=row["difference"],
        interval=interval_of(row, "difference"),
        threshold=0.0,
        direction="above",
        unit="nats/byte",
        source=SOURCE,
        inconclusive=reason_of(row, "difference"),
        prediction="its loss is lower",
    )


def _row(frame: pl.DataFrame, scaling: str, optimizer: str, rule: str) -> dict[str, Any]:
    found = frame.filter(
        (pl.col("parameterization") == scaling)
        & (pl.col("optimizer") == optimizer)
        & (pl.col("rate_rule") == rule)
    )
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} rows of {scaling}, {optimizer}, {rule!r}; needed: one. The frame has"
            f" {frame.select('parameterization', 'optimizer', 'rate_rule').unique().rows()}"
        )
    return found.row(0, named=True)


def _global_power(scaling: str, optimizer: str, alignment: str) -> float:
    return 0.0 - parameterization(scaling).global_rate_exponent(optimizer, alignment)


def _said(name: str) -> str:
    return _NAMES.get(name, name.capitalize() if name in PARAMETERIZATIONS else name)
