"""The exponent of the best rate: exact without noise, covered with it, honest at edges."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas, seedwise
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.rate_curve import parabola_vertices
from isolab.analysis.seeds import bootstrap_interval, loss_table
from isolab.analysis.transfer import exponents

INF = math.inf
WIDTHS = (32, 64, 128, 256)
GROUP = ["optimizer"]


def moving(exponent: float, at_32: float = -3.0, widths=WIDTHS) -> dict[int, float]:
    """The best log2 rate of each width, moving as the width's power ``exponent``."""
    return {n: at_32 + exponent * math.log2(n / 32) for n in widths}


def row(runs: pl.DataFrame, **options: object) -> dict[str, object]:
    return exponents(runs, GROUP, **options).row(0, named=True)


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
    assert (found["widths"], found["seeds"], found["reason"]) == (len(widths), 2, None)


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


def test_the_interval_is_that_of_a_loop_over_resamples():
    runs = parabolas(moving(-0.6), seeds=4, noise=0.05, rng=np.random.default_rng(0), optimizer="a")
    found = row(runs, resamples=60, confidence=0.8)
    tables = [loss_table(runs.filter(pl.col("width") == n)) for n in WIDTHS]
    slopes = []
    for draw in np.random.default_rng(0).integers(0, 4, size=(60, 4)):
        means = [table.losses[:, draw].mean(axis=1)[None] for table in tables]
        best = [parabola_vertices(np.log2(tables[0].settings), its)[0][0] for its in means]
        slopes.append(np.polyfit(np.log2(WIDTHS), best, 1)[0])
    expected = bootstrap_interval(found["exponent"], np.array(slopes), 4, 0.8)
    assert (found["exponent_low"], found["exponent_high"]) == pytest.approx(expected, abs=1e-9)


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
    assert (found["widths"], found["exponent"]) == (3, pytest.approx(-0.5, abs=1e-9))
    assert message in found["reason"] and "left out of the fit" in found["reason"]
    assert found["reason"] in found["note"]


def test_with_fewer_than_two_best_rates_there_is_no_exponent():
    bests = {"alone": {64: -5.0}, "gone": moving(-0.5), "outside": {32: -12.0, 64: 2.0, 128: -5.0}}
    runs = pl.concat(parabolas(its, optimizer=name) for name, its in bests.items())
    found = exponents(diverge(runs, optimizer="gone"), GROUP)
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
    assert found["widths"] == len(widths) and found["reason"] is None
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
