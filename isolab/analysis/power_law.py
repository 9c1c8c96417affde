r"""The loss of a full schedule as a power law of its length, fitted and inverted.

.. math:: L(T) = L_\infty + k\,T^{-p} \qquad L_\infty \ge 0,\; k > 0,\; p > 0

For a given p the model is linear in :math:`L_\infty` and k, so least squares is a search over p
alone (variable projection), done for many rows of losses at once: no starting point, and the same
answer every time. Losses are nats, so :math:`L_\infty` is an entropy and not below 0.

Three horizons are three points for three parameters: where a law runs through all, the fit is exact
and its residual says nothing about whether the law holds. Take 4 or more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from isolab.analysis.seeds import Array

EXPONENTS = (0.01, 10.0)  # p is sought between these
_GRID = np.geomspace(*EXPONENTS, 121)
_INVERSE_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class PowerLaw:
    r"""A law :math:`L(T) = L_\infty + k T^{-p}`.

    limit: L_inf, nats; scale: k, nats at T = 1; exponent: p; residual: the fit's root mean square
    error, nats.
    """

    limit: float
    scale: float
    exponent: float
    residual: float = 0.0

    def loss(self, steps: npt.ArrayLike) -> Array:
        """Returns the loss after full schedules of ``steps`` steps, same shape."""
        t = np.asarray(steps, dtype=np.float64)
        return np.asarray(self.limit + self.scale * t**-self.exponent)

    def steps(self, loss: float) -> float:
        """Returns the steps that reach ``loss``; infinity at or below the limit."""
        values = (self.limit, self.scale, self.exponent, loss)
        return float(inverse(*map(np.asarray, values)))


def inverse(limit: Array, scale: Array, exponent: Array, loss: Array) -> Array:
    """Returns the steps at which each law reaches its ``loss``, (rows,) all; inf where never."""
    gap = loss - limit
    reached = gap > 0
    with np.errstate(over="ignore"):
        steps = (scale / np.where(reached, gap, 1.0)) ** (1 / exponent)
    return np.where(reached, steps, np.inf)


def fit_power_law(steps: npt.ArrayLike, losses: npt.ArrayLike) -> PowerLaw:
    """Fits one law to seed-averaged losses, (n,), at horizons ``steps``, (n,).

    Raises:
        ValueError: for fewer than 3 horizons, not distinct and positive, or losses that are not
            positive and finite, or do not fall with more steps.
    """
    t = np.asarray(steps, dtype=np.float64)
    y = np.asarray(losses, dtype=np.float64)
    if t.ndim != 1 or t.shape != y.shape or t.size < 3:
        raise ValueError(
            f"a power law needs 3 horizons or more with a loss each, got {t.size} and {y.size}"
        )
    if not (np.isfinite(t).all() and (t > 0).all() and np.unique(t).size == t.size):
        raise ValueError(f"horizons must be distinct positive steps, got {t.tolist()}")
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise ValueError(f"losses must be positive and finite, got {y.tolist()}")
    limit, scale, exponent = fit_rows(t, y[None])
    if not scale[0] > 0:
        raise ValueError(
            f"losses {y.tolist()} do not fall with more steps {t.tolist()}: no power law fits"
        )
    law = PowerLaw(float(limit[0]), float(scale[0]), float(exponent[0]))
    return replace(law, residual=float(np.sqrt(np.mean((law.loss(t) - y) ** 2))))


def fit_rows(steps: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Fits a law to each row of ``losses``, (rows, n), at shared horizons ``steps``, (n,).

    Returns:
        limit, scale, exponent, (rows,) each; scale 0 and exponent 1 where a row does not fall.
    """
    unit = float(np.exp(np.log(steps).mean()))  # T / unit keeps T**-p near 1
    relative = steps / unit
    errors = np.stack([_project(relative, losses, np.full(len(losses), p))[2] for p in _GRID])
    nearest = errors.argmin(axis=0)
    low = np.log(_GRID[np.maximum(nearest - 1, 0)])
    high = np.log(_GRID[np.minimum(nearest + 1, len(_GRID) - 1)])
    for _ in range(60):  # golden section: 0.08 * 0.618**60 is below float64's resolution
        inner_low = high - _INVERSE_GOLDEN * (high - low)
        inner_high = low + _INVERSE_GOLDEN * (high - low)
        below, above = (
            _project(relative, losses, np.exp(inner))[2] for inner in (inner_low, inner_high)
        )
        left = below < above
        low, high = np.where(left, low, inner_low), np.where(left, inner_high, high)
    exponent = np.exp((low + high) / 2)
    limit, scale, _ = _project(relative, losses, exponent)
    falls = scale > 0
    exponent = np.where(falls, exponent, 1.0)
    return limit, np.where(falls, scale, 0.0) * unit**exponent, exponent


def _project(relative: Array, losses: Array, exponent: Array) -> tuple[Array, Array, Array]:
    """Returns the best limit >= 0 and scale >= 0 of each row at its exponent, and the error."""
    basis = relative ** -exponent[:, None]
    centred = basis - basis.mean(axis=1, keepdims=True)
    mean = losses.mean(axis=1)
    scale = (centred * losses).sum(axis=1) / (centred**2).sum(axis=1)
    limit = mean - scale * basis.mean(axis=1)
    without_limit = (basis * losses).sum(axis=1) / (basis**2).sum(axis=1)
    scale = np.where(limit < 0, without_limit, scale)
    limit = np.where(scale <= 0, mean, np.maximum(limit, 0.0))  # a rising row: a constant
    scale = np.maximum(scale, 0.0)
    error = ((limit[:, None] + scale[:, None] * basis - losses) ** 2).sum(axis=1)
    return limit, scale, error
