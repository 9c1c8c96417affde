"""Chapter settings: presets are runnable plans, and what cannot be is refused before training."""

from __future__ import annotations

import pytest

from isolab import chapters as presets


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_is_a_plan(preset):
    settings = presets.choose(presets.SPEEDUP, preset)
    plan = presets.speedup_plan(settings)
    horizons = {config.steps for config in plan.adam}
    assert horizons == set(settings.horizons)
    assert {config.steps for config in plan.isoadam} == {max(horizons) // 4, max(horizons)}
    rates = {config.learning_rate for config in plan.adam}
    assert len(plan.adam) == len(horizons) * len(rates) * len(settings.seeds)
    assert all(config.warmup_steps == config.steps // 10 for config in plan.adam)


def test_both_sides_have_the_same_number_of_trials_at_the_longest_horizon():
    for preset in presets.PRESETS:
        plan = presets.speedup_plan(presets.choose(presets.SPEEDUP, preset))
        trials = [
            sum(config.steps == plan.base.steps for config in side)
            for side in (plan.adam, plan.isoadam)
        ]
        assert trials[0] == trials[1]


@pytest.mark.parametrize(
    ("preset", "override", "said"),
    [
        ("labtop", {}, r"preset is 'labtop'; allowed: \['smoke', 'laptop', 'full'\]"),
        ("smoke", {"widht": 32}, "unknown setting 'widht'"),
        ("smoke", {"width": 50}, r"width is 50; allowed: multiples of head_size \(16\)"),
        ("smoke", {"width": "64"}, "width is '64'; allowed: a whole number"),
        ("smoke", {"seeds": 3}, r"seeds is 3; allowed: a list such as \[0, 1\]"),
        ("smoke", {"seeds": [1, 1]}, r"seeds is \[1, 1\]; allowed: two different ones"),
        ("smoke", {"seeds": []}, "a list such as"),
        ("smoke", {"horizons": [40, 80]}, "three or more"),
        ("smoke", {"horizons": [20, 40, 90]}, "multiples of evaluate_every"),
        ("smoke", {"log2_rates_adam": [-3, -1]}, "three rates or more"),
        ("smoke", {"log2_rates_adam": [-3]}, r"\[start, stop\)"),
    ],
)
def test_impossible_settings_are_refused_in_words(preset, override, said):
    with pytest.raises(ValueError, match=said):
        presets.speedup_plan(presets.choose(presets.SPEEDUP, preset, **override))


def test_none_keeps_the_presets_value():
    settings = presets.choose(presets.SPEEDUP, "smoke", width=None, seeds=[5, 7])
    assert settings.width == presets.SPEEDUP["smoke"]["width"]
    assert settings.seeds == [5, 7]
