"""What all transfer metrics share, and exponents: exact without noise, honest at edges."""

from __future__ import annotations

import functools
import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas, seedwise
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats

from isolab.analysis import optimum, ranking, transfer
from isolab.analysis.groups import width_groups

INF = math.inf
WIDTHS = (32, 64, 128, 256)
GROUP = ["optimizer"]
BY = ["optimizer", "rate_rule"]
AGAINST = {"rate_rule": "full"}
FUNCTIONS = {
    function.__name__: function
    for function in (
        transfer.exponents, transfer.regrets, transfer.worst_shift, transfer.sensitivities,
        ranking.ranking,
    )
} | {
    function.__name__: functools.partial(function, against=AGAINST)
    for function in (ranking.penalties, ranking.loss_differences)
}  # fmt: skip
ALL = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def random_runs(rng: np.random.Generator, diverged: float, seeds: int) -> pl.DataFrame:
    """Losses without rhyme or reason, some diverged."""
    keys = [
        {"optimizer": o, "rate_rule": r, "width": n, "learning_rate": 2.0**x, "seed": s}
        for o in ("adam", None)
        for r in ("full", "global")
        for n in (32, 64, 128)
        for x in range(-6, -1)
        for s in range(seeds)
    ]
    losses = rng.uniform(1.0, 3.0, len(keys))
    losses[rng.uniform(size=len(keys)) < diverged] = rng.choice([math.inf, math.nan])
    return pl.DataFrame(keys).with_columns(final_validation_loss=losses, curve=pl.lit([1.0, 2.0]))


def optima(runs: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return optimum.optima(runs, [*by, "width"])


@pytest.mark.parametrize("function", [*FUNCTIONS.values(), optima], ids=[*FUNCTIONS, "optima"])
@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(1, 3))
def test_the_order_of_rows_does_not_matter_and_nothing_is_nan(function, seed, diverged, seeds):
    runs = random_runs(np.random.default_rng(seed), diverged, seeds)
    found = function(runs, BY)
    shuffled = runs.sample(fraction=1.0, shuffle=True, seed=seed)
    assert_frame_equal(function(shuffled, BY), found, check_exact=True)
    assert found.select(BY).unique().height == (2 if "against" in str(function) else 4)
    for name, dtype in found.schema.items():
        assert not dtype.is_float() or not found[name].is_nan().any(), name
        if name.endswith("_low"):
            value, high = found[name.removesuffix("_low")], found[name.replace("_low", "_high")]
            assert (found[name] <= value).all() and (value <= high).all(), name
            assert (value.is_null() == found[name].is_null()).all()
    assert found["note"].null_count() == 0
    if "reason" in found.columns:
        unsure = found.filter(pl.col("reason").is_not_null())
        assert all(row["note"] and row["reason"] for row in unsure.iter_rows(named=True))


RUNS = random_runs(np.random.default_rng(0), 0.0, 2)
UNLIKE = RUNS.with_columns(pl.col("seed") + (pl.col("width") == 64).cast(pl.Int64))
LACKING = RUNS.filter((pl.col("seed") == 0) | (pl.col("learning_rate") > 0.1))


@pytest.mark.parametrize(
    ("runs", "by", "message"),
    [
        (RUNS.drop("width"), BY, r"missing columns \['width'\]; the frame has"),
        (RUNS.drop("rate_rule"), BY, r"missing columns \['rate_rule'\]"),
        (RUNS.clear(), BY, "nothing to group: .* 0 runs"),
        (UNLIKE, BY, r"unequal seeds: width 32 has \[0, 1\]; width 64 has \[1, 2\].*must have"),
        (LACKING, BY, r"'width': 32\}: unequal seeds: of \[0, 1\], learning_rate 0.015625 lacks"),
        (pl.concat([RUNS, RUNS]), BY, r"'width': 32\}: 2 runs share .'learning_rate"),
        (RUNS.with_columns(width=-pl.col("width")), BY, "width must be a positive number, got -"),
        (RUNS.with_columns(width=None), BY, "width must be a positive number, got None"),
        (RUNS.with_columns(final_validation_loss=None), BY, "impossible run"),
        (RUNS, [], "nothing to group"),
        (RUNS, ["width"], "must name each column once and none of"),
        (RUNS, ["optimizer", "optimizer"], "must name each column once and none of"),
    ],
)
def test_what_cannot_be_judged_is_refused(runs, by, message):
    with pytest.raises(ValueError, match=message):
        width_groups(runs, by)


