r"""One width's loss as a curve over log2(rate), for the seed average and for resamples of it.

With :math:`x = \log_2(\text{rate})`, a parabola through the best grid point :math:`(x_1, y_1)` and
its neighbours has its lowest point, the best rate, at

.. math:: x^* = x_1 - \frac{1}{2}
    \frac{(x_1 - x_0)^2 (y_1 - y_2) - (x_1 - x_2)^2 (y_1 - y_0)}
         {(x_1 - x_0) (y_1 - y_2) - (x_1 - x_2) (y_1 - y_0)}

which lies between the midpoints towards the neighbours. Where a neighbour is missing (the best is
the first or last rate of the grid) or diverged, the grid point itself is the answer. A rate where
any seed diverged counts as diverged: its mean is +inf and it ranks last.

Elsewhere between grid points the parabola goes through both ends of the interval and the grid point
before it, seen from the best one: a true parabola is read without error everywhere. Where that
third point diverged or is missing a straight line is read instead, and no value lies below the best
rate's loss. Between a rate that trained and one that diverged the nearer decides, the diverged one
at equal distance. Beyond the grid there is no value: nothing is extrapolated in the rate.

A best rate at an end of the grid is only a bound: the true one may lie anywhere beyond. One next to
a diverged rate is known to half a grid step: whatever finite loss stood in for the diverged one,
the parabola's lowest point would lie between the midpoints towards the neighbours.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isolab.analysis.seeds import Array, grid_end, grid_note

_ON_THE_GRID = 1e-9  # in log2: a rate this little beyond the grid's end is its last rate


@dataclass(frozen=True)
class Best:
    """The best rate of each row of a curve; row 0 is the seed average.

    x, loss: (rows,) log2 rate and loss there, nats/token; low, high: (rows,) what x may be, given
    the losses: infinite beyond an end of the grid, half a grid step from x in row 0 where a
    neighbour diverged, else x itself; parabola: whether row 0's x is the lowest point of one.
    """

    x: Array
    loss: Array
    low: Array
    high: Array
    parabola: bool


@dataclass(frozen=True)
class RateCurve:
    """Losses of one width (NaN where there is one only) over its rates.

    x: (n,) ascending log2 rates; losses: (rows, n), +inf where a seed diverged, row 0 averaged over
    the seeds, the others over resamples.
    """

    width: float
    x: Array
    losses: Array

    @property
    def diverged(self) -> bool:
        """Returns whether every rate has a seed that diverged, so that there is no best one."""
        return not bool(np.isfinite(self.losses[0]).any())

    @property
    def edge(self) -> str | None:
        """Returns the end of the grid that the best rate is at: "low", "high", "single" or None."""
        return grid_end(self.losses[0])

    @functools.cached_property
    def best(self) -> Best:
        """Returns each row's best rate; of no use where ``diverged``."""
        x, at = self.x, np.argmin(self.losses, axis=1)
        vertex, loss, found = parabola_vertices(x, self.losses)
        low = np.where(at == 0, -np.inf, vertex)
        high = np.where(at == len(x) - 1, np.inf, vertex)
        if self.edge is None and not found[0]:
            low[0] = (x[at[0] - 1] + x[at[0]]) / 2
            high[0] = (x[at[0]] + x[at[0] + 1]) / 2
        return Best(vertex, loss, low, high, bool(found[0]))

    @property
    def rate(self) -> float:
        """Returns row 0's best rate; of no use where ``diverged``."""
        return float(2.0 ** self.best.x[0])

    def at(self, target: Array) -> Array:
        """Returns each row's loss at its log2 rate in ``target``, (rows,): NaN off the grid."""
        x, y, rows = self.x, self.losses, np.arange(len(self.losses))
        covered = (target >= x[0] - _ON_THE_GRID) & (target <= x[-1] + _ON_THE_GRID)
        if len(x) == 1:
            return np.where(covered, y[:, 0], np.nan)
        target = np.clip(target, x[0], x[-1])
        left = np.clip(np.searchsorted(x, target, side="right") - 1, 0, len(x) - 2)
        before, after = y[rows, left], y[rows, left + 1]
        share = (target - x[left]) / (x[left + 1] - x[left])
        middle = np.maximum(before, after)
        nearer = np.select([share < 0.5, share > 0.5], [before, after], middle)
        trained = np.isfinite(middle)
        before, after = np.where(trained, before, 0.0), np.where(trained, after, 0.0)
        value = before + share * (after - before)
        if len(x) > 2:
            end = left + (left < np.argmin(y, axis=1))  # of the interval, nearer to the best rate
            _, curvature = _parabola(x, y, np.clip(end, 1, len(x) - 2))
            value += curvature * (target - x[left]) * (target - x[left + 1])
        value = np.maximum(np.where(trained, value, nearer), self.best.loss)
        return np.where(covered, value, np.nan)

    @property
    def edge_note(self) -> str:
        """Returns which end of the grid the best rate is at and which way to widen, or ""."""
        note = grid_note(2.0**self.x, self.losses[0])
        return self._where + note if note else ""

    @property
    def step_note(self) -> str:
        """Returns why the best rate is known to half a grid step only, or ""."""
        if self.diverged or self.edge or self.best.parabola:
            return ""
        at = int(np.argmin(self.losses[0]))
        gone = [f"{2.0 ** self.x[i]:.3g}" for i in (at - 1, at + 1) if self.losses[0, i] == np.inf]
        why = f"diverged at {' and '.join(gone)} next to" if gone else "as low on both sides of"
        best = f"the best rate, {2.0 ** self.x[at]:.3g}"
        return f"{self._where}{why} {best}, which is known to half a grid step"

    @property
    def _where(self) -> str:
        return "" if math.isnan(self.width) else f"width {self.width}: "


def parabola_vertices(x: Array, losses: Array) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Returns each row's best x and loss, and whether a parabola has it or the grid, (rows,) each.

    Each of the losses, (rows, n) at (n,) ascending log2 rates, has a finite value in every row.
    """
    rows, best = np.arange(len(losses)), np.argmin(losses, axis=1)
    if len(x) < 3:
        return x[best], losses[rows, best], np.zeros(len(rows), dtype=bool)
    middle = np.clip(best, 1, len(x) - 2)
    slope, curvature = _parabola(x, losses, middle)
    found = (best == middle) & (curvature > 0)  # three equal losses have no vertex
    shift = np.where(found, -slope / (2 * np.where(found, curvature, 1.0)), 0.0)
    drop = np.where(found, slope * shift / 2, 0.0)
    return x[best] + shift, losses[rows, best] + drop, found


def _parabola(x: Array, losses: Array, middle: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Returns each row's slope s and curvature c of y + s dx + c dx**2 about its grid point.

    Zeros where it or one of its neighbours diverged.
    """
    rows = np.arange(len(losses))
    three = np.stack([losses[rows, middle + shift] for shift in (-1, 0, 1)])
    y0, y1, y2 = np.where(np.isfinite(three).all(axis=0), three, 0.0)
    left, right = x[middle] - x[middle - 1], x[middle + 1] - x[middle]
    before, after = (y1 - y0) / left, (y2 - y1) / right
    slope = (before * right + after * left) / (left + right)
    return np.asarray(slope), np.asarray((after - before) / (left + right))
