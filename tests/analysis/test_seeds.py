"""Intervals over seeds cover what they say, with two seeds as with ten."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.analysis.seeds import (
    RESAMPLES,
    bootstrap_interval,
    seed_resamples,
    student_interval,
)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_bootstrap_interval_of_a_mean_covers_95_percent(seeds):
    rng, samples = np.random.default_rng(seeds), seed_resamples(seeds)
    trials = 1000
    ends = [samples.interval(row) for row in samples.means(rng.normal(size=(trials, seeds))).T]
    covered = sum(low <= 0 <= high for low, high in ends)
    # Standard deviation of the share: 0.007. The plain percentile interval covers 0.50, 0.75, 0.85
    # and 0.92; an interval of 99% would fail above.
    assert 0.92 < covered / trials < 0.98


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_student_interval_matches_scipy(values):
    from scipy import stats

    low, high = student_interval(np.array(values))
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    if scale < 1e-6:
        assert high - low < 1e-3
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
    assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.inf]])
def test_what_has_no_spread_has_an_open_interval(values):
    assert student_interval(np.array(values)) == (-math.inf, math.inf)


def test_intervals_stay_free_of_nan_where_samples_are_infinite():
    samples = np.array([0.0, np.inf, np.inf, np.inf])
    assert bootstrap_interval(1.0, samples, seeds=4)[1] == math.inf
    low, high = bootstrap_interval(1.0, -samples, seeds=4)
    assert low == -math.inf and high == 1.0


def test_each_resample_counts_and_the_same_ones_are_drawn_again():
    samples, losses = seed_resamples(4), np.random.default_rng(0).normal(size=(3, 4))
    drawn = np.random.default_rng(0).integers(0, 4, size=(RESAMPLES, 4))
    rows = samples.means(losses)
    np.testing.assert_allclose(rows[0], losses.mean(axis=1), rtol=1e-15)
    np.testing.assert_allclose(rows[1:][samples.copies], losses[:, drawn].mean(axis=2).T)
    values = rows[:, 0]
    assert samples.interval(values) == pytest.approx(
        bootstrap_interval(values[0], losses[0, drawn].mean(axis=1), 4), abs=1e-12
    )
