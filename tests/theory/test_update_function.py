"""The drawn update functions are those of the optimizers."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isolab.optimizers.adam import scale_by_adam
from isolab.optimizers.adam_atan2 import ScaleByAdamAtan2State, scale_by_adam_atan2
from isolab.theory.update_function import update_function

CONSTANTS = [(1.0, 1.0), (4 / math.pi, 1.0), (0.5, 3.0)]


def taken(rule, state, ratios):
    """The rule's step where m / sqrt(v) is each ratio: betas of 0 keep nothing of the gradient."""
    updates, _ = rule.update(jnp.zeros(len(ratios)), state)
    return updates


def test_points_are_the_optimizers_steps():
    frame = update_function(CONSTANTS, [0.0, 1.0, 0.25], reach=3.0, points=31)
    ratios = frame.filter(function="Adam, eps = 0")["ratio"].to_numpy()
    # after a zero gradient, betas near 1 leave m and v as they were, bias correction nearly 1
    count, near = jnp.int32(2**30), 1 - 1e-7
    m, v = jnp.float32(ratios), jnp.ones(len(ratios))
    for a, b in CONSTANTS:
        rule = scale_by_adam_atan2(near, near, a=a, b=b)
        got = taken(rule, ScaleByAdamAtan2State(count, m, v), ratios)
        name = f"Adam-atan2, a = {a:.3g}, b = {b:.3g}"
        np.testing.assert_allclose(frame.filter(function=name)["update"], got, rtol=1e-5, atol=1e-6)
    for eps, name in (
        (0.0, "Adam, eps = 0"),
        (1.0, "Adam, eps = √v"),
        (0.25, "Adam, eps = 0.25 √v"),
    ):
        got = taken(scale_by_adam(near, near, eps), optax.ScaleByAdamState(count, m, v), ratios)
        np.testing.assert_allclose(frame.filter(function=name)["update"], got, rtol=1e-5, atol=1e-6)


def test_slope_and_bound_are_those_of_the_curve():
    frame = update_function(CONSTANTS, [], reach=1e-3, points=3)
    for (_, _), its in frame.group_by("optimizer", "function"):
        assert its["update"][-1] / its["ratio"][-1] == pytest.approx(its["slope"][0], rel=1e-5)
    far = update_function(CONSTANTS, [], reach=1e9, points=3)
    for _, its in far.group_by("function"):
        assert its["update"].max() == pytest.approx(its["bound"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "one function or more"),
        (([(0.0, 1.0)], []), r"constants \(0.0, 1.0\) is"),
        (([], [-1.0]), "eps_over_root is"),
        (([(1.0, 1.0)], [], 0.0), "a positive reach"),
    ],
)
def test_impossible_functions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        update_function(*arguments)
