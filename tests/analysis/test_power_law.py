"""The power law: recovered without noise, and the same by an independent fit with noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.analysis.power_law import PowerLaw, fit_power_law, fit_rows

STEPS = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])


@given(limit=st.floats(0.1, 3.0), drop=st.floats(0.2, 3.0), exponent=st.floats(0.1, 2.0))
def test_a_law_is_recovered(limit, drop, exponent):
    law = PowerLaw(limit, drop * 100.0**exponent, exponent)  # drop: what is left at 100 steps
    found = fit_power_law(STEPS, law.loss(STEPS))
    # The golden section stops where float64 no longer tells squared errors apart: at errors of
    # about sqrt(1e-16) times the loss in p, a little more where the curve is nearly straight.
    assert found.residual < 1e-6
    assert found.exponent == pytest.approx(exponent, rel=1e-3, abs=1e-3)
    assert found.limit == pytest.approx(limit, abs=1e-2)
    np.testing.assert_allclose(found.loss(STEPS), law.loss(STEPS), atol=1e-6)
    assert found.steps(float(law.loss(300.0))) == pytest.approx(300.0, rel=1e-4)


@given(st.integers(0, 2**32 - 1))
def test_noisy_fit_is_the_least_squares_one(seed):
    from scipy.optimize import least_squares

    rng = np.random.default_rng(seed)
    losses = 1.4 + 30 * STEPS**-0.6 + 0.01 * rng.normal(size=5)

    def errors(parameters):
        limit, log_scale, log_exponent = parameters
        return limit + math.exp(log_scale) * STEPS ** -math.exp(log_exponent) - losses

    start = [1.4, math.log(30), math.log(0.6)]
    other = least_squares(errors, start, bounds=([0, -9, -4.6], [9, 20, 2.3]), xtol=1e-12)
    found = fit_power_law(STEPS, losses)
    assert found.residual**2 * 5 <= 2 * other.cost * (1 + 1e-6)  # cost is half the squared error


def test_rows_are_fitted_as_if_alone():
    rng = np.random.default_rng(0)
    losses = 1.2 + 20 * STEPS**-0.5 + 0.02 * rng.normal(size=(20, 5))
    together = np.stack(fit_rows(STEPS, losses), axis=1)
    for row, law in zip(losses, together, strict=True):
        alone = fit_power_law(STEPS, row)
        np.testing.assert_allclose(law, [alone.limit, alone.scale, alone.exponent], rtol=1e-12)


def test_the_limit_is_never_below_zero():
    from scipy.optimize import curve_fit

    losses = 4.0 - 0.5 * np.log2(STEPS / 100)  # falls as fast as ever
    found = fit_power_law(STEPS, losses)
    assert found.limit == 0.0 and found.steps(0.0) == math.inf
    (scale, exponent), _ = curve_fit(lambda t, k, p: k * t**-p, STEPS, losses, p0=[10, 0.2])
    assert (found.scale, found.exponent) == pytest.approx((scale, exponent), rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        ([100, 200], [1.1, 1.0], "3 horizons or more"),
        ([100, 100, 200], [1.0, 2.0, 3.0], "distinct positive steps"),
        ([0, 100, 200], [1.0, 2.0, 3.0], "distinct positive steps"),
        ([100, 200, 400], [1.0, 1.0, math.inf], "positive and finite"),
        ([100, 200, 400], [1.0, 1.1, 1.2], "do not fall"),
    ],
)
def test_what_is_no_law_is_refused(steps, losses, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(steps, losses)
