"""Chapter 2's runs: grids around the theory's centre, one set of runs at the base width."""

from __future__ import annotations

import math

import polars as pl
import pytest

from isolab import presets
from isolab.presets.transfer import CENTRES, log2_centre


def planned(preset="laptop", **overrides):
    return presets.transfer_plan(presets.choose(presets.TRANSFER, preset, **overrides))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_a_plan(preset):
    settings = presets.choose(presets.TRANSFER, preset)
    plan = presets.transfer_plan(settings)
    cells = {(c.parameterization, c.optimizer, c.rate_rule, c.width) for c in plan.sweep}
    rates = 2 * settings.reach + 1
    assert len(plan.sweep) == len(cells) * rates * len(settings.seeds)
    assert plan.base.base_width == min(settings.widths)
    for scaling in settings.parameterizations:
        for width in settings.widths:
            rule = "full" if width > plan.base.base_width else "global"
            assert (scaling, settings.optimizers[0], rule, width) in cells
    globally = {cell for cell in cells if cell[2] == "global" and cell[3] > plan.base.base_width}
    assert {cell[0] for cell in globally} == {"standard"}


def test_grids_are_factors_of_two_around_the_centre():
    runs = [c for c in planned(reach=2).sweep if c.rate_rule == "global" and c.width == 128]
    logs = sorted({math.log2(c.learning_rate) for c in runs})
    assert logs == [k + log2_centre("standard", "adam", "global", 128) for k in range(-2, 3)]
    # one rate for all falls with the width as the hidden matrices need it
    assert log2_centre("standard", "adam", "global", 128) == CENTRES["standard", "adam"] - 2
    assert log2_centre("standard", "adam", "full", 128) == CENTRES["standard", "adam"]
    # a base of 64 is one octave down the same line
    assert log2_centre("standard", "adam", "full", 128, 64) == CENTRES["standard", "adam"] - 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"widths": [32]}, "widths is [32]; allowed: two different ones"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; allowed: two different ones"),
        ({"parameterizations": ["mup"]}, "a list with 'standard'"),
        ({"parameterizations": ["standard", "sp"]}, "'sp'"),
        ({"optimizers": ["muon"]}, "optimizer is 'muon'; allowed in this chapter"),
        ({"reach": 0}, "reach is 0; allowed: 1 or more"),
        ({"widths": [32, 50]}, "width is 50; allowed: multiples of head_size"),
    ],
)
def test_impossible_settings_are_refused_in_words(overrides, message):
    with pytest.raises(ValueError) as refused:
        planned(**overrides)
    assert message in str(refused.value)


def test_a_setting_of_words_takes_words():
    choose = presets.choose
    assert choose(presets.TRANSFER, "smoke", optimizers=["sgd"]).optimizers == ["sgd"]
    with pytest.raises(ValueError, match="allowed: a list such as"):
        choose(presets.TRANSFER, "smoke", optimizers=[1])
    with pytest.raises(ValueError, match="allowed: a list such as"):
        choose(presets.TRANSFER, "smoke", widths=["32"])


def test_runs_at_the_base_width_stand_for_every_rule():
    rows = [(64, "global", 1.0), (64, "global", 2.0), (128, "full", 3.0), (128, "none", 4.0)]
    runs = pl.DataFrame(
        rows, schema=["width", "rate_rule", "final_validation_loss"], orient="row"
    ).with_columns(base_width=64, parameterization=pl.lit("mup"), optimizer=pl.lit("adam"))
    whole = presets.at_every_rule(runs)
    for rule in ("global", "full", "none"):
        at_base = whole.filter((pl.col("width") == 64) & (pl.col("rate_rule") == rule))
        assert sorted(at_base["final_validation_loss"]) == [1.0, 2.0]
    assert len(whole) == 3 * 2 + 2


def test_the_reference_runs_change_one_thing_at_a_time():
    sweep = presets.transfer_reference()
    gammas = {(c.gamma_embedding, c.gamma_hidden, c.gamma_readout) for c in sweep}
    assert all(sum(gamma != 1 for gamma in triple) <= 1 for triple in gammas)
    falling = [c for c in sweep if c.gamma_embedding < 1 and c.rate_rule == "full"]
    assert falling and all(c.gamma_embedding == 32 / c.width for c in falling)
