"""Equivalent parameterizations: in arithmetic, and as training curves that are the same.

Where the width is a power of 4 every factor n**t is a power of two, and multiplying by it commutes
with rounding: what is left is the order in which the compiler adds, two units in the last place of
a float32 loss, grown a little by twenty steps. Measured: below 6e-7 relative; ``SAME`` is 2e-6.
"""

from __future__ import annotations

import dataclasses
import math
import re

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from isolab.measure.twins import curve_differences, equivalent_config
from isolab.theory.parameterization import (
    MATRIX_ROLES,
    PARAMETERIZATIONS,
    RULES,
    parameterization,
)
from isolab.theory.shifts import equivalence_classes, equivalence_shift
from isolab.training.config import RunConfig
from isolab.training.train import train

SAME = 2e-6
CLASSES = [("standard", "ntk"), ("mup", "mean_field")]
BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=1, batch_size=4,
    steps=20, warmup_steps=2, evaluate_every=10, validation_windows=32,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip

# What each optimizer needs for an exact equality. For Adafactor, optax.adafactor's clipping and its
# factored moments ignore the gradient's scale, its floor of 1e-3 under the parameter's rms is out
# of reach (n**-0.5 > 1e-3 up to a million), and its 1e-30 is below any squared gradient here.
OPTIMIZERS = {
    "sgd": {"learning_rate": 0.1},
    "adam": {"learning_rate": 0.01, "eps": 1e-30},
    "adam_atan2": {"learning_rate": 0.01},
    "adafactor": {"learning_rate": 0.05, "weight_decay": 0.001},
    "lion": {"learning_rate": 0.003},
    "muon": {"learning_rate": 0.01, "eps": 1e-30},
}


def run_config(optimizer, name, **changes):
    return dataclasses.replace(
        BASE, optimizer=optimizer, parameterization=name, **OPTIMIZERS[optimizer], **changes
    )


def curve(result):
    return np.array([*result.curve_train_loss, *result.curve_validation_loss])


# --- arithmetic ---

names = st.sampled_from(list(PARAMETERIZATIONS))
shifts = st.fixed_dictionaries({role: st.floats(-2, 2) for role in MATRIX_ROLES})


def test_the_named_ones_fall_into_two_classes():
    assert equivalence_classes() == CLASSES
    assert equivalence_classes(["mup", "standard"]) == [("mup",), ("standard",)]


@given(names, shifts)
def test_a_shift_is_found_again(name, t):
    p = parameterization(name)
    found = equivalence_shift(p, p.shifted(t))
    assert found
    for role in MATRIX_ROLES:  # sums of two numbers below 4
        assert math.isclose(found.shifts[role], t[role], abs_tol=1e-14)


@given(names, shifts, st.sampled_from(RULES), st.sampled_from(["full", "none"]))
def test_the_largest_stable_rate_moves_as_the_rate_must(name, t, rule, alignment):
    p = parameterization(name)
    q = p.shifted(t)
    for role, power in equivalence_shift(p, q).rate_powers(rule).items():
        moved = p.rate_exponent(role, rule, alignment) - q.rate_exponent(role, rule, alignment)
        assert math.isclose(moved, power, abs_tol=1e-12)


def test_where_there_is_no_shift_the_reason_names_the_role():
    none = equivalence_shift("ntk", "mean_field")
    assert not none
    assert none.shifts is None
    assert none.reason == "a + b of the readout is 1/2 in ntk and 1 in mean_field"


@given(
    st.sampled_from(CLASSES),
    st.sampled_from(["sgd", "adam", "adafactor"]),
    st.sampled_from(["global", "full", "none"]),
    st.sampled_from([16, 24, 64]),
    st.sampled_from([8, 16, 24]),
    st.floats(0.1, 10),
)
def test_every_rate_moves_by_its_power_of_the_width(pair, optimizer, rule, width, base, gamma):
    changes = {"rate_rule": rule, "width": width, "base_width": base, "gamma_hidden": gamma}
    config = run_config(optimizer, pair[0], **changes)
    other = equivalent_config(config, pair[1])
    powers = equivalence_shift(*pair).rate_powers(optimizer)
    for role in MATRIX_ROLES:
        expected = config.rates[role] * width ** powers[role]
        assert math.isclose(other.rates[role], expected, rel_tol=1e-12)
    assert other.rates["vector"] == config.rates["vector"]
    back = equivalent_config(other, pair[0])
    assert math.isclose(back.gamma_hidden, gamma, rel_tol=1e-12)


