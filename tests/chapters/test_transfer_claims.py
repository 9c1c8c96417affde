"""Chapter 2's claims: the row asked for, theory's numbers, and reasons that are passed on."""

from __future__ import annotations

import math

import polars as pl
import pytest

from isolab.chapters import transfer_claims


def row(name, middle, half, rule, scaling="standard", optimizer="adam", **more):
    return pl.DataFrame(
        {
            "parameterization": [scaling],
            "optimizer": [optimizer],
            "rate_rule": [rule],
            "width": [256],
            name: [middle],
            f"{name}_low": [middle - half],
            f"{name}_high": [middle + half],
            "note": [""],
            "reason": [None],
        }
        | {key: [value] for key, value in more.items()},
        schema_overrides={"reason": pl.String},
    )


@pytest.mark.parametrize(
    ("scaling", "optimizer", "full", "none"),
    [
        ("standard", "adam", -1, -0.5),
        ("standard", "sgd", -1, -0.5),
        ("standard", "adafactor", -0.5, 0),
        ("ntk", "adam", -0.5, 0),
        ("mup", "adam", -1, -0.5),
        ("mean_field", "adam", -0.5, 0),
    ],
)
def test_the_predicted_power_is_the_smallest_of_the_roles(scaling, optimizer, full, none):
    frame = row("exponent", full, 0.2, "global", scaling, optimizer)
    claim = transfer_claims.exponent_claim(frame, scaling, optimizer)
    assert (claim.threshold, claim.rival) == (full, none)
    assert claim.verdict == "reproduced"
    other = row("exponent", none, 0.2, "global", scaling, optimizer)
    assert transfer_claims.exponent_claim(other, scaling, optimizer).verdict == "not reproduced"


def test_one_power_for_both_alignments_is_no_claim():
    frame = row("exponent", 0.0, 0.1, "global", "mup", "sgd")
    with pytest.raises(ValueError, match="has one power, 0, at either alignment"):
        transfer_claims.exponent_claim(frame, "mup", "sgd")


@pytest.mark.parametrize(
    ("middle", "half", "verdict"),
    [(0.2, 0.5, "reproduced"), (0.2, 1.0, "inconclusive"), (-2.0, 0.5, "not reproduced")],
)
def test_a_shift_must_stay_within_a_grid_step(middle, half, verdict):
    claim = transfer_claims.shift_claim(row("grid_steps", middle, half, "full"), "standard", "adam")
    assert claim.verdict == verdict
    assert "width 256" in claim.question


def test_standard_must_end_below():
    frame = row("difference", 0.2, 0.1, "full", "mup")
    assert transfer_claims.loss_claim(frame, "mup", "adam").verdict == "reproduced"
    frame = row("difference", -0.2, 0.1, "full", "mup")
    assert transfer_claims.loss_claim(frame, "mup", "adam").verdict == "not reproduced"


def test_reasons_are_passed_on():
    told = row("exponent", -1.0, 0.1, "global", reason="best rate at the edge of the grid")
    claim = transfer_claims.exponent_claim(told, "standard", "adam")
    assert claim.verdict == "inconclusive" and claim.reason == "best rate at the edge of the grid"
    bare = row("exponent", -1.0, 0.1, "global").with_columns(
        *(pl.lit(None, pl.Float64).alias(f"exponent{end}") for end in ("", "_low", "_high"))
    )
    claim = transfer_claims.exponent_claim(bare, "standard", "adam")
    assert claim.verdict == "inconclusive" and "no number" in claim.reason
    open_ended = row("grid_steps", 0.0, math.inf, "full")
    assert transfer_claims.shift_claim(open_ended, "standard", "adam").verdict == "inconclusive"


def test_an_absent_row_is_named():
    with pytest.raises(ValueError, match="0 rows of ntk, adam, 'full'; needed: one"):
        transfer_claims.shift_claim(row("grid_steps", 0.0, 0.1, "full"), "ntk", "adam")
