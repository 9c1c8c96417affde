"""Losses between the rates of a grid: exact for parabolas, honest next to diverged runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.analysis.rate_curve import RateCurve

INF = math.inf
GRID = np.arange(-4.0, 1.0)
LOSSES = st.one_of(st.floats(0.5, 9.0), st.just(INF))


def curve(*rows: list[float]) -> RateCurve:
    return RateCurve(64, GRID[: len(rows[0])], np.array(rows))


def at(its: RateCurve, x: float) -> float:
    return float(its.at(np.full(len(its.losses), x))[0])


@given(
    best=st.floats(-5.0, 2.0),
    curvature=st.floats(0.01, 1.0),
    gaps=st.lists(st.floats(0.5, 2.0), min_size=2, max_size=8),
    share=st.floats(0.0, 1.0),
)
def test_a_parabola_is_read_without_error_on_any_grid(best, curvature, gaps, share):
    x = -4.0 + np.cumsum([0.0, *gaps])
    its = RateCurve(64, x, (2 + curvature * (x - best) ** 2)[None])
    target = x[0] + share * (x[-1] - x[0])
    expected = 2 + curvature * (target - best) ** 2
    if its.edge is None:  # the vertex divides differences of losses near 2 by 2 * curvature
        assert its.best.x[0] == pytest.approx(best, abs=1e-11)
        assert its.best.loss[0] == pytest.approx(2.0, abs=1e-11)
    # Losses reach 500 here: float64 carries 1e-13 of them. Where the best rate is an end of the
    # grid, nothing is read below its loss.
    assert at(its, target) == pytest.approx(max(expected, its.best.loss[0]), rel=1e-12)


@given(st.lists(LOSSES, min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_values_lie_on_the_grid_points_and_never_below_the_best(losses, share):
    its = curve(losses)
    if its.diverged:
        assert at(its, GRID[0]) == INF
        return
    for x, loss in zip(its.x, losses, strict=True):
        assert at(its, x) == pytest.approx(loss, abs=1e-12)
    value = at(its, its.x[0] + share * (its.x[-1] - its.x[0]))
    assert value >= its.best.loss[0]
    assert at(its, float(its.best.x[0])) == pytest.approx(its.best.loss[0], abs=1e-12)


@given(st.lists(st.floats(0.5, 9.0), min_size=5, max_size=5), st.integers(1, 3))
def test_the_curve_has_no_jumps(losses, point):
    its = curve(losses)
    step = 1e-9  # the slope between points a distance 1 apart stays below 3 * 8.5
    assert at(its, GRID[point] - step) == pytest.approx(at(its, GRID[point] + step), abs=1e-7)


@pytest.mark.parametrize(
    ("x", "expected"), [(-2.6, 1.0), (-2.5, INF), (-2.4, INF), (-2.0, INF), (-0.9, INF), (0.0, INF)]
)
def test_between_trained_and_diverged_the_nearer_decides(x, expected):
    # Nearest trained point of -2.6 is -3, whose loss is 1.
    assert at(curve([2.0, 1.0, INF, INF, INF]), x) == expected


def test_without_a_third_point_the_line_is_straight():
    its = curve([4.0, INF, 3.0, 1.0, INF])
    assert at(its, -1.5) == pytest.approx(2.0, abs=1e-12)
    assert at(curve([3.0, 1.0]), -3.25) == pytest.approx(1.5, abs=1e-12)


def test_off_the_grid_there_is_no_value():
    its = curve([2.0, 1.0, 2.0])
    assert math.isnan(at(its, -4.001)) and math.isnan(at(its, -1.999))
    assert at(its, -4.0 - 1e-12) == 2.0  # what rounding makes of the grid's end is on it
    single = curve([2.0])
    assert at(single, -4.0) == 2.0 and math.isnan(at(single, -3.9))


@pytest.mark.parametrize(
    ("losses", "edge", "note"),
    [
        ([1.0, 2, 3, 4, 5], "low", "the best rate, 0.0625, is the lowest of the grid: widen it to "
         "lower rates"),
        ([5.0, 4, 3, 2, 1], "high", "the best rate, 1, is the highest of the grid: widen it to "
         "higher rates"),
        ([1.0], "single", "it has one rate, 0.0625: add lower and higher rates"),
        ([3.0, 2, 1, 2, 3], None, ""),
        ([INF, INF], "low", "every rate from 0.0625 to 0.125 has a seed that diverged: add lower"
         " rates"),
    ],
)  # fmt: skip
def test_an_edge_says_which_way_to_widen(losses, edge, note):
    its = curve(losses)
    assert its.edge == edge
    assert its.edge_note == (f"width 64: {note}" if note else "")
    assert not its.step_note
    assert (its.best.low[0] == -INF) == (edge in ("low", "single"))
    assert (its.best.high[0] == INF) == (edge in ("high", "single"))


@given(st.floats(1.0, 5.0), st.floats(1.001, 1000.0))
def test_half_a_step_holds_whatever_stands_in_for_a_diverged_neighbour(left, stand_in):
    its = curve([left + 1e-6, 1.0, INF, INF])
    assert "diverged at 0.25 next to the best rate, 0.125" in its.step_note
    assert (its.best.low[0], its.best.x[0], its.best.high[0]) == (-3.5, -3.0, -2.5)
    true = curve([left + 1e-6, 1.0, stand_in, INF]).best.x[0]
    assert its.best.low[0] <= true <= its.best.high[0]
