"""Regret, grid steps and sensitivity: exact for parabolas, paired over seeds, honest at edges."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas, seedwise
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isolab.analysis.groups import width_groups
from isolab.analysis.transfer import regrets, sensitivities, worst_shift

INF = math.inf
GROUP = ["optimizer"]
BESTS = {32: -4.0, 64: -4.5, 128: -5.25}
STEPS = ["grid_steps", "grid_steps_low", "grid_steps_high"]
REGRET = ["regret", "regret_low", "regret_high"]
INCREASE = ["increase", "increase_low", "increase_high"]


@given(
    bests=st.lists(st.floats(-8.0, -2.0), min_size=2, max_size=4), curvature=st.floats(0.01, 1.0)
)
def test_regret_of_a_known_shift(bests, curvature):
    widths = (32, 64, 128, 256)[: len(bests)]
    floors = {n: 2 + 8 / n for n in widths}
    runs = parabolas(
        dict(zip(widths, bests, strict=True)), floors, curvature=curvature, optimizer="a"
    )
    found = regrets(runs, GROUP)
    assert found["width"].to_list() == list(widths[1:])
    for row, best in zip(found.iter_rows(named=True), bests[1:], strict=True):
        shift = best - bests[0]
        # Float64 losses reach 66 here; the vertex divides their differences by the curvature.
        assert [row[name] for name in STEPS] == pytest.approx([shift] * 3, abs=1e-9)
        assert [row[name] for name in REGRET] == pytest.approx([curvature * shift**2] * 3, abs=1e-9)
        assert (row["note"], row["reason"]) == ("", None)


@settings(max_examples=40)
@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.integers(2, 5))
def test_what_seeds_share_over_widths_cancels(one, two, seeds):
    # Every seed has a best rate and a level of its own, the same ones at both widths.
    own = np.linspace(one, two, seeds)
    frames = [
        parabolas({32: -5 + best, 64: -5.5 + best}, {32: 2 + s, 64: 1 + s}, seeds=1)
        for s, best in enumerate(own)
    ]
    (row,) = regrets(seedwise(*frames), GROUP).iter_rows(named=True)
    assert [row[name] for name in STEPS] == pytest.approx([-0.5] * 3, abs=1e-9)
    assert [row[name] for name in REGRET] == pytest.approx([0.1 * 0.5**2] * 3, abs=1e-9)


def test_a_transferred_rate_off_the_grid_has_no_loss():
    runs = parabolas({32: -4.0, 64: -6.5})
    runs = runs.filter((pl.col("width") == 32) | (pl.col("learning_rate") < 2.0**-4.5))
    (row,) = regrets(runs, GROUP).iter_rows(named=True)
    assert [row[name] for name in REGRET] == [None] * 3
    assert row["grid_steps"] == pytest.approx(-2.5, abs=1e-9)
    assert row["reason"] == (
        "width 64: the transferred rate, 0.0625, is off the grid from 0.000977 to 0.0312: widen it "
        "to higher rates"
    )
    assert row["note"] == row["reason"]


def test_a_transferred_rate_that_diverges_is_a_result():
    runs = parabolas(BESTS, seeds=3)
    high = [2.0**x for x in range(-4, 0)]
    every = regrets(diverge(runs, width=128, learning_rate=high), GROUP).row(-1, named=True)
    assert [every[name] for name in REGRET] == [INF] * 3
    assert every["reason"] is None
    one = regrets(diverge(runs, width=128, learning_rate=high, seed=1), GROUP).row(-1, named=True)
    assert [one[name] for name in REGRET] == [INF, 0.0, INF]
    alone = diverge(runs.filter(pl.col("seed") == 0), width=128, learning_rate=high)
    row = regrets(alone, GROUP).row(-1, named=True)
    assert [row[name] for name in REGRET] == [INF, 0.0, INF]  # one divergence is not certain


def test_a_width_that_diverged_everywhere_has_no_best():
    runs = diverge(parabolas(BESTS), width=128)
    row = regrets(runs, GROUP).row(-1, named=True)
    assert row["regret"] is row["grid_steps"] is None
    assert "width 128: every rate" in row["reason"]
    base = regrets(diverge(parabolas(BESTS), width=32), GROUP)
    assert base["grid_steps"].to_list() == base["regret"].to_list() == [None, None]
    assert all("width 32: every rate" in reason for reason in base["reason"])


@pytest.mark.parametrize(
    ("bests", "low_open", "high_open"),
    [
        ({32: -5.0, 64: -12.0}, True, False),
        ({32: -5.0, 64: 2.0}, False, True),
        ({32: -12.0, 64: -5.0}, False, True),
        ({32: 2.0, 64: -5.0}, True, False),
    ],
)
def test_an_edge_opens_the_steps_towards_it(bests, low_open, high_open):
    (row,) = regrets(parabolas(bests), GROUP).iter_rows(named=True)
    assert (row["grid_steps_low"] == -INF, row["grid_steps_high"] == INF) == (low_open, high_open)
    assert "of the grid: widen it to" in row["reason"]


def test_resamples_off_the_grid_leave_the_regret_open():
    # Seed 2's own best at the base width is at -1, beyond the other width's grid, which ends at
    # -2; the mean of three, -4.33, is inside.
    frames = [
        parabolas({32: best, 64: -6.0}, grid=range(-10, 1), seeds=1) for best in (-6.0, -6.0, -1.0)
    ]
    runs = seedwise(*frames).filter((pl.col("width") == 32) | (pl.col("learning_rate") < 0.3))
    (row,) = regrets(runs, GROUP).iter_rows(named=True)
    assert row["regret"] == pytest.approx(0.1 * (5 / 3) ** 2, abs=1e-9)
    assert (row["regret_low"], row["regret_high"]) == (0.0, INF)


def test_one_width_has_nothing_to_transfer_to():
    for function in (regrets, worst_shift):
        (row,) = function(parabolas({64: -5.0}), GROUP).iter_rows(named=True)
        assert (row["width"], row["grid_steps"]) == (64, None)
        assert row["reason"] == "width 64 is the only one: add larger ones"


@given(best=st.floats(-7.0, -3.0), curvature=st.floats(0.01, 1.0))
def test_sensitivity_of_a_known_curvature(best, curvature):
    found = sensitivities(parabolas({32: best, 64: best}, curvature=curvature), GROUP)
    assert found.select("width", "factor").rows() == [(32, 2), (32, 4), (64, 2), (64, 4)]
    for row in found.iter_rows(named=True):
        true = curvature * math.log2(row["factor"]) ** 2
        assert [row[name] for name in INCREASE] == pytest.approx([true] * 3, abs=1e-9)
        assert row["note"] == ""


def test_sides_differ_and_the_increase_is_their_mean():
    steep = 1 + 2 * (pl.col("learning_rate") > 2.0**-4.5)
    runs = parabolas({32: -5.0}).with_columns(
        final_validation_loss=2 + steep * (pl.col("final_validation_loss") - 2)
    )
    curve = width_groups(runs, GROUP)[0].curves[0]
    below, above = (curve.at(curve.best.x + shift)[0] - curve.best.loss[0] for shift in (-2, 2))
    assert above > 1.5 * below > 0
    row = sensitivities(runs, GROUP).row(1, named=True)
    assert row["increase"] == pytest.approx((below + above) / 2, abs=1e-12)


@given(st.floats(-9.5, -0.5))
def test_a_side_off_the_grid_is_null_with_a_note(best):
    assume(abs(best - round(best)) > 1e-3)  # not on a point, where the side may be the grid's end
    row = sensitivities(parabolas({32: best}), GROUP).row(1, named=True)
    below, above = best - 2 < -10, best + 2 > -1
    assert (row["increase"] is None) == (row["increase_low"] is None) == (below or above)
    assert ("widen it to lower rates" in row["note"]) == below
    assert ("widen it to higher rates" in row["note"]) == above


def test_a_side_that_diverges_is_infinite():
    runs = parabolas({32: -5.0}, seeds=3)
    high = [2.0**x for x in range(-3, 0)]
    two, four = sensitivities(diverge(runs, learning_rate=high), GROUP).iter_rows(named=True)
    assert two["increase"] == pytest.approx(0.1, abs=1e-9)
    assert [four[name] for name in INCREASE] == [INF] * 3
    assert "diverged at 0.125, a factor of 4 above the best rate" in four["note"]
    _, four = sensitivities(diverge(runs, learning_rate=high, seed=0), GROUP).iter_rows(named=True)
    assert [four[name] for name in INCREASE] == [INF, 0.0, INF]
    gone = sensitivities(diverge(runs, width=32), GROUP)
    assert gone["increase"].to_list() == [None, None] and "every rate" in gone["note"][1]
    # A side off the grid cannot take the divergence of the other back.
    low = runs.filter(pl.col("learning_rate") > 2.0**-6.5)
    _, four = sensitivities(diverge(low, learning_rate=high), GROUP).iter_rows(named=True)
    assert four["increase"] == INF
