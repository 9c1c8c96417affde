"""Are two sweeps the same at their best rates? Two one-sided tests, paired over seeds.

Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
assessing the equivalence of average bioavailability", 1987.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import check_positive, require_columns, student_interval
from isolab.analysis.speedup import paired_difference


@dataclass(frozen=True)
class TostResult:
    """The outcome of :func:`tost`.

    difference: mean over seeds of a's loss less b's, nats/token, above 0 where a is worse;
    interval: of the mean; margin: stated before; p_value: the larger of the two one-sided tests';
    differences: by seed; rates: of a and b, a pair for each group; reason: why not to judge by it,
    or None.
    """

    difference: float
    interval: tuple[float, float]
    margin: float
    p_value: float
    differences: tuple[float, ...]
    rates: tuple[tuple[float, float], ...]
    reason: str | None

    @property
    def equivalent(self) -> bool:
        """Returns whether the whole interval lies within the margin."""
        return -self.margin <= self.interval[0] and self.interval[1] <= self.margin


def tost(
    runs_a: pl.DataFrame,
    runs_b: pl.DataFrame,
    margin: float,
    across: Sequence[str] = (),
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
) -> TostResult:
    r"""Tests whether two sweeps end on the same loss, each at its best rate, within a margin.

    Two one-sided tests, that the difference is below -margin and that it is above +margin, each at
    level (1 - confidence) / 2: both are rejected where the Student interval of the mean paired
    difference lies within the margin. A mere failure to find a difference is not equivalence.

    Args:
        runs_a, runs_b: a row per run; the same seeds in both. Each side's rate is the one of lowest
            seed-averaged loss on its grid.
        margin: nats/token, above 0, stated before the runs.
        across: columns that both frames have, such as ``width``: in each group of their values both
            sides take their best rates anew, and a seed's difference is its mean over the groups.
            The seeds remain what the interval is over, as runs of one seed share batches.
        rate, loss, seed: names of columns.
        confidence: of the interval.

    Raises:
        ValueError: a margin that is not positive, groups or seeds that differ between the sides,
            and whatever :func:`~isolab.analysis.speedup.paired_difference` refuses.

    Example:
        >>> def runs(losses):
        ...     return pl.DataFrame({"learning_rate": 0.1, "seed": [0, 1, 2],
        ...                          "final_validation_loss": losses})
        >>> found = tost(runs([1.50, 1.60, 1.55]), runs([1.50, 1.601, 1.549]), 0.02)
        >>> found.equivalent, found.p_value < 0.01
        (True, True)
    """
    from scipy.special import stdtr

    check_positive("margin", margin)
    groups = _groups(runs_a, runs_b, across)
    found = {
        name: paired_difference(a, b, rate, loss, seed, confidence)
        for name, (a, b) in groups.items()
    }
    if len({pair.seeds for pair in found.values()}) > 1:
        raise ValueError(f"the groups by {list(across)} have different seeds; allowed: the same")
    each = np.mean([pair.differences for pair in found.values()], axis=0)
    spread = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    room = margin - abs(float(each.mean()))
    if spread == 0:
        p_value = 0.0 if room > 0 else 1.0
    else:
        p_value = float(stdtr(len(each) - 1, -room / spread)) if len(each) > 1 else 1.0
    reasons = [f"{_said(across, name)}{pair.reason}" for name, pair in found.items() if pair.reason]
    said = "; ".join(reasons) or None
    if said is not None:  # there the sides are called baseline and challenger
        said = said.replace("baseline's", "first side's").replace("challenger's", "second's")
    return TostResult(
        float(each.mean()),
        student_interval(each, confidence) if len(each) > 1 else (-math.inf, math.inf),
        margin,
        p_value,
        tuple(map(float, each)),
        tuple((pair.baseline_rate, pair.challenger_rate) for pair in found.values()),
        said,
    )


def _groups(
    runs_a: pl.DataFrame, runs_b: pl.DataFrame, across: Sequence[str]
) -> dict[tuple[Any, ...], tuple[pl.DataFrame, pl.DataFrame]]:
    """Returns both sides' runs by the values of ``across``."""
    if not across:
        return {(): (runs_a, runs_b)}
    sides = []
    for runs in (runs_a, runs_b):
        require_columns(runs, across)
        sides.append(dict(runs.sort(across).group_by(across, maintain_order=True)))
    if sides[0].keys() != sides[1].keys():
        raise ValueError(
            f"the sides' {list(across)} are {sorted(sides[0])} and {sorted(sides[1])}; allowed: the"
            " same"
        )
    return {name: (sides[0][name], sides[1][name]) for name in sides[0]}


def _said(across: Sequence[str], name: tuple[Any, ...]) -> str:
    return "".join(f"{column} {value}: " for column, value in zip(across, name, strict=True))
