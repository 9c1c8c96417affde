"""Losses of one's own model at several rates: as in a loop by hand, with its own state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import isolab
from isolab.measure.best_rates import losses_by_rate
from isolab.training.program import schedule_factor

STEPS = 12


def batches(seed):
    x = jax.random.normal(jax.random.key(seed), (STEPS, 8, 3))
    return x, jnp.sin(x.sum(-1, keepdims=True))


HELD_OUT = jax.tree.map(lambda its: its[:2], batches(9))


def make_model(seed):
    rngs = nnx.Rngs(seed)
    norm, dropout = nnx.BatchNorm(4, momentum=0.5, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)
    up = nnx.Linear(3, 4, use_bias=False, rngs=rngs)  # a bias would move by rounding alone
    return nnx.Sequential(up, norm, dropout, nnx.Linear(4, 1, rngs=rngs))


def create(seed):
    return nnx.split(make_model(seed), nnx.Param, ...)[1:]


def loss(params, rest, batch, train):
    model = nnx.merge(nnx.graphdef(make_model(0)), params, rest)
    model.train() if train else model.eval()
    value = ((model(batch[0]) - batch[1]) ** 2).mean()
    return value, nnx.state(model, nnx.Not(nnx.Param))


OPTIMIZERS = {"adam": optax.adam, "isoadam": isolab.isoadam}


def by_hand(name, rate, seed):
    (params, rest), data = create(seed), batches(seed)
    tx = OPTIMIZERS[name](lambda t: rate * schedule_factor("linear", t, STEPS, STEPS // 10))
    state = tx.init(params)
    measure = isolab.value_grad_factors(lambda *its: loss(*its, True), has_aux=True)

    @jax.jit
    def step(params, rest, state, batch):
        (_, rest), grads, factors = measure(params, rest, batch)
        given = {"factors": factors} if name == "isoadam" else {}
        updates, state = tx.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), rest, state

    for i in range(STEPS):
        batch = jax.tree.map(lambda its, i=i: its[i], data)
        params, rest, state = step(params, rest, state, batch)
    losses = [loss(params, rest, (x, y), False)[0] for x, y in zip(*HELD_OUT, strict=True)]
    return float(sum(losses)) / len(losses)


def test_every_run_is_a_plain_loop_with_exact_factors_and_the_models_own_state():
    rates = {"adam": [0.01, 0.1], "isoadam": [0.02]}
    frame = losses_by_rate(loss, create, batches, HELD_OUT, OPTIMIZERS, rates, [0, 3])
    assert frame.height == 6 and frame.n_unique(["optimizer", "learning_rate", "seed"]) == 6
    for name, rate, seed, found in frame.filter(optimizer="isoadam", seed=3).rows():
        assert found == pytest.approx(by_hand(name, rate, seed), rel=1e-4)


def test_what_diverges_is_a_row_and_a_rate_too_many_is_refused():
    data = loss, create, batches, HELD_OUT, {"sgd": optax.sgd}
    frame = losses_by_rate(*data, {"sgd": [1e30]}, [0])
    assert not jnp.isfinite(frame["final_validation_loss"][0])
    with pytest.raises(ValueError, match=r"rates are of \['adam'\]; allowed: of \['sgd'\]"):
        losses_by_rate(*data, {"adam": [0.1]})
