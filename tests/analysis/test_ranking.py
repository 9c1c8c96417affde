"""Losses at one width: ranked, and compared seed by seed, each group at its own best rate."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.optimum import optimum
from isolab.analysis.ranking import loss_differences, ranking

INF = math.inf
GROUP = ["optimizer"]


def at(name: str, floor: float, best: float = -5.0, **options) -> pl.DataFrame:
    return parabolas({32: best, 64: best}, {32: 9.0, 64: floor}, optimizer=name, **options)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(10, 30), st.floats(-8.0, -2.0)), min_size=1, max_size=6))
def test_the_lowest_loss_comes_first_whatever_its_rate(truths):
    floors = [tenth / 10 for tenth, _ in truths]
    runs = pl.concat(at(f"{i}", f, truths[i][1]) for i, f in enumerate(floors))
    found = ranking(runs, GROUP)
    assert found["loss"].to_list() == pytest.approx(sorted(floors), abs=1e-9)
    assert found["width"].to_list() == [64] * len(truths)
    for row in found.iter_rows(named=True):
        floor = floors[int(row["optimizer"])]
        assert row["loss"] == pytest.approx(floor, abs=1e-9)
        assert math.log2(row["rate"]) == pytest.approx(truths[int(row["optimizer"])][1], abs=1e-9)
    assert found["rank"][0] == 1 and found["rank"].is_sorted()
    assert found["rank"].max() <= len(truths)


def test_loss_and_interval_are_those_of_optimum():
    runs = at("adam", 1.5, -5.3, seeds=3, noise=0.02, rng=np.random.default_rng(0))
    for width in (None, 32):
        (row,) = ranking(runs, GROUP, width=width).iter_rows(named=True)
        alone = optimum(runs.filter(pl.col("width") == (width or 64)))
        assert row["width"] == (width or 64)
        assert (row["rate"], row["loss"]) == (alone.rate, alone.loss)
        ends = (row["loss_low"], row["loss_high"])
        assert ends == pytest.approx(alone.loss_interval, abs=1e-12)


def test_diverged_ranks_last_and_what_did_not_run_comes_after():
    gone = diverge(at("gone", 1.0), width=64, seed=1)
    small = at("small", 1.0).filter(pl.col("width") == 32)
    found = ranking(pl.concat([at("adam", 1.5), gone, small]), GROUP)
    assert found.select("optimizer", "rank", "loss", "rate").rows() == [
        ("adam", 1, pytest.approx(1.5), pytest.approx(2.0**-5)), ("gone", 2, INF, None),
        ("small", None, None, None),
    ]  # fmt: skip
    assert "every rate" in found["note"][1] and found["reason"][1] is None
    assert found["reason"][2] == "no runs at width 64: it has [32]"


def test_an_edge_is_a_reason_and_a_rate_fixed_by_hand_is_not():
    runs = pl.concat([at("edge", 1.5, -12.0), at("fixed", 1.0, grid=(-5.0,))])
    fixed, edge = ranking(runs, GROUP).iter_rows(named=True)
    same = pl.concat([runs, runs.with_columns(optimizer=pl.lit("same as ") + pl.col("optimizer"))])
    assert ranking(same, GROUP)["rank"].to_list() == [1, 1, 3, 3]
    with pytest.raises(ValueError, match=r"width 48 is not among those that ran: \[32, 64\]"):
        ranking(runs, GROUP, width=48)
    assert (fixed["optimizer"], fixed["reason"]) == ("fixed", None)
    assert "it has one rate, 0.0312" in fixed["note"]
    assert "is the lowest of the grid: widen it to lower rates" in edge["reason"]


@settings(max_examples=40)
@given(
    st.floats(1.0, 2.0), st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3), st.floats(-7, -3)
)
def test_differences_are_paired_and_ignore_where_the_grid_lies(floor, shared, best):
    shared = np.array(shared)
    adam = at("adam", 1.5, seeds=3, shared=shared)
    runs = pl.concat([adam, at("muon", floor, best, seeds=3, shared=shared)])
    (row,) = loss_differences(runs, GROUP, {"optimizer": "adam"}).iter_rows(named=True)
    for name in ("difference", "difference_low", "difference_high"):
        assert row[name] == pytest.approx(floor - 1.5, abs=1e-9)
    assert (row["optimizer"], row["width"], row["note"], row["reason"]) == ("muon", 64, "", None)


def test_differences_say_what_diverged_or_is_missing():
    adam = at("adam", 1.5)
    gone = diverge(at("gone", 1.0), width=64)
    small = at("small", 1.0).filter(pl.col("width") == 32)
    runs = pl.concat([adam, gone, small])
    first, second = loss_differences(runs, GROUP, {"optimizer": "adam"}).iter_rows(named=True)
    assert (first["optimizer"], first["difference"], first["difference_low"]) == ("gone", INF, INF)
    assert second["difference"] is second["loss"] is None
    assert second["reference_loss"] == pytest.approx(1.5)
    assert second["reason"] == "no runs at width 64: it has [32]"
    row = loss_differences(runs, GROUP, {"optimizer": "gone"}).row(0, named=True)
    assert row["difference"] is None and row["reference_loss"] == INF
    assert row["note"].startswith("reference: width 64: every rate")
    edge = at("adam", 1.5, -12.0)
    row = loss_differences(pl.concat([edge, gone]), GROUP, {"optimizer": "adam"}).row(0, named=True)
    assert row["reason"].startswith("reference: width 64: the best rate")