@ALL
def test_one_seed_has_no_interval(function):
    runs = random_runs(np.random.default_rng(0), 0.0, 1)
    found = function(runs.with_columns(pl.col("final_validation_loss") + 99 / pl.col("width")), BY)
    for low in (name for name in found.columns if name.endswith("_low")):
        rows = found.filter(pl.col(low).is_not_null())
        assert rows[low].is_in([-math.inf, 0.0]).all() and len(rows)
        assert (rows[low.replace("_low", "_high")] == math.inf).all()
        assert rows["note"].str.contains("one seed: no interval").all()


@pytest.mark.parametrize("seeds", [3, 6])
def test_intervals_cover_the_truth(seeds):
    rng, trials, exponent, curvature, noise = np.random.default_rng(seeds), 100, -0.6, 0.1, 0.01
    widths = (32, 64, 128, 256)
    firsts = rng.uniform(-4, -3, trials)
    runs = pl.concat(
        parabolas(
            {n: first + exponent * i for i, n in enumerate(widths)},
            {n: 1.5 + 0.5 * 2.0**-i for i, n in enumerate(widths)},
            grid=tuple(range(-9, 0)),
            curvature=curvature,
            seeds=seeds,
            noise=noise,
            shared=0.05 * rng.normal(size=seeds),
            rng=rng,
            optimizer=f"{trial:02}",
        )
        for trial, first in enumerate(firsts)
    )
    wide, last = pl.col("width") == 256, exponent * 3
    found = [
        ("exponent", exponent, transfer.exponents(runs, GROUP)),
        ("grid_steps", last, transfer.worst_shift(runs, GROUP)),
        ("regret", curvature * last**2, transfer.regrets(runs, GROUP).filter(wide)),
        ("increase", curvature, transfer.sensitivities(runs, GROUP).filter(wide, factor=2)),
        ("loss", 1.5 + 0.5 / 8, ranking.ranking(runs, GROUP)),
        ("rate", 2.0**firsts, optimum.optima(runs.filter(pl.col("width") == 32), GROUP)),
    ]
    shares, lengths = {}, {}
    for name, truth, frame in found:
        low, high = (frame[f"{name}_{end}"].to_numpy() for end in ("low", "high"))
        shares[name] = np.mean((low <= truth) & (truth <= high))
        lengths[name] = np.median(np.log2(high / low) if name == "rate" else high - low)
    # 95% wanted; the share of 100 trials has standard deviation 0.022. The plain percentile
    # interval covers 75% at 3 seeds.
    assert min(shares.values()) > 0.84, shares
    # Much longer intervals would cover too, and say nothing. A vertex has standard deviation
    # noise / (2 curvature sqrt(2 seeds)) or a little more, Student's interval is t of it to each
    # side; a shift is of two vertices, the exponent divides by sqrt(5), the spread of log2 width.
    vertex = 2 * stats.t.ppf(0.975, seeds - 1) * noise / (2 * curvature * math.sqrt(2 * seeds))
    most = {"rate": 3.0, "grid_steps": 3 * math.sqrt(2), "exponent": 3 / math.sqrt(5)}
    assert all(lengths[name] < factor * vertex for name, factor in most.items()), lengths


def moving(exponent: float, at_32: float = -3.0, widths=WIDTHS) -> dict[int, float]:
    """The best log2 rate of each width, moving as the width's power ``exponent``."""
    return {n: at_32 + exponent * math.log2(n / 32) for n in widths}


def row(runs: pl.DataFrame) -> dict[str, object]:
    return transfer.exponents(runs, GROUP).row(0, named=True)


@settings(max_examples=50)
@given(
    exponent=st.floats(-1.5, 0.5),
    at_32=st.floats(-4.0, -3.0),
    curvature=st.floats(0.01, 1.0),
    widths=st.sets(st.integers(32, 256), min_size=2, max_size=6),
)
def test_an_exponent_is_recovered(exponent, at_32, curvature, widths):
    bests = moving(exponent, at_32, sorted(widths))
    found = row(parabolas(bests, curvature=curvature))
    # A vertex is known to 1e-12 (see test_optimum); widths 255 and 256 are 0.0056 apart in log2.
    for name in ("exponent", "exponent_low", "exponent_high"):
        assert found[name] == pytest.approx(exponent, abs=1e-8)
    assert found["intercept"] == pytest.approx(at_32 - 5 * exponent, abs=1e-7)
    assert found["residual"] == pytest.approx(0.0, abs=1e-9)
    assert found["reason"] is None


