"""Are two sweeps the same at their best rates? Two one-sided tests, paired over seeds.

Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
assessing the equivalence of average bioavailability", 1987.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from isolab.analysis.speedup import paired_difference


@dataclass(frozen=True)
class Equivalence:
    """The outcome of :func:`equivalence`.

    difference: mean over seeds of a's loss less b's, nats/token, above 0 where a is worse;
    interval: of the mean; margin: stated before; p_value: the larger of the two one-sided tests';
    differences: by seed; rates: of a and b; reason: why not to judge by it, or None.
    """

    difference: float
    interval: tuple[float, float]
    margin: float
    p_value: float
    differences: tuple[float, ...]
    rates: tuple[float, float]
    reason: str | None

    @property
    def equivalent(self) -> bool:
        """Returns whether the whole interval lies within the margin."""
        return -self.margin <= self.interval[0] and self.interval[1] <= self.margin


def equivalence(
    runs_a: pl.DataFrame,
    runs_b: pl.DataFrame,
    margin: float,
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
) -> Equivalence:
    r"""Tests whether two sweeps end on the same loss, each at its best rate, within a margin.

    Two one-sided tests, that the difference is below -margin and that it is above +margin, each at
    level (1 - confidence) / 2: both are rejected where the Student interval of the mean paired
    difference lies within the margin. A mere failure to find a difference is not equivalence.

    Args:
        runs_a, runs_b: a row per run; the same seeds in both. Each side's rate is the one of lowest
            seed-averaged loss on its grid.
        margin: nats/token, above 0, stated before the runs.
        rate, loss, seed: names of columns.
        confidence: of the interval.

    Raises:
        ValueError: a margin that is not positive, and whatever
            :func:`~isolab.analysis.speedup.paired_difference` refuses.

    Example:
        >>> def runs(losses):
        ...     return pl.DataFrame({"learning_rate": 0.1, "seed": [0, 1, 2],
        ...                          "final_validation_loss": losses})
        >>> found = equivalence(runs([1.50, 1.60, 1.55]), runs([1.50, 1.601, 1.549]), 0.02)
        >>> found.equivalent, found.p_value < 0.01
        (True, True)
    """
    from scipy.special import stdtr

    check_positive("margin", margin)
    found = paired_difference(runs_a, runs_b, rate, loss, seed, confidence)
    each = np.array(found.differences)
    spread = float(each.std(ddof=1)) / math.sqrt(len(each))
    room = margin - abs(found.mean)
    if spread == 0:
        p_value = 0.0 if room > 0 else 1.0
    else:
        p_value = float(stdtr(len(each) - 1, -room / spread))
    reason = found.reason
    if reason is not None:  # there the sides are called baseline and challenger
        reason = reason.replace("baseline's", "first side's").replace("challenger's", "second's")
    return Equivalence(
        found.mean,
        found.interval,
        margin,
        p_value,
        found.differences,
        (found.baseline_rate, found.challenger_rate),
        reason,
    )


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; allowed: a finite number above 0")
