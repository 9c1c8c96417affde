"""Two sweeps at their best rates, seed by seed: how far apart, and are they the same?

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
from isolab.analysis.seeds import (
    LossTable,
    check_positive,
    grid_note,
    loss_table,
    require_same_seeds,
    student_interval,
)


@dataclass(frozen=True)
class PairedDifference:
    """The first sweep's loss minus the second's, seed by seed: below 0 the first is better.

    mean, interval: nats/token; differences: one a seed, in the order of ``seeds``; rates: each
    side's best of its grid, a pair for each group; reason: why a verdict must be inconclusive (a
    best rate at an end of its grid), or None.
    """

    mean: float
    interval: tuple[float, float]
    differences: tuple[float, ...]
    seeds: tuple[object, ...]
    rates: tuple[tuple[float, float], ...]
    reason: str | None


@dataclass(frozen=True)
class TostResult(PairedDifference):
    """A difference, the margin stated before, and the larger p-value of the two one-sided tests."""

    margin: float
    p_value: float

    @property
    def equivalent(self) -> bool:
        """Returns whether the whole interval lies within the margin."""
        return -self.margin <= self.interval[0] and self.interval[1] <= self.margin


def paired_difference(
    first: pl.DataFrame,
    second: pl.DataFrame,
    across: Sequence[str] = (),
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    confidence: float = 0.95,
) -> PairedDifference:
    r"""Compares two sweeps at their best rates, seed by seed, with a Student-t interval.

    :math:`\bar d \pm t_{n-1}\, s_d / \sqrt n`, :math:`d_i` the first's loss minus the second's at
    seed i, which gave both the same initialization and batches. Each side's rate is the one of
    lowest seed-averaged loss on its grid, the same for all seeds. The other arguments are those of
    :class:`~isolab.analysis.groups.Options`.

    Args:
        across: columns that both frames have, such as ``width``: in each group of their values both
            sides take their best rates anew, and a seed's difference is its mean over the groups.
            The seeds remain what the interval is over, as runs of one seed share batches.

    Raises:
        ValueError: for fewer than 2 seeds, groups or seeds that differ between the sides, seeds
            that differ between groups, a side whose every rate diverged, and as
            :func:`~isolab.analysis.seeds.loss_table`.

    Example:
        >>> def runs(losses):
        ...     return pl.DataFrame({"learning_rate": 0.1, "seed": [0, 1],
        ...                          "final_validation_loss": losses})
        >>> found = paired_difference(runs([1.50, 1.60]), runs([1.40, 1.49]))
        >>> round(found.mean, 3), [round(end, 3) for end in found.interval]
        (0.105, [0.041, 0.169])
    """
    differences, rates, notes, seeds = [], [], [], set()
    for name, *sides in _both_sides(first, second, across):
        one, other = (loss_table(side, rate, loss, seed) for side in sides)
        require_same_seeds("the first side", one.seeds, "the second", other.seeds)
        differences.append(one.losses[one.best] - other.losses[other.best])
        rates.append((float(one.settings[one.best]), float(other.settings[other.best])))
        edges = edge_note(one, "first side's best rate"), edge_note(other, "second's best rate")
        notes += [f"{name}{edge}" for edge in edges if edge]
        seeds.add(one.seeds)
    if len(seeds) > 1:
        raise ValueError(f"the groups by {list(across)} have different seeds; allowed: the same")
    each = np.mean(differences, axis=0)
    interval = student_interval(each, confidence)
    reason = joined(notes) or None
    return PairedDifference(
        float(each.mean()), interval, tuple(each.tolist()), seeds.pop(), tuple(rates), reason
    )


def tost(
    first: pl.DataFrame,
    second: pl.DataFrame,
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
    difference lies within the margin, nats/token, above 0, stated before the runs. A mere failure
    to find a difference is not equivalence. All else is as in :func:`paired_difference`.

    Example:
        >>> def runs(losses):
        ...     return pl.DataFrame({"learning_rate": 0.1, "seed": [0, 1, 2],
        ...                          "final_validation_loss": losses})
        >>> found = tost(runs([1.50, 1.60, 1.55]), runs([1.50, 1.601, 1.549]), 0.02)
        >>> found.equivalent, found.p_value < 0.01
        (True, True)
    """
    check_positive("margin", margin)
    pair = paired_difference(first, second, across, rate, loss, seed, confidence)
    return TostResult(**vars(pair), margin=margin, p_value=_p_value(pair.differences, margin))


def edge_note(table: LossTable, what: str) -> str:
    """Returns a note on a best rate at an end of its grid; one rate alone was fixed by hand."""
    single = len(table.settings) == 1
    return "" if single else grid_note(table.settings, table.means, f"the {what}")


def _p_value(differences: Sequence[float], margin: float) -> float:
    """Returns the larger of the two one-sided tests' p-values."""
    from scipy.special import stdtr

    n = len(differences)
    spread = float(np.std(differences, ddof=1)) / math.sqrt(n)
    room = margin - abs(float(np.mean(differences)))
    if spread == 0:
        return 0.0 if room > 0 else 1.0
    return float(stdtr(n - 1, -room / spread))


def _both_sides(
    first: pl.DataFrame, second: pl.DataFrame, across: Sequence[str]
) -> list[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """Returns the name of each group by ``across`` and both sides' runs in it."""
    if not across:
        return [("", first, second)]
    a, b = (
        dict(each_group(runs, across, lambda name, its: (tuple(name.values()), its)))
        for runs in (first, second)
    )
    if a.keys() != b.keys():
        raise ValueError(
            f"the sides' {list(across)} are {sorted(a)} and {sorted(b)}; allowed: the same"
        )
    names = ("".join(f"{c} {v}: " for c, v in zip(across, its, strict=True)) for its in a)
    return [(name, a[its], b[its]) for name, its in zip(names, a, strict=True)]
