"""Adam-atan2: values by hand, and no epsilon."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.adam_atan2 import UNIT_A, scale_by_adam_atan2

SEEDS = st.integers(0, 2**32 - 1)


def gradients(seed, steps=6, shape=(3, 4)):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(steps, *shape)) * 10 ** rng.uniform(-3, 1, size=shape))


def run(rule, grads):
    def step(state, g):
        updates, state = rule.update({"w": g}, state)
        return state, updates["w"]

    return jax.lax.scan(step, rule.init({"w": grads[0]}), grads)[1]


default = jax.jit(lambda grads: run(scale_by_adam_atan2(), grads))


def test_steps_by_hand():
    grads, b1, b2, a, b = gradients(0).astype(np.float64), 0.8, 0.6, 1.3, 0.7
    m = v = 0.0
    wanted = []
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        wanted.append(a * np.arctan2(m / (1 - b1**t), b * np.sqrt(v / (1 - b2**t))))
    got = run(scale_by_adam_atan2(b1, b2, a=a, b=b), jnp.float32(grads))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(seed=SEEDS, k=st.integers(-40, 40))
def test_bit_identical_when_the_loss_is_scaled_by_a_power_of_two(seed, k):
    # entries of about 1e-4..1e1 times 2**-40 have squares of 1e-32: float32 still holds them
    grads = gradients(seed)
    np.testing.assert_array_equal(default(grads * np.float32(2.0) ** k), default(grads))


def test_adam_is_not_bit_identical_under_the_same_scaling():
    adam = jax.jit(lambda grads: run(optax.scale_by_adam(0.9, 0.95, 1e-8), grads))
    assert np.any(np.asarray(adam(gradients(0) * 2.0**-20)) != np.asarray(adam(gradients(0))))


@settings(max_examples=20)
@given(seed=SEEDS, a=st.floats(0.1, 3))
def test_bounded_by_a_quarter_turn_of_a(seed, a):
    updates = run(scale_by_adam_atan2(a=a), gradients(seed, steps=3))
    assert np.abs(updates).max() <= a * np.pi / 2 * (1 + 1e-6)


def test_near_adam_for_small_ratios():
    # atan2(m, b v) -> m / (b v) where m is small beside v: alternating gradients, a = b
    grads = jnp.tile(jnp.array([[[1.0]], [[-1.0]]]), (200, 1, 1))
    adam = run(optax.scale_by_adam(0.9, 0.95, 0.0), grads)
    ours = run(scale_by_adam_atan2(0.9, 0.95, a=4.0, b=4.0), grads)
    ratio = float(jnp.abs(adam[-1, 0, 0]))
    assert 0.01 < ratio < 0.1
    # atan(r / 4) * 4 = r (1 - r**2 / 48 + ...)
    np.testing.assert_allclose(ours[-1], adam[-1], rtol=ratio**2 / 48 + 1e-4)


def test_moments_keep_the_wanted_dtype():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    for moment_dtype, wanted in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        rule = scale_by_adam_atan2(moment_dtype=moment_dtype)
        updates, state = rule.update(params, rule.init(params))
        assert updates["w"].dtype == jnp.bfloat16
        assert state.mu["w"].dtype == state.nu["w"].dtype == wanted


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_first_step_is_an_eighth_of_a_turn_of_a_for_every_beta_and_size(b1):
    updates = run(scale_by_adam_atan2(b1, 0.5), jnp.array([[3.0, -1e-12, 0.0]]))
    np.testing.assert_allclose(updates[0], [np.pi / 4, -np.pi / 4, 0], rtol=1e-5)
    unit = run(scale_by_adam_atan2(b1, 0.5, a=UNIT_A), jnp.full((4, 2), 1e-6))
    np.testing.assert_allclose(unit, 1.0, rtol=1e-5)
