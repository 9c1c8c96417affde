"""Intervals over seeds cover what they say, with two seeds as with ten."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.analysis.seeds import bootstrap_interval, resampled_seeds, student_interval


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_bootstrap_interval_of_a_mean_covers_95_percent(seeds):
    rng = np.random.default_rng(seeds)
    draws = resampled_seeds(seeds, 500)
    trials, covered = 1000, 0
    for values in rng.normal(size=(trials, seeds)):
        low, high = bootstrap_interval(values.mean(), values[draws].mean(axis=1), seeds)
        covered += low <= 0 <= high
    # Standard deviation of the share: 0.007. The plain percentile interval covers 0.50, 0.75, 0.85
    # and 0.92; an interval of 99% would fail above.
    assert 0.92 < covered / trials < 0.98


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_student_interval_matches_scipy(values, confidence):
    from scipy import stats

    low, high = student_interval(np.array(values), confidence)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    if scale < 1e-6:
        assert high - low < 1e-3
        return
    expected = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=scale)
    assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_intervals_stay_free_of_nan_where_samples_are_infinite():
    samples = np.array([0.0, np.inf, np.inf, np.inf])
    assert bootstrap_interval(1.0, samples, seeds=4)[1] == math.inf
    low, high = bootstrap_interval(1.0, -samples, seeds=4)
    assert low == -math.inf and high == 1.0


@pytest.mark.parametrize(
    ("values", "message"), [([1.0], "needs at least 2 seeds, got 1"), ([1.0, np.inf], "finite")]
)
def test_student_interval_refuses_what_has_no_spread(values, message):
    with pytest.raises(ValueError, match=message):
        student_interval(np.array(values))


def test_resamples_are_repeatable_and_use_every_seed():
    draws = resampled_seeds(4, 100)
    np.testing.assert_array_equal(draws, resampled_seeds(4, 100))
    assert set(draws.ravel()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="at least 1"):
        resampled_seeds(0, 10)
