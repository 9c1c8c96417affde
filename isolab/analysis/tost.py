"""Are two sweeps the same at their best rates? Two one-sided tests, paired over seeds.

Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
assessing the equivalence of average bioavailability", 1987.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from isolab.analysis.groups import each_group, joined
from isolab.analysis.seeds import Array, check_positive, student_interval
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
    check_positive("margin", margin)
    pairs = [
        (name, paired_difference(a, b, rate, loss, seed, confidence))
        for name, a, b in _both_sides(runs_a, runs_b, across)
    ]
    if len({pair.seeds for _, pair in pairs}) > 1:
        raise ValueError(f"the groups by {list(across)} have different seeds; allowed: the same")
    each = np.mean([pair.differences for _, pair in pairs], axis=0)
    # paired_difference calls the sides baseline and challenger
    reasons = joined(f"{name}{pair.reason}" for name, pair in pairs if pair.reason)
    reasons = reasons.replace("baseline's", "first side's").replace("challenger's", "second's")
    return TostResult(
        float(each.mean()),
        student_interval(each, confidence),
        margin,
        _p_value(each, margin),
        tuple(each.tolist()),
        tuple((pair.baseline_rate, pair.challenger_rate) for _, pair in pairs),
        reasons or None,
    )


def _p_value(differences: Array, margin: float) -> float:
    """Returns the larger of the two one-sided tests' p-values."""
    from scipy.special import stdtr

    n = len(differences)
    spread = float(differences.std(ddof=1)) / math.sqrt(n)
    room = margin - abs(float(differences.mean()))
    if spread == 0:
        return 0.0 if room > 0 else 1.0
    return float(stdtr(n - 1, -room / spread))


def _both_sides(
    runs_a: pl.DataFrame, runs_b: pl.DataFrame, across: Sequence[str]
) -> list[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """Returns the name of each group by ``across`` and both sides' runs in it."""
    if not across:
        return [("", runs_a, runs_b)]
    a, b = (
        dict(each_group(runs, across, lambda name, its: (tuple(name.values()), its)))
        for runs in (runs_a, runs_b)
    )
    if a.keys() != b.keys():
        raise ValueError(
            f"the sides' {list(across)} are {sorted(a)} and {sorted(b)}; allowed: the same"
        )
    names = ("".join(f"{c} {v}: " for c, v in zip(across, its, strict=True)) for its in a)
    return [(name, a[its], b[its]) for name, its in zip(names, a, strict=True)]
