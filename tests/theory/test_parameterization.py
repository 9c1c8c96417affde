"""Exponents, per-layer rates and shifts as properties; the paper's table is in test_tables.

A sum of five drawn numbers below 4 rounds by less than 5 * 4 * 2**-52 < 1e-14: 1e-12 is wide.
"""

from __future__ import annotations

import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from isolab.theory.parameterization import (
    ALL_ROLES,
    ALL_RULES,
    MATRIX_ROLES,
    PARAMETERIZATIONS,
    ROLES,
    Parameterization,
    Scaling,
    alignment_exponent,
    parameterization,
    per_layer_rates,
)
from isolab.theory.shifts import equivalence_shift

# in units of t, by the paper; the last two are Adam's
SHIFT_OF_C = {"sgd": -2, "adam": -1, "adafactor": 0, "spectral": -1, "whitened": -1}

exponents = st.floats(-2.0, 2.0)
alphas = st.floats(0.5, 1.0)
names = st.sampled_from(sorted(PARAMETERIZATIONS))
matrix_roles = st.sampled_from(MATRIX_ROLES)
rules = st.sampled_from(ALL_RULES)
widths = st.floats(1.0, 2.0**20)


@st.composite
def parameterizations(draw: st.DrawFn) -> Parameterization:
    scalings = [Scaling(draw(exponents), draw(exponents)) for _ in MATRIX_ROLES]
    return Parameterization("drawn", *scalings)


@given(parameterizations(), matrix_roles, matrix_roles, rules, alphas, exponents)
def test_shift_moves_the_rate_by_the_rules_multiple(p, moved_role, role, rule, alpha, t):
    rate = p.rate_exponent(role, rule, alpha)
    everywhere = p.shifted(t).rate_exponent(role, rule, alpha) - rate
    alone = p.shifted({moved_role: t}).rate_exponent(role, rule, alpha) - rate
    assert math.isclose(everywhere, SHIFT_OF_C[rule] * t, abs_tol=1e-12)
    # the shift of one role leaves the others' rates alone
    assert math.isclose(alone, everywhere if role == moved_role else 0.0, abs_tol=1e-12)


@given(parameterizations(), matrix_roles, exponents, st.floats(1.0, 1e6))
def test_shift_keeps_the_initial_function(p, role, t, n):
    moved = p.shifted(t)
    before = p.multiplier(role, n) * p.init_std(role, n)
    after = moved.multiplier(role, n) * moved.init_std(role, n)
    # Exponents up to 4 at log(1e6) = 14: relative error a few times 56 * 2**-52, below 1e-12.
    assert math.isclose(before, after, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "t"),
    [
        ("standard", "ntk", {"hidden": 0.5, "readout": 0.5}),
        ("mup", "mean_field", {"embedding": 0.5, "hidden": 0.5, "readout": 0.5}),
    ],
)
def test_each_class_holds_two_parameterizations_and_the_classes_differ(start, end, t):
    moved, target = parameterization(start).shifted(t), parameterization(end)
    assert [moved.scaling(role) for role in ROLES] == [target.scaling(role) for role in ROLES]
    assert moved.name != start
    # a + b does not change under a shift, and the readout's tells the classes apart
    assert target.weight_exponent("readout") == {"ntk": 0.5, "mean_field": 1.0}[end]


@given(alphas)
def test_embedding_and_vector_have_no_alignment_of_their_own_unless_measured(alpha):
    assert [alignment_exponent(role, alpha) for role in ROLES] == [0.0, alpha, alpha, 0.0]
    measured = {"hidden": 0.8, "readout": 0.3, "embedding": 0.1}
    assert [alignment_exponent(role, measured) for role in ROLES] == [0.1, 0.8, 0.3, 0.0]


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_vector_is_an_embedding_without_multiplier(name):
    p = parameterization(name)
    assert p.multiplier("vector", 512) == p.init_std("vector", 512) == 1.0
    assert p.rate_exponent("vector", "adam") == p.rate_exponent("vector", "adafactor") == 0.0
    like_embedding = p.gradient_exponent("embedding") - p.embedding.a
    assert p.gradient_exponent("vector") == like_embedding


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_gradient_exponents_are_those_of_a_linear_network(name):
    """Simulates embedding -> gain -> hidden -> readout, backwards by hand, and fits the slopes.

    The worst mean of squares, the gain's, has a relative variance of about 12 / n. At n = 128
    over 4 draws its relative standard deviation is 0.15, its root's log2 moves by 0.11, the slope
    over four doublings by 0.028: 0.12 is four of those. Exponents here come in steps of 0.5.
    """
    p = parameterization(name)
    rng = np.random.default_rng(0)
    outputs, sizes = 8, (128, 2048)
    logs = {role: [] for role in ROLES}
    for n in sizes:
        squares = {role: [] for role in ROLES}
        for _ in range(4):
            m = {role: p.multiplier(role, n) for role in MATRIX_ROLES}
            embedding = rng.normal(size=n) * p.init_std("embedding", n)
            hidden = rng.normal(size=(n, n)) * p.init_std("hidden", n)
            readout = rng.normal(size=(outputs, n)) * p.init_std("readout", n)
            x = m["embedding"] * embedding
            y = m["hidden"] * hidden @ x
            delta = rng.choice([-1.0, 1.0], size=outputs)  # the loss's gradient at the logits
            dy = m["readout"] * readout.T @ delta
            dx = m["hidden"] * hidden.T @ dy
            gradients = {
                "readout": m["readout"] * np.outer(delta, y),
                "hidden": m["hidden"] * np.outer(dy, x),
                "vector": dx * x,
                "embedding": m["embedding"] * dx,
            }
            for role, gradient in gradients.items():
                squares[role].append(np.mean(gradient**2))
        for role in ROLES:
            logs[role].append(0.5 * np.log2(np.mean(squares[role])))
    for role in ROLES:
        slope = (logs[role][1] - logs[role][0]) / np.log2(sizes[1] / sizes[0])
        assert abs(slope + p.gradient_exponent(role)) < 0.12