# --- training ---


@pytest.mark.parametrize("width", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pair", CLASSES)
@pytest.mark.parametrize(
    "optimizer",
    [name if name == "adam" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_equivalent_runs_have_one_curve(optimizer, pair, width):
    config = run_config(optimizer, pair[0], width=width)
    other = equivalent_config(config, pair[1])
    powers = equivalence_shift(*pair).rate_powers(optimizer if optimizer in RULES else "adam")
    # What it takes to fail: the rate left where it was; for Adafactor, whose rate must stay, moved.
    wrong = {f"gamma_{role}": 1.0 for role in MATRIX_ROLES}
    if not any(powers.values()):
        wrong = dict.fromkeys(wrong, 1 / width**0.5)
    (ours,), (theirs, control) = (
        train([config]),
        train([other, dataclasses.replace(other, **wrong)]),
    )
    np.testing.assert_allclose(curve(theirs), curve(ours), rtol=SAME)
    assert abs(curve(ours)[2] - curve(ours)[0]) > 1e-3  # it learned, so there is something to equal
    assert np.max(np.abs(curve(control) / curve(ours) - 1)) > 1000 * SAME


def test_an_eps_as_large_as_the_gradients_parts_the_curves():
    config = dataclasses.replace(run_config("adam", "mup", width=16), eps=1e-3)
    other = equivalent_config(config, "mean_field")
    (ours,), (theirs, _) = train([config]), train([other, other])  # programs compiled above
    assert np.max(np.abs(curve(theirs) / curve(ours) - 1)) > 1000 * SAME


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: equivalent_config(BASE, "mup"),
            "no run in 'mup' has the curve of one in 'standard': a + b of the readout is 1/2 in",
        ),
        (lambda: equivalent_config(BASE, "sp"), "unknown parameterization 'sp'"),
        (
            lambda: equivalent_config(dataclasses.replace(BASE, mlp_ratio=4), "ntk"),
            "mlp_ratio is 4; allowed: 1, as the MLP's second matrix has fan-in mlp_ratio * width",
        ),
        (
            lambda: equivalent_config(dataclasses.replace(BASE, optimizer="adamw"), "ntk"),
            "weight_decay is 0.1; allowed: 0",
        ),
        (
            lambda: equivalence_shift("standard", "mup").rate_powers("adam"),
            "no rates make the two train alike: a + b of the readout",
        ),
        (
            lambda: equivalence_shift("standard", "ntk").rate_powers("lion"),
            "unknown rule 'lion'; known: ['adafactor', 'adam', 'sgd'",
        ),
    ],
)
def test_errors_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_same_parameterization_is_the_same_run():
    config = dataclasses.replace(BASE, mlp_ratio=4)
    assert equivalent_config(config, "standard") is config


def curve_rows(**losses):
    return pl.DataFrame(
        {
            "optimizer": ["adam"] * len(losses),
            "parameterization": list(losses),
            "curve_train_loss": list(losses.values()),
            "curve_validation_loss": list(losses.values()),
        }
    )


def test_curve_differences_are_the_largest_relative_ones():
    runs = curve_rows(standard=[4.0, 2.0], ntk=[4.0, 2.2], mup=[5.0, 2.0])
    found = {row[1:3]: row[3:] for row in curve_differences(runs).rows()}
    assert found["standard", "ntk"] == (True, pytest.approx(0.1))
    assert found["standard", "mup"] == (False, pytest.approx(0.25))
    assert found["ntk", "mup"] == (False, pytest.approx(0.25))


def test_two_curves_of_one_parameterization_are_refused():
    runs = pl.concat([curve_rows(ntk=[1.0])] * 2)
    with pytest.raises(ValueError, match=r"2 runs share .*: keep one run of each"):
        curve_differences(runs)
    with pytest.raises(ValueError, match="curve_train_loss"):
        curve_differences(runs.drop("curve_train_loss"))
