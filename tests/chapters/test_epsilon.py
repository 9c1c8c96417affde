"""Chapter 3's runs: whole maps, one change at a time, grids that hold the best rate."""

from __future__ import annotations

import dataclasses
import math

import polars as pl
import pytest

from isolab import chapters as presets
from isolab.chapters.epsilon import TINY_EPS, constants_of_atan2, eps_by_scale, large_eps
from isolab.theory.parameterization import parameterization
from isolab.training.train import program_of


def planned(preset="laptop", **overrides):
    return presets.epsilon_plan(presets.choose(presets.EPSILON, preset, **overrides))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_a_plan(preset):
    settings = presets.choose(presets.EPSILON, preset)
    plan = presets.epsilon_plan(settings)
    widths, seeds = sorted(settings.widths), len(settings.seeds)
    few = len(settings.map_seeds)
    wider, eps = len(widths) - 1, len(settings.log10_eps) + 1
    assert len(plan.width_map) == few * (eps * (2 * wider + 1) + len(widths))
    scales, scaled = len(settings.log2_loss_scales), len(settings.log10_eps_scaled)
    assert len(plan.scale_map) == seeds * scales * (2 * scaled + 2)
    assert len(plan.transfer) == seeds * len(widths) * 3 * (2 * settings.reach + 1)
    assert len(plan.bfloat16) == few * 2 * len(settings.log2_loss_scales_bfloat16)
    assert {c.width for c in plan.width_map} == {c.width for c in plan.transfer} == set(widths)
    assert {c.width for c in plan.scale_map} == {widths[1]}  # per layer differs from one eps
    assert {c.base_width for c in plan.sweep} == {plan.base.width} == {widths[0]}
    assert (
        len(set(plan.sweep))
        == len(plan.sweep)
        < sum(map(len, (plan.width_map, plan.scale_map, plan.transfer, plan.bfloat16)))
    )
    assert {0.0, 1e-8} < {c.eps for c in plan.width_map if c.optimizer == "adam"}
    assert TINY_EPS in {c.eps for c in plan.scale_map}
    assert 1.0 in {c.loss_scale for c in plan.bfloat16}


def test_a_sweep_over_eps_and_loss_scale_shares_a_program():
    plan = planned()
    at_64 = [c for c in (*plan.width_map, *plan.scale_map, *plan.transfer) if c.width == 64]
    assert len({program_of(c) for c in at_64}) == 2  # Adam and Adam-atan2
    assert len({program_of(c) for c in plan.bfloat16}) == 2


def test_each_map_changes_one_thing():
    plan = planned()
    assert {c.loss_scale for c in plan.width_map} == {1.0}
    for runs in (plan.width_map, plan.scale_map):
        per_width = {(c.width, c.learning_rate) for c in runs}
        assert len(per_width) == len({c.width for c in runs})
        assert {c.moment_dtype for c in runs} == {"float32"}
        assert all(c.eps is None for c in runs if c.optimizer == "adam_atan2")
    assert {(c.moment_dtype, c.dtype) for c in plan.bfloat16} == {("bfloat16", "bfloat16")}


def test_a_large_eps_stands_in_for_a_wider_model():
    plan = planned(stands_in=100)
    g = parameterization(plan.base.parameterization).gradient_exponent("hidden")
    assert plan.large_eps == pytest.approx(1e-8 * 100**g)
    assert {c.eps for c in plan.transfer} == {None, plan.large_eps}
    assert large_eps(100, "standard") == pytest.approx(1e-7)


def test_grids_of_rates_are_factors_of_two_and_higher_under_a_large_eps():
    plan = planned(reach=2)

    def logs(width, optimizer, eps):
        return sorted({
            math.log2(c.learning_rate) for c in plan.transfer
            if (c.width, c.optimizer, c.eps) == (width, optimizer, eps)
        })  # fmt: skip

    for width in (32, 64, 128):
        usual = logs(width, "adam", None)
        assert usual == logs(width, "adam_atan2", None) == [usual[0] + i for i in range(5)]
        higher = logs(width, "adam", plan.large_eps)
        assert len(higher) == 5 and higher[0] > usual[0]


