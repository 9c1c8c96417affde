r"""One width's loss as a curve over log2(rate), for the seed average and for resamples of it.

Between the grid points a parabola in :math:`x = \log_2(\text{rate})` is read: through both ends of
the interval and the grid point before it, seen from the best one. Next to the best grid point that
is the parabola of :mod:`isolab.analysis.optimum`, so that the curve's lowest value is the optimum's
loss; a true parabola is read without error everywhere. Where the third point diverged or is missing
a straight line is read instead, and no value lies below the optimum's loss. Between a rate that
trained and one that diverged the nearer decides, the diverged one at equal distance. Beyond the
grid there is no value: nothing is extrapolated in the rate.

A best rate at an end of the grid is only a bound: the true one may lie anywhere beyond. One beside
a diverged rate is known to half a grid step: whatever finite loss stood in for the diverged one,
the parabola's lowest point would lie between the midpoints towards the neighbours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from isolab.analysis.optimum import parabola_vertices
from isolab.analysis.seeds import Array

_ON_THE_GRID = 1e-9  # in log2: a rate this little beyond the grid's end is its last rate


@dataclass(frozen=True)
class Best:
    """The best rate of each row of a curve; row 0 is the seed average.

    x, loss: (rows,) log2 rate and loss there, nats/token; low, high: (rows,) what x may be, given
    the losses: infinite beyond an end of the grid, half a grid step from x in row 0 where a
    neighbour diverged, else x itself.
    """

    x: Array
    loss: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class RateCurve:
    """Losses of one width over its rates.

    width: the model's; x: (n,) ascending log2 rates; losses: (rows, n), +inf where a seed
    diverged, row 0 averaged over the seeds, the others over resamples of them.
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
        if len(self.x) == 1:
            return "single"
        at = int(np.argmin(self.losses[0]))
        return "low" if at == 0 else "high" if at == len(self.x) - 1 else None

    @functools.cached_property
    def best(self) -> Best:
        """Returns each row's best rate; of no use where ``diverged``."""
        x, losses = self.x, self.losses
        at = np.argmin(losses, axis=1)
        if len(x) < 3:
            vertex, loss = x[at], losses[np.arange(len(losses)), at]
        else:
            vertex, loss = parabola_vertices(x, losses)
        low = np.where(at == 0, -np.inf, vertex)
        high = np.where(at == len(x) - 1, np.inf, vertex)
        if self.edge is None and not self._has_vertex:
            low[0] = (x[at[0] - 1] + x[at[0]]) / 2
            high[0] = (x[at[0]] + x[at[0] + 1]) / 2
        return Best(vertex, loss, low, high)

    def at(self, target: Array) -> Array:
        """Returns each row's loss at its log2 rate ``target``: NaN off the grid, inf if diverged.

        Args:
            target: (rows,) float64.

        Example:
            >>> curve = RateCurve(32, np.array([-2.0, -1.0, 0.0]), np.array([[5.0, 2.0, 1.0]]))
            >>> curve.at(np.array([-1.5])).item(), curve.at(np.array([0.5])).item()
            (3.25, nan)
        """
        x, y, rows = self.x, self.losses, np.arange(len(self.losses))
        inside = (target >= x[0] - _ON_THE_GRID) & (target <= x[-1] + _ON_THE_GRID)
        if len(x) == 1:
            return np.where(inside, y[:, 0], np.nan)
        target = np.clip(target, x[0], x[-1])
        left = np.clip(np.searchsorted(x, target, side="right") - 1, 0, len(x) - 2)
        before, after = y[rows, left], y[rows, left + 1]
        gap = x[left + 1] - x[left]
        share = (target - x[left]) / gap
        nearer = np.where(
            share < 0.5, before, np.where(share > 0.5, after, np.maximum(before, after))
        )
        trained = np.isfinite(before) & np.isfinite(after)
        before, after = np.where(trained, before, 0.0), np.where(trained, after, 0.0)
        value = before + share * (after - before)
        value += self._curvature(left) * (target - x[left]) * (target - x[left + 1])
        value = np.maximum(np.where(trained, value, nearer), self.best.loss)
        return np.where(inside, value, np.nan)

    @property
    def edge_note(self) -> str:
        """Returns which end of the grid the best rate is at and which way to widen, or ""."""
        where = f"width {self.width}: "
        if self.diverged:
            first, last = 2.0 ** self.x[[0, -1]]
            return (
                f"{where}every rate from {first:.3g} to {last:.3g} has a seed that diverged: add "
                "lower rates"
            )
        if self.edge == "single":
            return f"{where}it has one rate, {2.0 ** self.x[0]:.3g}: add lower and higher rates"
        if self.edge:
            end, way = ("lowest", "lower") if self.edge == "low" else ("highest", "higher")
            best = 2.0 ** self.x[np.argmin(self.losses[0])]
            return (
                f"{where}the best rate, {best:.3g}, is the {end} of the grid: widen it to {way} "
                "rates"
            )
        return ""

    @property
    def step_note(self) -> str:
        """Returns why the best rate is known to half a grid step only, or ""."""
        if self.diverged or self.edge or self._has_vertex:
            return ""
        at = int(np.argmin(self.losses[0]))
        around = (at - 1, at + 1)
        gone = [f"{2.0 ** self.x[i]:.3g}" for i in around if not np.isfinite(self.losses[0, i])]
        why = f"diverged at {' and '.join(gone)} beside" if gone else "as low on both sides of"
        return (
            f"width {self.width}: {why} the best rate, {2.0 ** self.x[at]:.3g}, which is known "
            "to half a grid step"
        )

    @property
    def _has_vertex(self) -> bool:
        """Returns whether a parabola opens upwards through row 0's best point and neighbours."""
        at = int(np.argmin(self.losses[0]))
        around = self.losses[0, max(at - 1, 0) : at + 2]
        return len(around) == 3 and bool(np.isfinite(around).all() and (around > around[1]).any())

    def _curvature(self, left: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Array:
        """Returns half the second derivative between grid points ``left`` and ``left + 1``."""
        x, y, rows = self.x, self.losses, np.arange(len(self.losses))
        if len(x) < 3:
            return np.zeros(len(rows))
        inner = np.where(left >= np.argmin(y, axis=1), left, left + 1)  # the end nearer to the best
        middle = np.clip(inner, 1, len(x) - 2)
        three = np.stack([y[rows, middle + shift] for shift in (-1, 0, 1)])
        usable = np.isfinite(three).all(axis=0)
        y0, y1, y2 = np.where(usable, three, 0.0)
        x0, x1, x2 = (x[middle + shift] for shift in (-1, 0, 1))
        return np.asarray(((y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)) / (x2 - x0))