@given(names, rules, widths, widths)
def test_factors_are_powers_of_the_relative_width(name, rule, width, base_width):
    p, gamma = parameterization(name), {"hidden": 0.5, "readout": 3.0}
    rates = per_layer_rates(name, rule, width, base_width, "none", gamma)
    assert tuple(rates) == ALL_ROLES
    for role, rate in rates.items():
        power = math.log(rate / gamma.get(role, 1.0))
        c = p.rate_exponent(role, rule, "none")
        assert math.isclose(power, -c * math.log(width / base_width), abs_tol=1e-12)
    at_base = per_layer_rates(name, rule, width, width, gamma={"embedding": 10.0})
    assert at_base == dict.fromkeys(ALL_ROLES, 1.0) | {"embedding": 10.0}


@pytest.mark.parametrize(
    ("rule", "hidden", "others"),  # Table 8's rates: hidden weights; input weights and output's
    [("adam", 1.0, 0.0), ("sgd", 0.0, -1.0)],
)
def test_table_8_of_mup_has_its_rates_and_is_mup(rule, hidden, others):
    p = parameterization("mup_table8")
    wanted = {"hidden": hidden} | dict.fromkeys(["embedding", "readout", "tied", "bias"], others)
    assert {role: p.rate_exponent(role, rule) for role in wanted} == wanted
    assert (p.init_std("hidden", 64), p.init_std("readout", 64)) == (0.125, 1.0)
    assert p.multiplier("readout", 64) == 1 / 64
    assert equivalence_shift("mup", p) and not equivalence_shift("standard", p)


@given(parameterizations(), st.sampled_from(["sgd", "adam"]), alphas)
def test_a_tied_weight_moves_neither_output_by_more_than_the_width_allows(p, rule, alpha):
    c = p.rate_exponent("tied", rule, alpha)
    d = c + (p.gradient_exponent("tied") if rule == "sgd" else 0.0)
    margins = [p.embedding.a + d, p.readout.a + d - alpha]
    assert min(margins) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="two multipliers: ask for embedding and readout"):
        p.multiplier("tied", 64)


@pytest.mark.parametrize(("rule", "power"), [("spectral", 0.0), ("whitened", -0.5)])
@given(names, alphas, widths)
def test_hidden_updates_of_known_spectrum_need_no_alignment(rule, power, name, alpha, width):
    rates = per_layer_rates(name, rule, width, 16, alpha)
    adam = per_layer_rates(name, "adam", width, 16, alpha)
    wanted = (width / 16) ** (power + parameterization(name).hidden.a)
    assert rates.pop("hidden") == pytest.approx(wanted)
    assert rates == {role: rate for role, rate in adam.items() if role != "hidden"}


MUP = parameterization("mup")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parameterization("muP"), "unknown parameterization 'muP'; known: ['mean_field'"),
        (lambda: MUP.scaling("head"), "unknown role 'head'; known: ['bias', 'embedding', 'fixed'"),
        (lambda: MUP.rate_exponent("hidden", "lion"), "unknown rule 'lion'; known: ['adafactor'"),
        (lambda: MUP.rate_exponent("hidden", "adam", "half"), "unknown alignment 'half'"),
        (lambda: MUP.rate_exponent("hidden", "adam", 0.4), "must lie in [0.5, 1], got 0.4"),
        (lambda: alignment_exponent("hidden", {"hidden": 1.2}), "'hidden' must lie in [0, 1]"),
        (lambda: alignment_exponent("hidden", {"readout": 1}), "no number for role 'hidden'"),
        (lambda: alignment_exponent("hidden", {"head": 1}), "unknown role 'head'"),
        (lambda: MUP.multiplier("hidden", 0), "n must be a positive number, got 0"),
        (lambda: per_layer_rates("mup", "adam", 0, 64), "width must be a positive number, got 0"),
        (lambda: per_layer_rates("mup", "adam", 64, -1), "base_width must be a positive number"),
        (lambda: per_layer_rates("mup", "adam", 2, 1, gamma={"head": 1}), "unknown role 'head'"),
        (lambda: per_layer_rates("mup", "adam", 2, 1, gamma={"hidden": 0}), "gamma of 'hidden'"),
        (lambda: MUP.shifted({"vector": 0.5}), "cannot shift role 'vector'"),
        (lambda: MUP.shifted(math.inf), "must be finite, got inf"),
        (lambda: Scaling(0.0, math.nan), "exponent b must be finite, got nan"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
