"""Speedups: exact on exact laws, covered with noise, refused outside what was run; differences."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isolab.analysis.claim import Estimate
from isolab.analysis.power_law import PowerLaw
from isolab.analysis.speedup import paired_difference, speedup, time_speedup

HORIZONS = (200, 400, 800, 1600)
ADAM = PowerLaw(1.3, 16.0, 0.5)


def frame(
    steps: int, losses: list[float], rate_losses: dict[float, float] | None = None
) -> pl.DataFrame:
    """A row per rate and seed: each seed's loss at rate 0.02, and more by so much at the others."""
    rows = [
        (steps, rate, seed, loss + more)
        for rate, more in (rate_losses or {0.01: 0.1, 0.02: 0.0, 0.04: 0.2}).items()
        for seed, loss in enumerate(losses)
    ]
    names = ["steps", "learning_rate", "seed", "final_validation_loss"]
    return pl.DataFrame(rows, schema=names, orient="row")


def baseline(noise: np.ndarray, offsets: np.ndarray) -> pl.DataFrame:
    """ADAM's law at four horizons, with noise (4, seeds) and an offset per seed."""
    return pl.concat(
        frame(steps, list(float(ADAM.loss(steps)) + offsets + its))
        for steps, its in zip(HORIZONS, noise, strict=True)
    )


def challenger(true: float, noise: np.ndarray | None = None) -> pl.DataFrame:
    """What ADAM's law reaches in ``true`` times 400 steps, after 400."""
    noise = np.zeros(2) if noise is None else noise
    return frame(400, list(float(ADAM.loss(true * 400)) + noise))


EXACT = baseline(np.zeros((4, 2)), np.zeros(2))


@given(st.floats(0.55, 3.9))
def test_a_speedup_is_exact_without_noise(true):
    found = speedup(EXACT, challenger(true))
    assert found.value == pytest.approx(true, rel=1e-4)  # see test_power_law on the tolerance
    assert found.interval == pytest.approx((true, true), rel=1e-4)
    assert found.baseline_steps == pytest.approx(400 * true, rel=1e-4)
    assert (found.reason, found.seeds, found.challenger_steps) == (None, 2, 400)
    assert found.rates == (0.02,) * 4 and found.horizons == HORIZONS


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_true_speedup(seeds):
    rng = np.random.default_rng(seeds)
    trials, covered, widths = 120, 0, []
    for _ in range(trials):
        true = rng.uniform(1.2, 2.2)
        offsets = 0.03 * rng.normal(size=seeds)  # common to both sides: it cancels
        found = speedup(
            baseline(0.01 * rng.normal(size=(4, seeds)), offsets),
            challenger(true, offsets + 0.01 * rng.normal(size=seeds)),
        )
        low, high = found.interval
        covered += low <= true <= high
        widths.append(high / low)
    # 95% wanted; 120 trials have standard deviation 0.02, and a fitted curve is not quite a mean.
    assert covered / trials > 0.86
    # The loss falls by 16 / 2 * 600**-0.5 = 0.33 nats per factor e in steps near the answer. With
    # noise 0.01 sqrt(2 / seeds) that is 0.025 in log(speedup) at 3 seeds, 4.3 of it to each side.
    assert np.median(widths) < math.exp(2 * 2 * 4.3 * 0.025)


@pytest.mark.parametrize(
    ("other", "bound"),
    [
        (challenger(6.0), "above 4; add longer"),
        (challenger(0.2), "below 0.5; add shorter"),
        (frame(400, [1.0, 1.0]), "above 4; add longer"),  # below the law's limit
    ],
)
def test_outside_the_horizons_there_is_no_number(other, bound):
    found = speedup(EXACT, other)
    assert found.value is None and found.interval is None and found.baseline_steps is None
    assert f"between its horizons of 200 and 1600 steps: the speedup is {bound}" in found.reason
    assert time_speedup(found, 0.9, (0.8, 1.0)) == Estimate(None, None, found.reason)


def test_an_interval_past_the_horizons_is_open():
    noise = np.array([-0.03, 0.0, 0.03])
    found = speedup(baseline(np.zeros((4, 3)), np.zeros(3)), challenger(3.7, noise))
    assert found.value == pytest.approx(3.7, rel=1e-3)
    assert found.interval[1] == math.inf and 1 < found.interval[0] < 3.7
    one_seed = speedup(baseline(np.zeros((4, 1)), np.zeros(1)), challenger(1.5, np.zeros(1)))
    assert one_seed.interval == (0.0, math.inf)


def test_every_side_and_horizon_takes_its_own_best_rate():
    other = {0.01: 0.3, 0.02: 0.1, 0.04: 0.0, 0.08: 0.1}
    base = baseline(np.zeros((4, 2)), np.zeros(2)).filter(pl.col("steps") != 800)
    base = pl.concat([base, frame(800, [float(ADAM.loss(800))] * 2, other)])
    best = float(ADAM.loss(600))
    found = speedup(base, frame(400, [best] * 2, other))
    assert found.rates == (0.02, 0.02, 0.04, 0.02)
    assert found.challenger_rate == 0.04
    assert found.value == pytest.approx(1.5, rel=1e-4)


def test_what_leaves_a_verdict_open_is_a_reason():
    edge = frame(400, [float(ADAM.loss(600))] * 2, {0.02: 0.0, 0.04: 0.1})
    found = speedup(EXACT, edge)
    assert found.value == pytest.approx(1.5, rel=1e-4)
    assert "challenger's best rate, 0.02, is the lowest of the grid" in found.reason
    fixed = frame(400, [float(ADAM.loss(600))] * 2, {0.02: 0.0})
    assert speedup(EXACT, fixed).reason is None
    rising = pl.concat([frame(200, [1.5] * 2), frame(400, [1.6] * 2), frame(800, [1.7] * 2)])
    found = speedup(rising, frame(400, [1.55] * 2))
    assert found.value is None and "do not fall" in found.reason


BOTH = pl.concat([frame(200, [2.0]), frame(400, [1.9])])
GONE = pl.concat([frame(200, [2.0]), frame(400, [math.inf])])


@pytest.mark.parametrize(
    ("base", "other", "message"),
    [
        (BOTH, BOTH, r"challenger needs one horizon, got \[200, 400\]"),
        (BOTH, frame(200, [2.0, 2.0]), "seeds must be the same on both sides"),
        (GONE, frame(200, [2.0]), "baseline: {'steps': 400}: every rate .* diverged"),
        (BOTH.drop("steps"), frame(200, [2.0]), r"missing columns \['steps'\]"),
    ],
)
def test_sides_that_cannot_be_compared_are_refused(base, other, message):
    with pytest.raises(ValueError, match=message):
        speedup(base, other)


@given(st.floats(0.1, 5.0), st.floats(0.5, 2.0), st.floats(0.5, 1.0))
def test_time_speedup_multiplies_values_and_ends(steps, ratio, width):
    measured = Estimate(steps, (steps / 2, steps * 2), "edge")
    found = time_speedup(measured, ratio, (ratio * width, ratio / width))
    ends = (steps / 2 * (ratio * width), steps * 2 * (ratio / width))
    assert found == Estimate(steps * ratio, ends, "edge")


# --- at equal steps ---

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
