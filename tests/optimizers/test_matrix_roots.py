"""Inverse square roots: against NumPy in float64, each other, and the edges."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.matrix_roots import INVERSE_SQRT, inverse_sqrt_eigh, inverse_sqrt_newton

ROOTS = sorted(INVERSE_SQRT)
SEEDS = st.integers(0, 2**32 - 1)
eigh, newton = jax.jit(inverse_sqrt_eigh), jax.jit(inverse_sqrt_newton)


def spd(seed: int, n: int, log_condition: float, scale: float = 1.0) -> np.ndarray:
    """A random rotation of a random spectrum whose ends are ``scale`` and scale / condition."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
    powers = np.concatenate([[0.0, 1.0], rng.uniform(size=n - 2)]) * -log_condition
    return (rotation * (scale * 10.0**powers)[None]) @ rotation.T


def by_hand(a: np.ndarray, damping: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.asarray(a, np.float64))
    return (vectors * ((values + damping * values[-1]) ** -0.5)[None]) @ vectors.T


def relative(got, wanted):
    return np.linalg.norm(np.asarray(got, np.float64) - wanted) / np.linalg.norm(wanted)


@settings(max_examples=40)
@given(
    seed=SEEDS,
    log_condition=st.floats(0, 4),
    scale=st.sampled_from([1e-33, 1e-12, 1.0, 1e6, 1e36]),
    damping=st.sampled_from([0.0, 1e-7, 1e-3]),
)
def test_both_methods_are_the_inverse_square_root(seed, log_condition, scale, damping):
    a = np.float32(spd(seed, 12, log_condition, scale))
    wanted = by_hand(a, damping)
    # An error of a few eps in A moves the smallest eigenvalue by that much times the condition
    # number, its inverse square root by half of it: at 1e4 some 6e-8 * 1e4 = 6e-4.
    limit = 1e-5 + 1e-3 * 10 ** (log_condition - 4)
    assert relative(eigh(a, damping), wanted) < limit
    # newton's damping is relative to an estimate of the largest eigenvalue, a bit below it
    assert relative(newton(a, damping), wanted) < limit + 0.1 * (damping > 1e-7)
    assert relative(newton(a, damping), np.asarray(eigh(a, damping), np.float64)) < (
        1e-3 if damping < 1e-3 else 0.1
    )


@settings(max_examples=15)
@given(seed=SEEDS, log_condition=st.floats(0, 8))
def test_float64_is_exact_to_float64(seed, log_condition):
    with jax.enable_x64(True):
        a = spd(seed, 8, log_condition)
        limit = 1e-13 * 10**log_condition + 1e-12
        for root in (eigh, newton):
            got = root(a, 0.0)
            assert got.dtype == jnp.float64
            assert relative(got, by_hand(a, 0.0)) < limit


@pytest.mark.parametrize("scale", [1e-17, 2.0**-28, 1.0, 2.0**32, 1e17])
@pytest.mark.parametrize("name", ROOTS)
def test_damping_bounds_the_root_of_a_singular_matrix(name, scale):
    vector = scale * np.arange(1.0, 5.0)
    root = INVERSE_SQRT[name](jnp.float32(np.outer(vector, vector)), 1e-4)
    largest = vector @ vector
    wanted = by_hand(np.outer(vector, vector), 1e-4)
    np.testing.assert_allclose(root, wanted, rtol=2e-3, atol=1e-3 * np.abs(wanted).max())
    assert np.linalg.norm(root, 2) == pytest.approx((1e-4 * largest) ** -0.5, rel=2e-3)


@pytest.mark.parametrize("name", ROOTS)
def test_derivatives_are_those_of_differences_where_eigenvalues_nearly_coincide_too(name):
    direction = np.random.default_rng(0).normal(size=(4, 4))
    direction += direction.T
    a = np.diag([3.0, 3.0, 1.0, 0.1])  # damping's own share is at the largest, which is double
    a[0, 0] += 1e-3

    def moved(t, damping):
        return INVERSE_SQRT[name](jnp.asarray(a + t * direction), damping + t)

    with jax.enable_x64(True):
        _, got = jax.jvp(lambda t: moved(t, 0.0), (0.0,), (1.0,))
        wanted = (by_hand(a + 1e-6 * direction, 1e-6) - by_hand(a - 1e-6 * direction, -1e-6)) / 2e-6
        # newton's damping is relative to an estimate of the largest eigenvalue
        assert relative(got, wanted) < (1e-5 if name == "eigh" else 1e-2)
        slopes = jax.grad(lambda t: jnp.sum(moved(t, 0.0)))(0.0)
        assert float(slopes) == pytest.approx(float(got.sum()), rel=1e-9)


@pytest.mark.parametrize("name", ROOTS)
def test_zero_and_nan_stay_in_their_own_matrix(name):
    good = jnp.float32(spd(0, 5, 1.0))
    batch = jnp.stack([good, jnp.zeros((5, 5)), jnp.full((5, 5), jnp.nan), 4 * good])
    root = jax.jit(INVERSE_SQRT[name])
    got = root(batch, 1e-7)
    alone = root(good[None], 1e-7)[0]
    np.testing.assert_array_equal(got[1], np.zeros((5, 5)))
    assert jnp.isnan(got[2]).all()
    # newton iterates until the last of a batch is done, and one more step moves a root by rounding
    np.testing.assert_allclose(got[0], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[3], alone / 2, rtol=1e-5, atol=1e-5)


def test_many_batched_decompositions_in_one_program_do_not_deadlock():
    # jaxlib 0.10.2 hung here on a CPU, for good, when each of the sixteen was one batched call.
    script = """
        import jax, jax.numpy as jnp
        from isolab.optimizers.matrix_roots import inverse_sqrt_eigh
        x = jax.random.normal(jax.random.key(0), (16, 4, 64, 80))
        every = [matrix @ matrix.mT for matrix in x]
        roots = jax.jit(lambda m: [jax.vmap(inverse_sqrt_eigh)(a) for a in m])
        for _ in range(5):
            out = jax.block_until_ready(roots(every))
        print(float(jnp.linalg.norm(out[3][1] @ every[3][1] @ out[3][1] - jnp.eye(64))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) < 1e-2
