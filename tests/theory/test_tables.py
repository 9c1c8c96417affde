"""The table of CLAIMS section 2 out of the rule, and the solver against definition and simulation.

Exponents in the table are sums of halves, exact in binary, and compared with ``==``. Typed ones are
sums of at most five numbers below 3, whose rounding is below 1e-14; 1e-9, below which the solver
takes two exponents to be equal, is far above that and far below any exponent that matters.
"""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings

from isolab.theory.parameterization import MATRIX_ROLES, PARAMETERIZATIONS, RULES, fraction_text
from isolab.theory.tables import exponents, rate_lines, solve

CONSTANTS = """
standard   | 0 / 0 / 0      | 0 / 1/2 / 1/2   | 1/2 / 1/2 / 0
ntk        | 0 / 1/2 / 1/2  | 0 / 0 / 0       | 1/2 / 1 / 1/2
mup        | -1/2 / 0 / 1/2 | 1/2 / 1/2 / 1/2 | 1/2 / 1 / 1/2
mean_field | 0 / 1/2 / 1    | 0 / 0 / 0       | 1 / 3/2 / 1
"""

# Largest stable rate as a power of the width: full, then no alignment.
POWERS = """
standard: embedding   | 1/2, 1/2  | 0, 0       | 0, 0
standard: hidden      | -1/2, 0   | -1, -1/2   | -1/2, 0
standard: readout     | -1, -1/2  | -1, -1/2   | -1/2, 0
ntk: embedding        | 1/2, 1/2  | 0, 0       | 0, 0
ntk: hidden           | 1/2, 1    | -1/2, 0    | -1/2, 0
ntk: readout          | 0, 1/2    | -1/2, 0    | -1/2, 0
mup: embedding        | 0, 0      | -1/2, -1/2 | 0, 0
mup: hidden           | 0, 1/2    | -1, -1/2   | -1/2, 0
mup: readout          | 0, 1/2    | -1/2, 0    | 0, 1/2
mean_field: embedding | 1, 1      | 0, 0       | 0, 0
mean_field: hidden    | 1, 3/2    | -1/2, 0    | -1/2, 0
mean_field: readout   | 1, 3/2    | 0, 1/2     | 0, 1/2
"""


def lines(table):
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def table_of_claims():
    constants = {
        name: [[float(Fraction(x)) for x in re.split(r" / ", cell)] for cell in cells]
        for name, *cells in lines(CONSTANTS)
    }
    for place, *cells in lines(POWERS):
        name, role = place.split(": ")
        a, b, g = (column[MATRIX_ROLES.index(role)] for column in constants[name])
        for rule, cell in zip(RULES, cells, strict=True):
            for alignment, power in zip(("full", "none"), cell.split(", "), strict=True):
                yield (name, rule, alignment, role, a, b, g, float(Fraction(power)))


def test_every_cell_of_the_table():
    expected = set(table_of_claims())
    columns = ("parameterization", "rule", "alignment", "role", "a", "b", "g", "power")
    found = exponents()
    assert len(expected) == 4 * 3 * 2 * 3 == found.height
    assert set(found.select(columns).iter_rows()) == expected
    assert (found["c"] + found["power"] == 0).all()


def test_rate_lines_are_straight_with_the_slope_of_the_table():
    widths = [32, 64, 256, 4096]
    found = rate_lines(widths, base_width=64)
    keys = ["parameterization", "rule", "alignment", "role"]
    joined = found.join(exponents(), on=keys, validate="m:1")
    assert joined.height == found.height == 72 * len(widths)
    slopes = joined.with_columns(
        error=pl.col("factor").log() - pl.col("power") * (pl.col("width") / 64).log()
    )
    assert slopes["error"].abs().max() < 1e-12
    assert (found.filter(width=64)["factor"] == 1).all()
    cell = {"parameterization": "ntk", "rule": "sgd", "alignment": "none"}
    found = rate_lines([16], 64).filter(**cell)
    assert found["factor"].to_list() == [0.5, 0.25, 0.5]  # (1/4)**(1/2, 1, 1/2)


# --- the solver ---

typed = st.floats(-1.5, 1.5)
pairs = st.tuples(typed, typed)
rules = st.sampled_from(RULES)
alphas = st.floats(0.5, 1.0)


def stable(a_embedding, a_hidden, a_readout, extra):
    """Pairs of a stable start, from the multipliers' exponents and how far the logits shrink."""
    return (
        (a_embedding, -a_embedding),
        (a_hidden, 0.5 - a_hidden),
        (a_readout, 0.5 + extra - a_readout),
    )


