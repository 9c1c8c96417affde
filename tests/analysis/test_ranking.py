"""Losses at one width and at infinite width: ranked, extrapolated, compared seed by seed."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.optimum import optimum
from isolab.analysis.ranking import loss_differences, penalties, ranking

INF = math.inf
GROUP = ["optimizer"]
WIDTHS = (32, 64, 128, 256)
BESTS = dict.fromkeys(WIDTHS, -5.3)


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


def test_loss_and_interval_are_those_of_optimum():
    runs = at("adam", 1.5, -5.3, seeds=3, noise=0.02, rng=np.random.default_rng(0))
    (row,) = ranking(runs, GROUP).iter_rows(named=True)
    alone = optimum(runs.filter(pl.col("width") == 64))
    assert (row["width"], row["rate"], row["loss"]) == (64, alone.rate, alone.loss)
    ends = (alone.loss_low, alone.loss_high)
    assert (row["loss_low"], row["loss_high"]) == pytest.approx(ends, abs=1e-12)


def test_diverged_ranks_last_and_what_did_not_run_comes_after():
    gone = diverge(at("gone", 1.0), width=64, seed=1)
    small = at("small", 1.0).filter(pl.col("width") == 32)
    found = ranking(pl.concat([small, gone, at("adam", 1.5)]), GROUP)
    assert found.select("optimizer", "loss", "rate").rows() == [
        ("adam", pytest.approx(1.5), pytest.approx(2.0**-5)), ("gone", INF, None),
        ("small", None, None),
    ]  # fmt: skip
    assert "every rate" in found["note"][1] and found["reason"][1] is None
    assert found["reason"][2] == "no runs at width 64: it has [32]"


def test_an_edge_is_a_reason_and_a_rate_fixed_by_hand_is_not():
    runs = pl.concat([at("edge", 1.5, -12.0), at("fixed", 1.0, grid=(-5.0,))])
    fixed, edge = ranking(runs, GROUP).iter_rows(named=True)
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
    assert second["difference"] is None
    assert second["reason"] == "no runs at width 64: it has [32]"
    row = loss_differences(runs, GROUP, {"optimizer": "gone"}).row(0, named=True)
    assert row["difference"] is None
    assert row["note"].startswith("reference: width 64: every rate")
    edge = at("adam", 1.5, -12.0)
    row = loss_differences(pl.concat([edge, gone]), GROUP, {"optimizer": "adam"}).row(0, named=True)
    assert row["reason"].startswith("reference: width 64: the best rate")


def law(limit: float, drop: float = 0.5, exponent: float = 1.0, widths=WIDTHS) -> dict[int, float]:
    """Losses of a law that still has ``drop`` to fall at width 32."""
    return {n: limit + drop * (n / 32) ** -exponent for n in widths}


def limits(runs: pl.DataFrame, of=WIDTHS) -> pl.DataFrame:
    """Penalties against a reference of the same widths, whose limit is 1."""
    reference = parabolas(dict.fromkeys(of, -5.0), law(1.0, widths=of), optimizer="reference")
    return penalties(pl.concat([runs, reference]), GROUP, {"optimizer": "reference"})


@settings(max_examples=40)
@given(
    limit=st.floats(0.5, 3.0),
    drop=st.floats(0.2, 2.0),
    exponent=st.floats(0.4, 2.0),
    best=st.floats(-8.0, -2.0),
)
def test_a_limit_is_recovered(limit, drop, exponent, best):
    runs = parabolas(dict.fromkeys(WIDTHS, best), law(limit, drop, exponent))
    (row,) = limits(runs).iter_rows(named=True)
    # As in test_power_law: the search for the exponent ends at 1e-8 of the loss in its residual.
    assert row["limit"] == pytest.approx(limit, abs=1e-3)
    assert row["penalty"] == pytest.approx(limit - 1, abs=1e-3)
    assert row["penalty_low"] - 1e-3 <= limit - 1 <= row["penalty_high"] + 1e-3
    assert (row["note"], row["reason"]) == ("", None)


def test_without_a_law_there_is_no_limit():
    floors = [{32: 2.0, 64: 1.5}, law(1.5), law(1.5, -0.5), law(-1.0)]
    few, gone, *others = (
        parabolas(dict.fromkeys(its, -5.3), its, optimizer=f"{i}") for i, its in enumerate(floors)
    )
    found = limits(pl.concat([few, diverge(gone, width=[32, 64], seed=0), *others]))
    for name in ("limit", "penalty", "penalty_low", "penalty_high"):
        assert found[name].to_list() == [None] * 4
    few, gone, rising, unlike = found["reason"]
    assert few.startswith("a limit needs the losses of 3 widths or more, got [32, 64]")
    assert few.endswith("widths differ: [32, 64] against [32, 64, 128, 256]")
    assert "got [128, 256]" in gone and "width 32: every rate" in gone
    assert "losses [1.0, 1.25, 1.375, 1.4375]" in rising
    assert "do not fall with the width: no power law fits" in rising
    assert "are not all above 0" in unlike
    assert found["note"].to_list() == found["reason"].to_list()


@pytest.mark.parametrize(
    ("bests", "floors", "limit", "reason"),
    [
        ({256: -12.0}, law(1.5) | {256: 1.3}, None, "width 256: the best rate"),
        ({}, {n: 4.0 - 0.5 * i for i, n in enumerate(WIDTHS)}, 0.0, "show no limit above 0"),
        ({}, {32: 3.0, 64: 2.0, 128: 1.9999, 256: 1.9999}, None, "an end of those sought, (0.01,"),
    ],
)
def test_a_number_not_to_judge_by_has_a_reason(bests, floors, limit, reason):
    (row,) = limits(parabolas(BESTS | bests, floors)).iter_rows(named=True)
    assert row["limit"] is not None and reason in row["reason"]
    assert limit is None or row["limit"] == limit


def test_three_widths_cannot_miss_and_say_so():
    runs = parabolas(dict.fromkeys(WIDTHS[:3], -5.0), law(1.5, widths=WIDTHS[:3]))
    (row,) = limits(runs, WIDTHS[:3]).iter_rows(named=True)
    assert row["limit"] == pytest.approx(1.5, abs=1e-6)
    assert "three widths: the law runs through all" in row["note"] and row["reason"] is None


def test_a_reference_has_the_other_values_of_its_group():
    losses = {("mup", "adam"): 1.6, ("mup", "sgd"): 2.5, ("standard", "adam"): 1.5,
              ("standard", "sgd"): 2.1, ("ntk", "lion"): 1.7}  # fmt: skip
    runs = pl.concat(
        parabolas(BESTS, law(limit), parameterization=p, optimizer=o)
        for (p, o), limit in losses.items()
    )
    found = penalties(runs, ["parameterization", "optimizer"], {"parameterization": "standard"})
    assert found.select("parameterization", "optimizer").rows() == [
        ("mup", "adam"), ("mup", "sgd"), ("ntk", "lion")
    ]  # fmt: skip
    assert found["penalty"].to_list()[:2] == pytest.approx([0.1, 0.4], abs=1e-4)
    assert found["penalty"][2] is None
    missing = "there is no group {'parameterization': 'standard', 'optimizer': 'lion'}"
    assert missing in found["reason"][2]


def test_a_penalty_says_what_its_reference_lacks():
    two = parabolas(dict.fromkeys(WIDTHS[:2], -5.0), law(1.5, widths=WIDTHS[:2]))
    runs = pl.concat([two, parabolas(BESTS, law(1.7), optimizer="sgd")])
    (row,) = penalties(runs, GROUP, {"optimizer": "adam"}).iter_rows(named=True)
    assert row["penalty"] is None
    assert row["limit"] == pytest.approx(1.7, abs=1e-4)
    assert "reference: a limit needs the losses of 3 widths" in row["reason"]
    assert "widths differ: [32, 64, 128, 256] against [32, 64]" in row["reason"]


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ({"optimizer": "lion"}, r"no group has \{'optimizer': 'lion'\}; there are \{'optimizer': "),
        ({"width": 32}, r"against=\{'width': 32\} must give values of some of .*\['optimizer'\]"),
        ({}, r"against=\{\} must give values"),
        ({"optimizer": "adam"}, r"'sgd'\} has \[0, 1\], \{'optimizer': 'adam'\} has \[0, 1, 2\]"),
    ],
)
def test_an_impossible_reference_is_refused(against, message):
    runs = pl.concat(
        parabolas(BESTS, law(1.5), optimizer=name, seeds=seeds)
        for name, seeds in [("adam", 3), ("sgd", 2)]
    )
    with pytest.raises(ValueError, match=message):
        penalties(runs, GROUP, against)
