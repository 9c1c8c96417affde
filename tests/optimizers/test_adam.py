"""Adam with eps by parameter and eps 0, and Adam-atan2: values by hand, bits, moments' dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.adam import adam, scale_by_adam
from isolab.optimizers.adam_atan2 import UNIT_A, scale_by_adam_atan2

SEEDS = st.integers(0, 2**32 - 1)


def gradients(seed, steps=6, shape=(3, 4), least=-6):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(steps, *shape)) * 10 ** rng.uniform(least, 1, size=shape))


def run(rule, grads):
    def step(state, g):
        updates, state = rule.update(g, state)
        return state, updates

    first = jax.tree.map(lambda g: g[0], grads)
    state, updates = jax.lax.scan(step, rule.init(first), grads)
    return updates, state


@jax.jit
def both(grads, b1, b2, eps):
    ours = run(scale_by_adam(b1, b2, eps), grads)
    return ours, run(optax.scale_by_adam(b1, b2, eps), grads)


@settings(max_examples=25)
@given(seed=SEEDS, b1=st.floats(0, 0.99), b2=st.floats(0, 0.999), eps=st.floats(1e-30, 1e-2))
def test_the_same_bits_as_optax_where_eps_is_above_0(seed, b1, b2, eps):
    ours, theirs = both(gradients(seed), *map(jnp.float32, (b1, b2, eps)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


def test_nothing_over_nothing_is_nothing_and_something_over_nothing_is_infinite():
    grads = jnp.array([[1e-3, 0.0, 1e-30]] * 2)  # 1e-30 squared is 0 in float32
    updates, _ = run(scale_by_adam(eps=0.0), grads)
    np.testing.assert_allclose(updates[:, 0], 1.0, rtol=1e-5)
    np.testing.assert_array_equal(updates[:, 1:], [[0.0, np.inf]] * 2)
    theirs, _ = run(optax.scale_by_adam(0.9, 0.95, 0.0), grads)
    assert np.isnan(theirs[0, 1])  # what is mended
    lost, _ = run(scale_by_adam(eps=0.0), jnp.array([[jnp.nan]]))
    assert np.isnan(lost[0, 0])


by_eps = jax.jit(lambda grads, eps: run(scale_by_adam(eps=eps), grads)[0])


@settings(max_examples=10)
@given(seed=SEEDS)
def test_each_parameter_has_its_own_eps(seed):
    grads = {"a": gradients(seed), "b": gradients(seed + 1)}
    each = {"a": 1e-3, "b": 0.5}
    together = by_eps(grads, each)
    for name, eps in each.items():
        # another program: rounding
        np.testing.assert_allclose(together[name], by_eps(grads[name], eps), rtol=1e-4, atol=1e-6)


def test_moments_have_their_dtype_and_the_step_is_taken_from_them():
    grads = gradients(3)
    updates, state = run(scale_by_adam(eps=0.0, moment_dtype=jnp.bfloat16), jnp.asarray(grads))
    assert state.mu.dtype == state.nu.dtype == jnp.bfloat16
    assert scale_by_adam().init(jnp.ones(3, jnp.bfloat16)).mu.dtype == jnp.float32
    assert updates.dtype == jnp.float32

    def rounded(x):
        return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))

    m = v = np.zeros_like(grads[0])
    for t, g in enumerate(grads, 1):
        m, v = rounded(0.1 * g + 0.9 * m), rounded(0.05 * g**2 + 0.95 * v)
        wanted = m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.95**t))
        # a sum that rounds to the other neighbour differs by one part in 256, here and there
        np.testing.assert_allclose(updates[t - 1], wanted, rtol=0.02)
    exact, _ = run(scale_by_adam(eps=0.0), jnp.asarray(grads))
    assert 1e-4 < np.abs(exact[-1] - updates[-1]).max() < 0.1


def test_decay_is_decoupled_and_absent_without_its_argument():
    params, grads = jnp.array([4.0, -2.0]), jnp.array([1.0, 1.0])

    def update(**options):
        tx = adam(0.5, eps=0.0, **options)
        return tx.update(grads, tx.init(params), params)[0]

    np.testing.assert_allclose(update(weight_decay=0.1) - update(), -0.05 * params, rtol=1e-5)
    assert len(adam(0.5).init(params)) == 2  # moments and the rate's: as optax.adam's


# --- Adam-atan2 ---

default = jax.jit(lambda grads: run(scale_by_adam_atan2(), grads)[0])
by_a = jax.jit(lambda grads, a: run(scale_by_adam_atan2(a=a), grads)[0])


def test_steps_by_hand():
    grads, b1, b2, a, b = gradients(0, least=-3).astype(np.float64), 0.8, 0.6, 1.3, 0.7
    m = v = 0.0
    wanted = []
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        wanted.append(a * np.arctan2(m / (1 - b1**t), b * np.sqrt(v / (1 - b2**t))))
    got, _ = run(scale_by_adam_atan2(b1, b2, a=a, b=b), jnp.float32(grads))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(seed=SEEDS, k=st.integers(-40, 40))
def test_bit_identical_when_the_loss_is_scaled_by_a_power_of_two(seed, k):
    # entries of about 1e-4..1e1 times 2**-40 have squares of 1e-32: float32 still holds them
    grads = gradients(seed, least=-3)
    np.testing.assert_array_equal(default(grads * np.float32(2.0) ** k), default(grads))


def test_adam_is_not_bit_identical_under_the_same_scaling():
    grads = gradients(0, least=-3)
    one, scaled = (run(scale_by_adam(), grads * scale)[0] for scale in (1.0, np.float32(2.0**-20)))
    assert np.any(np.asarray(one) != np.asarray(scaled))


@settings(max_examples=20)
@given(seed=SEEDS, a=st.floats(0.1, 3))
def test_bounded_by_a_quarter_turn_of_a(seed, a):
    updates = by_a(gradients(seed, least=-3), a)
    assert np.abs(updates).max() <= a * np.pi / 2 * (1 + 1e-6)


def test_near_adam_for_small_ratios():
    # atan2(m, b v) -> m / (b v) where m is small beside v: alternating gradients, a = b
    grads = jnp.tile(jnp.array([[[1.0]], [[-1.0]]]), (200, 1, 1))
    adam, _ = run(optax.scale_by_adam(0.9, 0.95, 0.0), grads)
    ours, _ = run(scale_by_adam_atan2(0.9, 0.95, a=4.0, b=4.0), grads)
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
    updates, _ = run(scale_by_adam_atan2(b1, 0.5), jnp.array([[3.0, -1e-12, 0.0]]))
    np.testing.assert_allclose(updates[0], [np.pi / 4, -np.pi / 4, 0], rtol=1e-5)
    unit, _ = run(scale_by_adam_atan2(b1, 0.5, a=UNIT_A), jnp.full((4, 2), 1e-6))
    np.testing.assert_allclose(unit, 1.0, rtol=1e-5)
