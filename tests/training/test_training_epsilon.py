"""What eps, the loss scale, the moments' dtype and Adam-atan2's constants do to a run."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from isolab.training.config import RunConfig
from isolab.training.program import program_of
from isolab.training.train import train

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=10, warmup_steps=2, evaluate_every=10, validation_windows=32,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip
ATAN2 = dataclasses.replace(BASE, optimizer="adam_atan2")


RUNS = 5  # of every batch: a program is compiled anew for each number


@functools.cache
def trained(*configs):
    return train(configs)


def curves(config, *changes):
    """Curves of the config with each of the changes, trained side by side in one program."""
    configs = [dataclasses.replace(config, **change) for change in changes]
    assert len({program_of(each) for each in configs}) == 1
    results = trained(*configs, *configs[:1] * (RUNS - len(configs)))
    return [[*r.curve_train_loss, *r.curve_validation_loss] for r in results[: len(configs)]]


def test_adam_atan2_ignores_the_loss_scale_to_the_last_bit():
    scales = [{"loss_scale": 2.0**k} for k in (0, 40, -10, -20)]
    one, *others = curves(ATAN2, *scales)
    assert others == [one] * 3  # 18 decades; losses are recorded unscaled


def test_underflow_ends_that_too():
    one, far = curves(ATAN2, {}, {"loss_scale": 2.0**-80})
    assert far[0] == one[0]  # before the first update
    assert np.isfinite(far).all()
    assert far[1:] != one[1:]


def test_adam_sees_eps_over_the_loss_scale():
    # powers of two: scaling shifts exponents alone, until something underflows
    one, scaled, same, usual, small = curves(
        BASE,
        {"eps": 2.0**-17},
        {"eps": 2.0**-17, "loss_scale": 2.0**-10},
        {"eps": 2.0**-27, "loss_scale": 2.0**-10},
        {},
        {"loss_scale": 2.0**-30},
    )
    assert same == one != scaled
    assert small[-1] > usual[-1] + 0.01  # eps 1e-8 rules there, and the run hardly moves


def test_sgd_takes_the_scale_as_a_rate():
    sgd = dataclasses.replace(BASE, optimizer="sgd", learning_rate=0.125)
    half, slower = curves(sgd, {"loss_scale": 0.5}, {"learning_rate": 0.0625})
    assert half == slower


def test_eps_0_trains_although_some_tokens_are_never_seen():
    # 32 of 16 kinds of tokens a step: some have no gradient at first, 0 / 0
    none, least = curves(BASE, {"eps": 0.0}, {"eps": 1e-30})
    assert none == least  # in float32 1e-30 adds nothing to any root but 0
    assert none[-1] < none[2] - 0.05


def test_eps_per_layer_is_eps_at_the_base_width_and_shrinks_above_it():
    layered = {"eps": 1e-3, "eps_rule": "per_layer"}
    same, at_base, narrower = curves(BASE, {"eps": 1e-3}, layered, layered | {"base_width": 4})
    assert same == at_base
    # standard: gradients of the readout do not shrink, the others' as n^-1/2
    assert narrower != same
    base4 = dataclasses.replace(BASE, base_width=4, eps=1e-3, eps_rule="per_layer")
    assert base4.epsilons == pytest.approx(
        {"embedding": 5e-4, "hidden": 5e-4, "readout": 1e-3, "vector": 5e-4}
    )


def test_constants_of_adam_atan2_act():
    a, small, twice = 2.0, 1e-12, 8.0
    one, doubled, rate, flat = curves(
        ATAN2,
        {"learning_rate": 0.02},
        {"atan2_a": a},
        {"learning_rate": 0.01},
        {"atan2_a": twice, "atan2_b": small},
    )
    assert doubled == one != rate  # a is a factor on the rate
    assert flat != rate  # b towards 0: every step is a quarter turn


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "adam_atan2"])
def test_bfloat16_moments_are_another_program_and_cost_little(optimizer):
    full = dataclasses.replace(BASE, optimizer=optimizer)
    kept = dataclasses.replace(full, moment_dtype="bfloat16")
    assert program_of(full) != program_of(kept)
    (one,), (other,) = curves(full, {}), curves(kept, {})
    assert other[0] == pytest.approx(one[0], rel=1e-6)  # before the first update
    assert abs(other[-1] - one[-1]) > 1e-5
    # moments that are off by 2**-9 move the loss of a short run by little
    assert other[-1] == pytest.approx(one[-1], abs=0.02)
