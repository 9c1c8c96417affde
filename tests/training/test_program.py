"""Parts of a compiled run, by definition: its schedule, its divergence, and runs one by one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.training.program import schedule_factor
from isolab.training.runs_axis import over_runs
from isolab.training.train import divergence_step


@functools.partial(jax.jit, static_argnums=0)
def factors_of(kind, t, steps, warmup):
    return jax.vmap(lambda t: schedule_factor(kind, t, steps, warmup))(t)


@settings(max_examples=30)
@given(steps=st.integers(2, 300), share=st.floats(0, 1))
def test_schedules_by_definition(steps, share):
    warmup = int(share * steps)
    t = np.arange(steps)
    warm = np.minimum(1, (t + 1) / max(warmup, 1))
    done = np.clip((t - warmup) / max(steps - warmup, 1), 0, 1)
    wanted = {
        "constant": warm,
        "linear": warm * (1 - done),
        "cosine": warm * (1 + np.cos(np.pi * done)) / 2,
    }
    for kind, factors in wanted.items():
        got = factors_of(kind, np.arange(300), steps, warmup)[:steps]
        np.testing.assert_allclose(got, factors, rtol=1e-4, atol=1e-5)


@settings(max_examples=50)
@given(every=st.integers(1, 4), intervals=st.integers(1, 5), data=st.data())
def test_divergence_step_is_the_first_that_never_recovers(every, intervals, data):
    losses = np.ones(every * intervals)
    held_out = np.array(
        [2.0, *(data.draw(st.sampled_from([1.0, 2.0, 3.0, np.nan])) for _ in range(intervals))]
    )
    at = data.draw(st.none() | st.integers(0, len(losses) - 1))
    if at is not None:
        losses[at] = np.inf
    found = divergence_step(losses, held_out, every)
    if at is not None:
        assert found == at + 1
        return
    fine = [i for i, v in enumerate(held_out) if v <= 2.0]
    assert found == (None if fine[-1] == intervals else (fine[-1] + 1) * every)


STACKED = ({"w": True, "count": False}, True, False)
STACKED_OUT = ({"w": True, "count": False, "unused": True}, True)


def one_run(state, rate, tokens):
    w = state["w"] - rate * jnp.tanh(state["w"] @ tokens) @ tokens.T
    return {"w": w, "count": state["count"] + 1, "unused": None}, jnp.sum(w**2)


mapped = jax.jit(over_runs(one_run, STACKED, STACKED_OUT))
axes = jax.tree.map(lambda stacked: 0 if stacked else None, (STACKED, STACKED_OUT))
vmapped = jax.jit(jax.vmap(one_run, *axes))


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