@settings(max_examples=50)
@given(st.lists(st.floats(-8.0, -2.0), min_size=3, max_size=4))
def test_line_and_residual_are_the_least_squares_ones(bests):
    found = row(parabolas(dict(zip(WIDTHS, bests, strict=False))))
    x = np.log2(WIDTHS[: len(bests)])
    (slope, intercept), (squares, *_), *_ = np.polyfit(x, bests, 1, full=True)
    assert (found["exponent"], found["intercept"]) == pytest.approx((slope, intercept), abs=1e-9)
    assert found["residual"] ** 2 * len(bests) == pytest.approx(squares, abs=1e-9)
    assert found["note"] == ""
    two = row(parabolas(dict(zip(WIDTHS[:2], bests, strict=False))))
    assert "two widths: the line runs through both" in two["note"] and two["reason"] is None


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            parabolas(moving(-0.5) | {256: -6.0}, grid=range(-5, 2)),
            "width 256: the best rate, 0.0312, is the lowest of the grid: widen it to lower rates",
        ),
        (diverge(parabolas(moving(-0.5)), width=64, seed=1), "width 64: every rate"),
        (
            parabolas(moving(-0.5)).filter(
                (pl.col("width") != 32) | (pl.col("learning_rate") == 2.0**-3)
            ),
            "width 32: it has one rate, 0.125: add lower and higher",
        ),
    ],
)
def test_a_width_without_a_best_rate_is_left_out_and_told(runs, message):
    found = row(runs)
    assert found["exponent"] == pytest.approx(-0.5, abs=1e-9)
    assert message in found["reason"] and "left out of the fit" in found["reason"]
    assert found["reason"] in found["note"]


def test_with_fewer_than_two_best_rates_there_is_no_exponent():
    bests = {"alone": {64: -5.0}, "gone": moving(-0.5), "outside": {32: -12.0, 64: 2.0, 128: -5.0}}
    runs = pl.concat(parabolas(its, optimizer=name) for name, its in bests.items())
    found = transfer.exponents(diverge(runs, optimizer="gone"), GROUP)
    assert found["exponent"].to_list() == found["exponent_low"].to_list() == [None] * 3
    assert found["optimizer"].to_list() == ["alone", "gone", "outside"]
    alone, gone, outside = found["reason"]
    assert alone == "an exponent needs the best rates of 2 widths or more, got [64]"
    assert "got [] of [32, 64, 128, 256]" in gone and "width 256: every rate" in gone
    assert "got [128] of [32, 64, 128]" in outside
    assert "width 32" in outside and "lower rates" in outside and "higher rates" in outside


@pytest.mark.parametrize(
    ("widths", "odd", "at", "opened"),
    [
        (WIDTHS, 256, -15.0, "low"),
        (WIDTHS, 32, -15.0, "high"),
        (WIDTHS[:3], 64, -15.0, None),  # a slope has no use for the middle of three
        (WIDTHS[:3], 64, 1.5, None),
    ],
)
def test_a_resample_that_reaches_the_edge_opens_the_interval(widths, odd, at, opened):
    # Seed 2's own best at the odd width is off the grid, the mean of the three is inside. All
    # three draws fall on seed 2 in 1 of 27 resamples, more than the tail of 2.5%.
    bests = moving(-0.5, widths=widths)
    frames = [parabolas(its, seeds=1) for its in (bests, bests, bests | {odd: at})]
    found = row(seedwise(*frames))
    assert found["reason"] is None
    ends = (found["exponent_low"], found["exponent_high"])
    assert (ends[0] == -INF, ends[1] == INF) == (opened == "low", opened == "high")
    assert math.isfinite(found["exponent"])
    if opened is None:
        assert (found["exponent"], *ends) == pytest.approx([-0.5] * 3, abs=1e-9)


def test_a_diverged_neighbour_widens_by_half_a_step():
    found = row(diverge(parabolas(moving(-1.0)), width=256, learning_rate=[2.0**-5, 2.0**-4]))
    assert found["exponent"] == pytest.approx(-1.0, abs=1e-9)
    # The weight of the last of four equidistant points in the slope is 1.5 / 5.
    ends = (found["exponent_low"], found["exponent_high"])
    assert ends == pytest.approx((-1.15, -0.85), abs=1e-9)
    assert "width 256: diverged at 0.0312 next to the best rate, 0.0156" in found["note"]
    assert found["reason"] is None
