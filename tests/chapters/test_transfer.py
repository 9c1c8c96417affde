"""Chapter 2's runs: grids around the theory's centre, one set of runs at the base width."""

from __future__ import annotations

import math

import polars as pl
import pytest

from isolab import chapters as presets
from isolab.chapters.transfer import CENTRES, log2_centre


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
    ).with_columns(base_width=64, seed=0, parameterization=pl.lit("mup"), optimizer=pl.lit("adam"))
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


def reference_like():
    """A row per run of the reference sweep, without its outcome."""
    return pl.DataFrame([config.row() for config in presets.transfer_reference()])


def test_plain_runs_have_no_constants_of_their_own():
    runs = reference_like()
    plain = presets.plain(runs)
    assert 0 < len(plain) < len(runs)
    assert set(plain["gamma_embedding"]) == set(plain["gamma_readout"]) == {1.0}


def test_embedding_runs_differ_in_the_embedding_alone():
    runs = presets.embedding_runs(reference_like())
    assert set(runs["parameterization"]) == {"standard", "mup"}
    kinds = {"as prescribed", "falls as 1/n"}
    for (_, width), group in runs.group_by("parameterization", "width"):
        assert set(group["embedding"]) == kinds
        rates = [set(side["learning_rate"]) for _, side in group.group_by("embedding")]
        assert rates[0] == rates[1]  # as many trials on both sides
        fallen = group.filter(pl.col("embedding") == "falls as 1/n")["gamma_embedding"]
        assert set(fallen) == {32 / width}


def test_gamma_runs_change_one_role_at_the_base_width():
    runs = presets.gamma_runs(reference_like())
    assert set(runs["width"]) == {32}
    assert set(runs["role"]) == {"embedding", "hidden", "readout"}
    for (role,), group in runs.group_by("role"):
        assert set(group["gamma"]) == {0.25, 0.5, 1.0, 2.0, 4.0}
        others = [f"gamma_{r}" for r in ("embedding", "hidden", "readout") if r != role]
        assert all(set(group[other]) == {1.0} for other in others)


def test_predicted_exponents_are_the_theorys():
    predicted = presets.predicted_exponents(reference_like())
    table = {tuple(row[:3]): row[3] for row in predicted.rows()}
    assert table["standard", "adam", "global"] == -1
    assert table["mean_field", "sgd", "global"] == 1
    assert table["mup", "adafactor", "full"] == 0
    assert table["ntk", "adam", "none"] is None


def test_twins_are_one_class_each():
    sweep = list(presets.twin_sweep(["sgd"]))
    assert [c.parameterization for c in sweep] == ["standard", "ntk", "mup", "mean_field"]
    assert {c.mlp_ratio for c in sweep} == {1}


def test_seeds_that_some_widths_lack_are_left_out():
    runs = reference_like().filter(pl.col("optimizer") == "adam")
    whole = presets.at_every_rule(presets.plain(runs))
    for (_, rule), group in whole.group_by("parameterization", "rate_rule"):
        for _, at_width in group.group_by("width"):
            assert set(at_width["seed"]) == set(range(5 if rule == "full" else 3))


def test_tuned_runs_differ_in_the_hidden_rate_alone():
    runs = presets.tuned_runs(reference_like())
    assert set(runs["hidden"]) == {"as the others", "1/4 of the others"}
    assert set(runs["width"]) == {32, 128, 256}
    assert set(runs["gamma_embedding"]) == set(runs["gamma_readout"]) == {1.0}
    tuned = runs.filter(pl.col("hidden") == "1/4 of the others")
    assert set(tuned["gamma_hidden"]) == {0.25}


def test_paired_runs_have_the_same_seeds_in_every_parameterization():
    runs = presets.at_every_rule(presets.plain(reference_like()))
    some = runs.filter((pl.col("seed") < 3) | pl.col("parameterization").is_in(["standard", "mup"]))
    full = presets.paired(some).filter(
        (pl.col("rate_rule") == "full") & (pl.col("optimizer") == "adam")
    )
    assert set(full["seed"]) == {0, 1, 2}
    two = some.filter(pl.col("parameterization").is_in(["standard", "mup"]))
    full = presets.paired(two).filter(
        (pl.col("rate_rule") == "full") & (pl.col("optimizer") == "adam")
    )
    assert set(full["seed"]) == {0, 1, 2, 3, 4}
