"""Runs one by one on a CPU: what vmap gives, with bits that do not depend on the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.training.runs_axis import over_runs

IN_AXES = ({"w": 0, "count": None}, 0, None)
OUT_AXES = ({"w": 0, "count": None, "unused": 0}, 0)


def one_run(state, rate, tokens):
    w = state["w"] - rate * jnp.tanh(state["w"] @ tokens) @ tokens.T
    return {"w": w, "count": state["count"] + 1, "unused": None}, jnp.sum(w**2)


mapped = jax.jit(over_runs(one_run, IN_AXES, OUT_AXES))
vmapped = jax.jit(jax.vmap(one_run, IN_AXES, OUT_AXES))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31 - 1), runs=st.sampled_from([1, 2, 5]))
def test_one_by_one_is_vmap(seed, runs):
    rng = np.random.default_rng(seed)
    state = {"w": jnp.float32(rng.normal(size=(runs, 4, 3))), "count": jnp.int32(7)}
    rates, tokens = jnp.float32(rng.uniform(size=runs)), jnp.float32(rng.normal(size=(3, 6)))
    ours, sizes = mapped(state, rates, tokens)
    theirs, wanted = vmapped(state, rates, tokens)
    assert ours["count"] == theirs["count"] == 8
    assert ours["unused"] is None
    # float32 sums of 6 and 12 products, in another order
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sizes, wanted, rtol=1e-5)


def test_a_runs_bits_do_not_depend_on_its_batch():
    rng = np.random.default_rng(0)
    w, rates = jnp.float32(rng.normal(size=(3, 4, 3))), jnp.float32([0.1, 0.2, 0.3])
    tokens = jnp.float32(rng.normal(size=(3, 6)))
    together, _ = mapped({"w": w, "count": jnp.int32(0)}, rates, tokens)
    pair, _ = mapped({"w": w[1:], "count": jnp.int32(0)}, rates[1:], tokens)
    np.testing.assert_array_equal(together["w"][1:], pair["w"])
