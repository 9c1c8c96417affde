"""TostResult needs its interval within the margin; a mere failure to differ is not enough."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isolab.analysis.epsilon import tost


def sweep(losses, rates=(0.5,), best=0):
    """A rate sweep whose rate number ``best`` has these losses by seed, the others worse ones."""
    return pl.DataFrame(
        [
            {"learning_rate": r, "seed": s, "final_validation_loss": x + 0.5 * abs(i - best)}
            for i, r in enumerate(rates)
            for s, x in enumerate(losses)
        ]
    )


@settings(max_examples=40)
@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=6, unique=True), st.floats(0.01, 0.3))
def test_both_one_sided_tests_agree_with_scipys(differences, margin):
    shared = np.random.default_rng(0).normal(2, 0.2, len(differences))
    found = tost(sweep(shared + differences), sweep(shared), margin, confidence=0.9)
    d = np.array(found.differences)
    np.testing.assert_allclose(d, differences, atol=1e-9)
    if d.std() < 1e-7:
        return  # the same for every seed but for rounding
    above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(d, margin, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below), abs=1e-9)
    assert found.interval == pytest.approx(
        stats.ttest_1samp(d, 0).confidence_interval(0.9), abs=1e-9
    )
    if abs(found.p_value - 0.05) > 1e-6:
        assert found.equivalent == (found.p_value < 0.05)


def test_unlike_sides_far_apart_or_too_noisy_are_not_equivalent():
    same = sweep([2.0, 2.1, 2.2])
    assert tost(same, same, 0.01).equivalent
    assert tost(same, same, 0.01).p_value == 0.0
    worse = tost(sweep([2.3, 2.4, 2.5]), same, 0.1)
    assert not worse.equivalent and worse.mean == pytest.approx(0.3)
    noisy = tost(sweep([2.1, 2.0, 2.3]), same, 0.1)  # no difference found, and no equality
    assert noisy.interval[0] < 0 < noisy.interval[1] and not noisy.equivalent


def test_each_side_stands_at_its_own_best_rate_and_edges_are_told():
    rates = (0.25, 0.5, 1.0)
    found = tost(sweep([2.0, 2.1], rates, 0), sweep([2.0, 2.1], rates, 1), 0.1)
    assert found.rates == ((0.25, 0.5),)
    assert found.equivalent and found.mean == 0
    assert "the first side's best rate, 0.25, is the lowest of the grid" in found.reason
    assert tost(sweep([2.0, 2.1], rates, 1), sweep([2.0, 2.1], rates, 1), 0.1).reason is None
    # The rate is best by the mean over seeds, though another one is at seed 0.
    flat = sweep([1.9, 1.9]).with_columns(learning_rate=pl.lit(0.25))
    assert tost(pl.concat([sweep([1.0, 3.0]), flat]), flat, 0.1).rates == ((0.25, 0.25),)


def test_groups_take_their_own_best_rates_and_seeds_are_averaged_over_them():
    rates = (0.25, 0.5, 1.0)

    def at(width, losses, best):
        return sweep(losses, rates, best).with_columns(width=pl.lit(width))

    ours = pl.concat([at(32, [2.0, 2.1, 2.2], 1), at(64, [1.8, 1.9, 2.0], 2)])
    theirs = pl.concat([at(64, [1.7, 1.9, 2.0], 1), at(32, [2.0, 2.0, 2.3], 1)])
    found = tost(ours, theirs, 0.2, across=["width"])
    assert found.rates == ((0.5, 0.5), (1.0, 0.5))
    np.testing.assert_allclose(found.differences, [0.05, 0.05, -0.05], atol=1e-12)
    assert found.reason.startswith("width 64: the first side's best rate, 1")
    half = tost(ours.filter(pl.col("width") == 32), theirs.filter(pl.col("width") == 32), 0.2)
    np.testing.assert_allclose(half.differences, [0.0, 0.1, -0.1], atol=1e-12)


def test_what_cannot_be_compared_is_refused():
    runs = sweep([2.0, 2.1]).with_columns(width=pl.lit(32))
    wider = runs.with_columns(width=pl.lit(64))
    uneven = pl.concat([runs, sweep([2.0, 2.1, 2.2]).with_columns(width=pl.lit(64))])
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        tost(sweep([2.0]), sweep([2.1]), 0.1)
    for both, margin, message in [
        ((runs, runs), 0, "margin is 0; allowed: a finite number above 0"),
        ((runs, wider), 0.1, r"the sides' \['width'\] are \[\(32,\)\] and \[\(64,\)\]"),
        ((uneven, uneven), 0.1, "different seeds"),
    ]:
        with pytest.raises(ValueError, match=message):
            tost(*both, margin, across=["width"])