@given(pairs, pairs, pairs, alphas, rules)
def test_the_common_rate_is_the_largest_that_no_role_forbids(e, h, r, alpha, rule):
    solution = solve(e, h, r, alpha, rule)
    margins, limit = solution.margins, max(solution.c.values())
    assume(not any(1e-10 < limit - c < 1e-8 for c in solution.c.values()))  # a tie or none
    assert min(margins.values()) == 0.0
    for role, (a, b) in zip(MATRIX_ROLES, (e, h, r), strict=True):
        # a + d - alpha at this rate, by definition
        d = limit + {"sgd": solution.g[role], "adam": 0.0, "adafactor": b}[rule]
        assert math.isclose(margins[role], a + d - solution.alpha[role], abs_tol=1e-12)
    assert set(solution.binding) == {role for role, margin in margins.items() if margin <= 1e-9}


@given(typed, typed, typed, st.floats(0, 1), st.floats(0, 1))
def test_alignment_by_role_moves_that_role_alone(a_e, a_h, a_r, alpha_hidden, alpha_readout):
    given_pairs = stable(a_e, a_h, a_r, 0)
    measured = {"hidden": alpha_hidden, "readout": alpha_readout}
    by_role, full = solve(*given_pairs, measured), solve(*given_pairs, 1.0)
    assert by_role.c["embedding"] == full.c["embedding"]
    assert math.isclose(by_role.c["hidden"], full.c["hidden"] - 1 + alpha_hidden, abs_tol=1e-12)
    assert math.isclose(by_role.c["readout"], full.c["readout"] - 1 + alpha_readout, abs_tol=1e-12)


@given(st.sampled_from(MATRIX_ROLES), st.one_of(st.just(0.0), st.floats(-1, 1)), typed)
def test_an_unstable_initialization_names_its_role(role, off, a):
    assume(off == 0 or abs(off) > 1e-6)
    given_pairs = dict(zip(MATRIX_ROLES, stable(a, a, a, 0), strict=True))
    given_pairs[role] = (given_pairs[role][0] + off, given_pairs[role][1])
    solution = solve(**given_pairs)
    harmless = off == 0 or (role == "readout" and off > 0)  # logits that start at zero
    assert solution.unstable_roles == (() if harmless else (role,))
    assert math.isclose(solution.initial_powers[role], -off, abs_tol=1e-9)
    assert ("initialization is stable." in str(solution)) == harmless
    assert (f" for {role}." in str(solution)) != harmless


SIZES = (2**10, 2**16)


def moves(solution, n, rng):
    """Returns the rms move of each role's output by one step at rate n**-c, fully aligned.

    Embedding -> hidden -> readout, the derivatives by hand. A hidden matrix with Gaussian entries
    of standard deviation s turns x into a Gaussian of standard deviation s * |x|, and an update
    outer(u, x) turns x into u * |x|**2, so that no n x n matrix is needed.
    """
    p, c, rule = solution.parameterization, solution.c, solution.rule
    m = {role: n ** -p.scaling(role).a for role in MATRIX_ROLES}
    s = {role: n ** -p.scaling(role).b for role in MATRIX_ROLES}
    x0 = m["embedding"] * s["embedding"] * rng.normal(size=n)
    x1 = m["hidden"] * s["hidden"] * np.linalg.norm(x0) * rng.normal(size=n)
    g_logit = 1.0  # one logit whose loss has slope 1
    g1 = m["readout"] * s["readout"] * rng.normal(size=n) * g_logit
    g0 = m["hidden"] * s["hidden"] * np.linalg.norm(g1) * rng.normal(size=n)

    def step(role, outer_left, outer_right):
        """Move of the output, by -rate * the rule's step for the gradient outer(left, right)."""
        rate = n ** -c[role]
        if rule == "sgd":
            left, right = outer_left, outer_right
        else:  # entries of size one; Adafactor then takes the size of the weights
            left, right = np.sign(outer_left), np.sign(outer_right)
            rate *= s[role] if rule == "adafactor" else 1.0
        inputs = {"embedding": np.ones(1), "hidden": x0, "readout": x1}[role]
        return m[role] * rate * left * float(right @ inputs)

    outputs = {
        "embedding": step("embedding", m["embedding"] * g0, np.ones(1)),
        "hidden": step("hidden", m["hidden"] * g1, x0),
        "readout": step("readout", np.array([m["readout"] * g_logit]), x1),
    }
    return {role: float(np.sqrt(np.mean(y**2))) for role, y in outputs.items()}


def slopes(solution):
    """Returns the slope of each role's log move against log width."""
    small, large = (moves(solution, n, np.random.default_rng(0)) for n in SIZES)
    return {r: math.log(large[r] / small[r]) / math.log(SIZES[1] / SIZES[0]) for r in MATRIX_ROLES}