def test_the_reference_holds_what_the_chapter_asks_for():
    runs = presets.epsilon_reference().sweep
    epsilons = {c.eps for c in runs if c.optimizer == "adam"}
    assert {0.0, 1e-4, 1e-20, TINY_EPS} < epsilons
    scales = {math.log2(c.loss_scale) for c in runs}
    assert {0, -80} < scales and min(scales) == -80
    assert {c.width for c in runs} == {32, 64, 128, 256}
    assert {(c.moment_dtype, c.dtype) for c in runs} == {
        ("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"),
    }  # fmt: skip
    assert {c.parameterization for c in runs} == {"mean_field", "mup"}
    assert {c.atan2_b for c in runs if c.optimizer == "adam_atan2"} == {1.0, 2.0, 4.0}


def test_the_reference_tunes_eps_and_adam_atan2_alike():
    parts = presets.epsilon_reference()
    cells = {}
    for c in parts.tuned_eps:
        cells.setdefault((c.optimizer, c.eps), set()).add((c.width, c.learning_rate, c.seed))
    assert {eps for name, eps in cells if name == "adam"} == {None, 1e-6, 1e-5, 1e-4}
    assert len({frozenset(of) for of in cells.values()}) == 1
    shared = {c for c in parts.transfer if c.width <= 128 and c.eps is None}
    assert shared < set(parts.tuned_eps)


def test_the_reference_asks_of_bfloat16_what_it_asks_of_float32():
    parts = presets.epsilon_reference()
    for of_float32, narrow in (
        (parts.width_map, (parts.narrow_moments_map, parts.narrow_compute_map)),
        (parts.transfer, (parts.narrow_moments, parts.narrow_compute)),
    ):
        for part in narrow:
            assert {c.moment_dtype for c in part} == {"bfloat16"}
            assert {c.width for c in part} == {32, 64, 128}
            widened = {
                dataclasses.replace(c, moment_dtype="float32", dtype="float32") for c in part
            }
            assert widened < set(of_float32)


def test_damping_at_a_step_counts_every_parameter():
    histogram, shares = presets.damping(planned("smoke").base, [16, 32], 2, [1e-8, 1.0])
    assert histogram["width"].unique().to_list() == [16, 32]
    assert set(shares.filter(eps=1.0)["share"]) == {1.0}
    assert (shares.filter(eps=1e-8)["share"] < 0.5).all()


def test_constants_are_pairs():
    runs = constants_of_atan2(planned().base, [(1.0, 1.0), (2.0, 4.0)], 1, [0])
    assert {(c.atan2_a, c.atan2_b) for c in runs} == {(1.0, 1.0), (2.0, 4.0)}
    assert len(runs) == 2 * 3


def test_a_scale_map_of_tiny_eps_alone_has_no_per_layer_rows():
    runs = eps_by_scale(planned().base, 64, [TINY_EPS, 0.0], [1.0, 0.5], [0])
    assert {c.eps_rule for c in runs} == {"same"}


def test_runs_at_the_base_width_stand_for_both_rules_of_eps():
    rows = [(32, "same", "adam", 1.0), (32, None, "adam", 2.0), (64, "same", "adam", 3.0),
            (64, "per_layer", "adam", 4.0), (32, "same", "adam_atan2", 5.0)]  # fmt: skip
    names = ["width", "eps_rule", "optimizer", "final_validation_loss"]
    runs = pl.DataFrame(rows, schema=names, orient="row").with_columns(base_width=32)
    whole = presets.at_every_eps_rule(runs)
    assert len(whole) == len(runs) + 2
    layered = whole.filter(eps_rule="per_layer")
    assert sorted(layered["final_validation_loss"]) == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"widths": [32]}, "widths is [32]; allowed: two different ones"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; allowed: two different ones"),
        ({"log2_loss_scales": [-10, -20]}, "log2_loss_scales is [-10, -20]; allowed: 0 and one"),
        ({"reach": 0}, "reach is 0; allowed: 1 or more"),
        ({"stands_in": 0}, "stands_in is 0; allowed: 1 or more"),
        ({"gradient_step": 71}, "gradient_step is 71; allowed: 1 to steps (70)"),
        ({"widths": [32, 50]}, "width is 50; allowed: multiples of head_size"),
        ({"log10_eps": [-50]}, "allowed: 0, or 2**-126 to 2**127"),
        ({"log2_loss_scales": [0, -200]}, "2**-126 to 2**127"),
    ],
)
def test_impossible_settings_are_refused_in_words(overrides, message):
    with pytest.raises(ValueError) as refused:
        planned(**overrides)
    assert message in str(refused.value)
