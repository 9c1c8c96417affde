"""What eps, the loss scale, the moments' dtype and Adam-atan2's constants do to a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from training.tiny import TINY, trained, variant
from training.tiny import curves as curves_of

from isolab.training.program import program_of

ATAN2 = variant(optimizer="adam_atan2")


def curves(config, *changes):
    """Curves of the config with each of the changes, trained side by side in one program."""
    configs = [dataclasses.replace(config, **change) for change in changes]
    assert len({program_of(each) for each in configs}) == 1
    return [curves_of(result) for result in trained(*configs)]


def test_adam_atan2_ignores_the_loss_scale_to_the_last_bit_until_squares_underflow():
    scales = [{"loss_scale": 2.0**k} for k in (0, 40, -10, -20, -80)]
    one, *others, far = curves(ATAN2, *scales)
    assert others == [one] * 3  # 18 decades; losses are recorded unscaled
    assert far[0] == one[0]  # before the first update
    assert np.isfinite(far).all()
    assert far[1:] != one[1:]


def test_adam_sees_eps_over_the_loss_scale():
    # powers of two: scaling shifts exponents alone, until something underflows
    one, scaled, same, usual, small = curves(
        TINY,
        {"eps": 2.0**-17},
        {"eps": 2.0**-17, "loss_scale": 2.0**-10},
        {"eps": 2.0**-27, "loss_scale": 2.0**-10},
        {},
        {"loss_scale": 2.0**-30},
    )
    assert same == one != scaled
    assert small[-1] > usual[-1] + 0.01  # eps 1e-8 rules there, and the run hardly moves


def test_sgd_takes_the_scale_as_a_rate():
    sgd = variant(optimizer="sgd", learning_rate=0.125)
    half, slower = curves(sgd, {"loss_scale": 0.5}, {"learning_rate": 0.0625})
    assert half == slower


def test_eps_0_trains_although_some_tokens_are_never_seen():
    # 32 of 16 kinds of tokens a step: some have no gradient at first, 0 / 0
    none, least = curves(TINY, {"eps": 0.0}, {"eps": 1e-30})
    assert none == least  # in float32 1e-30 adds nothing to any root but 0
    assert none[-1] < none[3] - 0.05


def test_eps_per_layer_is_eps_at_the_base_width_and_shrinks_above_it():
    layered = {"eps": 1e-3, "eps_rule": "per_layer"}
    same, at_base, narrower = curves(TINY, {"eps": 1e-3}, layered, layered | {"base_width": 4})
    assert same == at_base != narrower


def test_constants_of_adam_atan2_act():
    one, doubled, rate, flat = curves(
        ATAN2,
        {"learning_rate": 0.02},
        {"atan2_a": 2.0},
        {"learning_rate": 0.01},
        {"atan2_a": 8.0, "atan2_b": 1e-12},
    )
    assert doubled == one != rate  # a is a factor on the rate
    assert flat != rate  # b towards 0: every step is a quarter turn


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "adam_atan2"])
def test_bfloat16_moments_are_another_program_and_cost_little(optimizer):
    full = variant(optimizer=optimizer)
    rounded = dataclasses.replace(full, moment_dtype="bfloat16")
    assert program_of(full) != program_of(rounded)
    (one,), (other,) = curves(full, {}), curves(rounded, {})
    assert other[0] == pytest.approx(one[0], rel=1e-6)  # before the first update
    assert abs(other[-1] - one[-1]) > 1e-5
    # moments that are off by 2**-9 move the loss of a short run by little
    assert other[-1] == pytest.approx(one[-1], abs=0.02)
