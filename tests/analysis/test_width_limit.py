"""Limits and penalties at infinite width: recovered from a law, null where there is none."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from analysis.samples import diverge, parabolas
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.power_law import fit_power_law
from isolab.analysis.transfer import limits, penalties

INF = math.inf
GROUP = ["optimizer"]
WIDTHS = (32, 64, 128, 256)
BESTS = dict.fromkeys(WIDTHS, -5.3)


def law(limit: float, drop: float = 0.5, exponent: float = 1.0, widths=WIDTHS) -> dict[int, float]:
    """Losses of a law that still has ``drop`` to fall at width 32."""
    return {n: limit + drop * (n / 32) ** -exponent for n in widths}


@settings(max_examples=40)
@given(
    limit=st.floats(0.5, 3.0),
    drop=st.floats(0.2, 2.0),
    exponent=st.floats(0.4, 2.0),
    best=st.floats(-8.0, -2.0),
)
def test_a_limit_is_recovered(limit, drop, exponent, best):
    runs = parabolas(dict.fromkeys(WIDTHS, best), law(limit, drop, exponent))
    (row,) = limits(runs, GROUP).iter_rows(named=True)
    # As in test_power_law: the search for the exponent ends at 1e-8 of the loss in its residual.
    assert row["limit"] == pytest.approx(limit, abs=1e-3)
    assert row["exponent"] == pytest.approx(exponent, abs=1e-2)
    assert row["limit_low"] - 1e-3 <= limit <= row["limit_high"] + 1e-3
    assert (row["widths"], row["seeds"], row["note"], row["reason"]) == (4, 2, "", None)


def test_the_law_is_fitted_to_the_best_losses():
    rng = np.random.default_rng(0)
    floors = {n: loss + 0.01 * rng.normal() for n, loss in law(1.5).items()}
    (row,) = limits(parabolas(BESTS, floors), GROUP).iter_rows(named=True)
    alone = fit_power_law(list(floors), list(floors.values()))
    assert (row["limit"], row["exponent"]) == pytest.approx((alone.limit, alone.exponent), rel=1e-6)


def test_without_a_law_there_is_no_limit():
    runs = pl.concat(
        [
            parabolas({32: -5.0, 64: -5.0}, {32: 2.0, 64: 1.5}, optimizer="few"),
            diverge(parabolas(BESTS, law(1.5), optimizer="gone"), width=[32, 64], seed=0),
            parabolas(BESTS, law(1.5, -0.5), optimizer="rising"),
            parabolas(BESTS, law(-1.0), optimizer="unlike a loss"),
        ]
    )
    found = limits(runs, GROUP)
    for name in ("limit", "limit_low", "limit_high", "exponent"):
        assert found[name].to_list() == [None] * 4
    few, gone, rising, unlike = found["reason"]
    assert few == "a limit needs the losses of 3 widths or more, got [32, 64]"
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
    (row,) = limits(parabolas(BESTS | bests, floors), GROUP).iter_rows(named=True)
    assert row["limit"] is not None and reason in row["reason"]
    assert limit is None or row["limit"] == limit


def test_three_widths_cannot_miss_and_say_so():
    runs = parabolas(dict.fromkeys(WIDTHS[:3], -5.0), law(1.5, widths=WIDTHS[:3]))
    (row,) = limits(runs, GROUP).iter_rows(named=True)
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
    assert (
        found["penalty"].to_list()[:2] == (found["limit"] - found["reference_limit"])[:2].to_list()
    )
    assert found["penalty"][2] is None
    missing = "there is no group {'parameterization': 'standard', 'optimizer': 'lion'}"
    assert missing in found["reason"][2]


def test_a_penalty_says_what_its_reference_lacks():
    two = parabolas(dict.fromkeys(WIDTHS[:2], -5.0), law(1.5, widths=WIDTHS[:2]))
    runs = pl.concat([two, parabolas(BESTS, law(1.7), optimizer="sgd")])
    (row,) = penalties(runs, GROUP, {"optimizer": "adam"}).iter_rows(named=True)
    assert row["penalty"] is row["reference_limit"] is None
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
    assert limits(runs, GROUP)["seeds"].to_list() == [3, 2]  # each alone is fine
