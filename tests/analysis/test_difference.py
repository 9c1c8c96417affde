"""Paired differences: Student's interval over seeds, each side at its own best rates."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isolab.analysis.speedup import paired_difference

RATES = (0.25, 0.5, 1.0)


def sweep(losses, rates=(0.5,), best=0, width=32):
    """A rate sweep whose rate number ``best`` has these losses by seed, the others worse ones."""
    return pl.DataFrame(
        [
            {
                "width": width,
                "learning_rate": r,
                "seed": s,
                "final_validation_loss": x + 0.5 * abs(i - best),
            }
            for i, r in enumerate(rates)
            for s, x in enumerate(losses)
        ]
    )


@settings(max_examples=40)
@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=6, unique=True), st.floats(0.01, 0.3))
def test_an_interval_within_a_margin_is_two_one_sided_tests(differences, margin):
    shared = np.random.default_rng(0).normal(2, 0.2, len(differences))
    found = paired_difference(sweep(shared + differences), sweep(shared))
    assert found.value == pytest.approx(np.mean(differences), abs=1e-9)
    d = np.array(differences)
    if d.std() < 1e-7:
        return  # the same for every seed but for rounding
    above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(d, margin, alternative="less").pvalue
    if abs(max(above, below) - 0.025) > 1e-6:
        verdict = found.claim("q", margin, direction="within").verdict
        assert (verdict == "reproduced") == (max(above, below) < 0.025)


def test_each_side_stands_at_its_own_best_rate_and_edges_are_told():
    found = paired_difference(sweep([2.0, 2.1], RATES, 0), sweep([2.0, 2.1], RATES, 1))
    assert found.value == 0
    assert found.reason.startswith(
        "width 32: the first side's best rate, 0.25, is the lowest of the grid: widen it to lower"
    )
    inside = sweep([2.0, 2.1], RATES, 1)
    assert paired_difference(inside, inside).reason is None
    # The rate is best by the mean over seeds, though another one is at seed 0.
    flat = sweep([1.9, 1.9]).with_columns(learning_rate=pl.lit(0.25))
    assert paired_difference(pl.concat([sweep([1.0, 3.0]), flat]), flat).value == 0


def test_widths_take_their_own_best_rates_and_a_seed_is_averaged_over_them():
    ours = pl.concat([sweep([2.0, 2.1, 2.2], RATES, 1), sweep([1.8, 1.9, 2.0], RATES, 2, 64)])
    theirs = pl.concat([sweep([1.7, 1.9, 2.0], RATES, 1, 64), sweep([2.0, 2.0, 2.3], RATES, 1)])
    found = paired_difference(ours, theirs)
    expected = np.array([0.05, 0.05, -0.05])
    assert found.value == pytest.approx(expected.mean(), abs=1e-12)
    assert found.interval == pytest.approx(
        stats.ttest_1samp(expected, 0).confidence_interval(0.95), abs=1e-9
    )
    assert found.reason.startswith("width 64: the first side's best rate, 1")


def test_one_seed_has_no_interval():
    assert paired_difference(sweep([2.0]), sweep([2.1])).interval == (-np.inf, np.inf)


def test_what_cannot_be_compared_is_refused():
    runs, wider = sweep([2.0, 2.1]), sweep([2.0, 2.1], width=64)
    uneven = pl.concat([runs, sweep([2.0, 2.1, 2.2], width=64)])
    for both, message in [
        ((runs, wider), r"the sides' widths are \[32\] and \[64\]"),
        ((uneven, uneven), "different seeds"),
    ]:
        with pytest.raises(ValueError, match=message):
            paired_difference(*both)
