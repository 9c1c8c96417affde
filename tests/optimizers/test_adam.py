"""Adam with eps by parameter and eps 0: optax's bits elsewhere, and moments as they are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.adam import adam, scale_by_adam

SEEDS = st.integers(0, 2**32 - 1)


def gradients(seed, steps=6, shape=(3, 4)):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(steps, *shape)) * 10 ** rng.uniform(-6, 1, size=shape))


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


@settings(max_examples=10)
@given(seed=SEEDS)
def test_each_parameter_has_its_own_eps(seed):
    grads = {"a": gradients(seed), "b": gradients(seed + 1)}
    together, _ = run(scale_by_adam(eps={"a": 1e-3, "b": jnp.float32(0.5)}), grads)
    for name, eps in (("a", 1e-3), ("b", 0.5)):
        alone, _ = run(scale_by_adam(eps=eps), grads[name])
        # another program, compiled without jit around it: rounding
        np.testing.assert_allclose(together[name], alone, rtol=1e-4, atol=1e-6)


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
