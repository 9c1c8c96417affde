"""The learning rate's course, against its definition."""

from __future__ import annotations

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.training.schedule import schedule_factor


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