@settings(max_examples=30)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 0.5), rules)
def test_steps_at_the_largest_rates_move_outputs_alike_at_every_width(a_e, a_h, a_r, extra, rule):
    """One simulated step at two widths that are a factor of 64 apart.

    The move's square is a mean over n >= 1024 Gaussians times up to two more such means, whose
    relative standard deviations are sqrt(2 / 1024) = 0.044 each: in log64 of the root, 3 * 0.022
    / log(64) = 0.016 at worst; 0.05 is three of those, and the exponents tested differ by more.
    """
    solution = solve(*stable(a_e, a_h, a_r, extra), "full", rule)
    assert all(abs(slope) < 0.05 for slope in slopes(solution).values())
    faster = dataclasses.replace(solution, c={role: c - 0.5 for role, c in solution.c.items()})
    assert all(abs(slope - 0.5) < 0.05 for slope in slopes(faster).values())


def named(name, rule):
    p = PARAMETERIZATIONS[name]
    return solve(p.embedding, p.hidden, p.readout, "full", rule)


@pytest.mark.parametrize(
    ("name", "rule", "c", "binding", "features"),
    [
        ("standard", "adam", 1.0, ("hidden", "readout"), True),
        ("standard", "sgd", 1.0, ("readout",), False),
        ("ntk", "sgd", 0.0, ("readout",), False),  # the kernel regime
        ("mup", "sgd", 0.0, MATRIX_ROLES, True),
        ("mean_field", "sgd", -1.0, MATRIX_ROLES, True),
        ("mup", "adam", 1.0, ("hidden",), True),
        ("mup", "adafactor", 0.5, ("hidden",), True),
    ],
)
def test_what_limits_one_rate_for_all(name, rule, c, binding, features):
    solution = named(name, rule)
    assert max(solution.c.values()) == c == PARAMETERIZATIONS[name].global_rate_exponent(rule)
    assert solution.binding == binding
    text = str(solution)
    assert f"the limit of {' and '.join(binding)}." in text
    assert ("the readout alone learns" in text) == (not features)


def test_the_printed_solution_is_its_table_and_what_limits_the_rates():
    assert str(solve()).splitlines() == [
        "| role | a | b | alpha | g | c | rate | initial output |",
        "|---|---|---|---|---|---|---|---|",
        "| embedding | 0 | 0 | 0 | 1/2 | 0 | n^0 | n^0 |",
        "| hidden | 0 | 1/2 | 1 | 1/2 | 1 | n^(-1) | n^0 |",
        "| readout | 0 | 1/2 | 1 | 0 | 1 | n^(-1) | n^0 |",
        "",
        "- Adam at width n: a role's largest stable rate goes as n^-c, c = alpha - a. Its updates "
        "then move the role's output by the same amount at every width.",
        "- The initialization is stable.",
        "- One rate for all roles: n^(-1) at most, the limit of hidden and readout. It moves the "
        "output of embedding by n^(-1) only.",
    ]
    unstable = str(solve((0.5, -1.0), (0, 0.25), (0, 0.25)))
    assert "a + b must be 0 for embedding, 1/2 for hidden, 1/2 or more for readout." in unstable


def test_its_table_is_the_row_of_exponents():
    ours = named("ntk", "sgd").table().drop("alpha")
    cell = exponents().filter(parameterization="ntk", rule="sgd", alignment="full")
    assert ours.equals(cell.select(ours.columns))


@given(st.integers(-40, 40), st.integers(1, 16))
def test_exponents_are_written_as_fractions(numerator, denominator):
    text = fraction_text(numerator / denominator)
    assert Fraction(text) == Fraction(numerator, denominator)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve(hidden=(0, math.nan)), "b of hidden must be a finite number, got nan"),
        (lambda: solve(readout=("1/2", 0)), "a of readout must be a finite number, got '1/2'"),
        (lambda: solve(readout=0.5), "readout must be a pair (a, b) of numbers, got 0.5"),
        (lambda: solve(alignment=0.4), "must lie in [0.5, 1], got 0.4"),
        (lambda: solve(alignment=math.nan), "must lie in [0.5, 1], got nan"),
        (lambda: solve(alignment="half"), "unknown alignment 'half'; allowed: ['full', 'none']"),
        (lambda: solve(alignment={"hidden": 1.0}), "no number for role 'readout'"),
        (lambda: solve(alignment={"hidden": 2.0, "readout": 1}), "'hidden' must lie in [0, 1]"),
        (lambda: solve(rule="lion"), "unknown rule 'lion'; known: ['adafactor', 'adam', 'sgd'"),
        (lambda: rate_lines([0], 64), "width must be a positive number, got 0"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
