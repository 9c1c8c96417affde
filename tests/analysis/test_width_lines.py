"""Lines of sizes over widths, against polyfit, and slopes with Student's interval."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.seeds import student_interval
from isolab.analysis.width_lines import width_lines, width_slopes


def sizes(exponents, scales=None, widths=(8, 16, 64)):
    """A row per width and seed; each seed has its own exponent."""
    scales = scales or [1.0] * len(exponents)
    rows = [
        {"layer": "up", "width": n, "seed": seed, "size": scale * n**exponent}
        for n in widths
        for seed, (exponent, scale) in enumerate(zip(exponents, scales, strict=True))
    ]
    return pl.DataFrame(rows)


def row(frame):
    return width_slopes(frame, ["layer"], "size").row(0, named=True)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 5))
def test_lines_are_least_squares(seed, seeds, count):
    rng = np.random.default_rng(seed)
    widths = (2.0 ** np.cumsum(rng.integers(1, 3, count))).tolist()
    drawn = np.exp(rng.normal(size=(seeds, count)))
    slopes, intercepts = np.polyfit(np.log2(widths), np.log2(drawn).T, 1)
    found = width_lines(drawn, widths)
    np.testing.assert_allclose(found[0], slopes, atol=1e-9)
    np.testing.assert_allclose(found[1], intercepts, atol=1e-8)


@given(st.lists(st.tuples(st.floats(-2.0, 2.0), st.floats(1e-6, 1e6)), min_size=2, max_size=5))
def test_power_laws_are_recovered_with_students_interval(seeds):
    exponents, scales = zip(*seeds, strict=True)
    found = row(sizes(exponents, scales))
    # float64 logarithms of numbers up to 1e10
    assert found["slope"] == pytest.approx(np.mean(exponents), abs=1e-10)
    expected = student_interval(np.array(exponents))
    assert (found["slope_low"], found["slope_high"]) == pytest.approx(expected, abs=1e-9)
    assert found["note"] == ""


def test_one_seed_has_no_interval():
    found = row(sizes([1.0]))
    assert (found["slope_low"], found["slope_high"]) == (-math.inf, math.inf)
    assert found["note"] == "one seed: no interval"


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_sizes_without_a_logarithm_give_no_slope_and_say_where(size):
    there = (pl.col("width") == 16) & (pl.col("seed") == 1)
    found = row(
        sizes([1.0, 1.0]).with_columns(size=pl.when(there).then(pl.lit(size)).otherwise("size"))
    )
    assert found["slope"] is found["slope_low"] is found["slope_high"] is None
    assert found["note"] == f"no slope: at width 16, seed 1, it is {size:g}"


def test_a_group_that_some_width_lacks_has_no_slope():
    frame = sizes([1.0])
    other = frame.filter(pl.col("width") != 16).with_columns(layer=pl.lit("extra"))
    assert row(pl.concat([frame, other]))["note"] == (
        "no slope: at width 16, seed 0, it is missing"
    )


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (sizes([1.0], widths=[8]), r"at least 2 widths, got \[8\]"),
        (sizes([1.0]).drop("size"), r"missing columns \['size'\]"),
        (pl.concat([sizes([1.0])] * 2), "a width and seed is there twice"),
    ],
)
def test_slopes_need_two_widths_and_each_size_once(frame, message):
    with pytest.raises(ValueError, match=message):
        row(frame)
