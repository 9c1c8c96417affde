"""Chapter 3's claims, made from the frames of :mod:`isolab.analysis.epsilon` and transfer.

Thresholds and margins were fixed before the runs.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from isolab.analysis.claim import Claim, interval_of, reason_of
from isolab.analysis.tost import TostResult

SOURCE = "arXiv:2407.05872, section 4.3"
DECADES = 12.0
"""Of loss scale, over which Adam-atan2 must end on the same loss."""
MARGIN = 0.05
"""nats/byte: losses nearer to each other than this count as the same."""


def scale_claim(flat: pl.DataFrame, variant: str = "adam_atan2") -> Claim:
    """Asks over how many decades of loss scale a variant's final loss stays the same.

    Args:
        flat: as of :func:`isolab.analysis.epsilon.flat_decades`, with ``variant``.
        variant: one that the frame holds once.

    Raises:
        ValueError: the frame has no such row, or several.
    """
    row = _row(flat, "variant", variant)
    return Claim(
        f"Over how many decades of loss scale does {_said(variant)} end on the same loss?",
        measured=row["decades"],
        interval=interval_of(row, "decades"),
        threshold=DECADES,
        direction="above",
        unit="decades",
        source=SOURCE,
        inconclusive=reason_of(row, "decades"),
        prediction="all that float32 holds: no update changes until gradients underflow",
    )


def shift_claim(shifts: pl.DataFrame, case: str, breaks: bool) -> Claim:
    """Asks how far the best rate moves from the narrowest to the largest width.

    Args:
        shifts: as of :func:`isolab.analysis.regret.worst_shift`, with ``case``.
        case: as :func:`isolab.analysis.epsilon.cases` names it.
        breaks: whether transfer is expected to break, by more than one factor of 2, or to hold,
            within one.

    Raises:
        ValueError: the frame has no such row, or several.
    """
    row = _row(shifts, "case", case)
    return Claim(
        f"{_said(case)}: how many factors of 2 from the narrowest width's best rate lies that of"
        f" width {row['width']:g}?",
        measured=row["grid_steps"],
        interval=interval_of(row, "grid_steps"),
        threshold=1.0,
        direction="above" if breaks else "within",
        unit="factors of 2",
        source=SOURCE,
        inconclusive=reason_of(row, "grid_steps"),
        prediction="more than one: transfer breaks" if breaks else "none: the rate transfers",
    )


def equivalence_claim(found: TostResult, against: str) -> Claim:
    """Asks whether Adam-atan2 ends on the loss of Adam, both at their best rates.

    Args:
        found: Adam-atan2's loss less Adam's.
        against: Adam's eps, in words.
    """
    return Claim(
        f"At its best rate, by how much does Adam-atan2 end above Adam with {against}?",
        measured=found.difference,
        interval=found.interval,
        threshold=found.margin,
        direction="within",
        unit="nats/byte",
        source=SOURCE,
        inconclusive=found.reason,
        prediction="by nothing: the two are equivalent",
    )


def _row(frame: pl.DataFrame, column: str, value: str) -> dict[str, Any]:
    found = frame.filter(pl.col(column) == value)
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} rows of {column} {value!r}; needed: one. There are"
            f" {frame[column].to_list()}"
        )
    return found.row(0, named=True)


def _said(name: str) -> str:
    return name.replace("adam_atan2", "Adam-atan2").replace("adam", "Adam")
