"""One matrix: every optimizer of the catalog, in every way that a training loop uses one."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isolab.optimizers import (
    CATALOG,
    optimizer,
    scale_by_adam_atan2,
    scale_by_iso,
    scale_by_isoadam,
)
from isolab.optimizers.factors import Factors

STEPS, SAMPLES = 300, 32
PARAMS = {
    "first": {"kernel": 0.5 * jax.random.normal(jax.random.key(0), (4, 6))},
    "bias": jnp.zeros(6),
    "head": {"kernel": 0.5 * jax.random.normal(jax.random.key(1), (6, 3))},
}
INPUTS = jax.random.normal(jax.random.key(2), (SAMPLES, 4))
TARGETS = jnp.sin(INPUTS[:, :3])
# exact factors of the first layer; the same in every step is enough here
FACTORS = {
    "first": {"kernel": Factors((INPUTS.T @ INPUTS / SAMPLES)[None], jnp.eye(6)[None] * 0.3)}
}


@dataclass(frozen=True, eq=False)
class Case:
    """A row of the matrix: the rate solves the least-squares problem below, in every test."""

    name: str
    rate: float
    options: dict = field(default_factory=dict)

    def make(self, rate=None, **hyperparameters):
        rate = self.rate if rate is None else rate
        return optimizer(self.name, rate, **self.options, **hyperparameters)

    @property
    def id(self):
        return "-".join([self.name, *map(str, self.options.values())])


CASES = [
    Case("sgd", 0.05),
    Case("adam", 0.05),
    Case("adamw", 0.05),
    Case("adafactor", 0.05),
    Case("lion", 0.01),
    Case("muon", 0.05),
    Case("iso", 0.05, {"refresh_every": 3}),
    Case("isoadam", 0.05, {"size": "rms", "block_size": None}),
    # gradient factors have no full rank here; damping keeps rounding from what the tests compare
    Case("isoadam", 0.05, {"size": "graft", "root": "newton", "damping": 1e-3}),
    Case("adam_atan2", 0.05),
]


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def loss(params):
    hidden = INPUTS @ params["first"]["kernel"] + params["bias"][None]
    return jnp.mean(jnp.sum((hidden @ params["head"]["kernel"] - TARGETS) ** 2, axis=-1))


GRADS = jax.jit(jax.grad(loss))(PARAMS)


def factors_of(case):
    return FACTORS if CATALOG[case.name].takes_factors and not case.options.get("root") else None


def stepping(tx, case):
    """Returns one step of training, to be jitted: (params, state) -> (params, state, loss)."""

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, factors=factors_of(case))
        return optax.apply_updates(params, updates), state, value

    return step


def train(case, hyperparameters):
    """One scan under a rate that falls to 0; returns params after every step, and losses."""
    rest = dict(hyperparameters)
    tx = case.make(optax.linear_schedule(rest.pop("rate"), 0.0, STEPS), **rest)
    step = stepping(tx, case)

    def body(carry, _):
        *carry, value = step(*carry)
        return tuple(carry), (carry[0], value)

    return jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), length=STEPS)[1]


@functools.cache
def compiled(case):
    return jax.jit(lambda hyperparameters: train(case, hyperparameters))


SPREAD = {"b1": (0.9, 0.5), "b2": (0.95, 0.9), "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.3)}


def spread_of(case):
    """Hyperparameters at their first values, and rows of which each has one at its second."""
    both = {"rate": (case.rate, 0.5 * case.rate)}
    both |= {name: SPREAD[name] for name in CATALOG[case.name].defaults if name in SPREAD}
    base = {name: values[0] for name, values in both.items()}
    return base, {name: base | {name: values[1]} for name, values in both.items()}


def at(params, step):
    return jax.tree.map(lambda leaf: leaf[step], params)


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def test_every_optimizer_has_a_row():
    assert {case.name for case in CASES} == set(CATALOG)


@every_case
def test_a_scan_over_traced_hyperparameters_equals_donated_calls_and_converges(case):
    base, _ = spread_of(case)
    seen, losses = compiled(case)(base)
    rest = dict(base)
    tx = case.make(optax.linear_schedule(rest.pop("rate"), 0.0, STEPS), **rest)
    donated = jax.jit(stepping(tx, case), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    for _ in range(3):
        params, state, _ = donated(params, state)
    assert donated._cache_size() == 1
    assert_close(at(seen, 2), params, rtol=1e-3, atol=1e-4)
    optimum = (
        np.linalg.lstsq(np.c_[INPUTS, np.ones(SAMPLES)], TARGETS, rcond=None)[1].sum() / SAMPLES
    )
    # what is left: 300 steps are few
    assert losses[-1] - optimum < 0.03 * (losses[0] - optimum)


@every_case
def test_vmap_over_hyperparameters_equals_a_loop_compiled_once_and_each_acts(case):
    run, (base, rows) = compiled(case), spread_of(case)
    looped = {name: at(run(row)[0], 11) for name, row in rows.items()}
    start = at(run(base)[0], 11)
    assert run._cache_size() == 1
    stacked = {name: jnp.array([row[name] for row in rows.values()]) for name in base}
    mapped, _ = jax.jit(jax.vmap(run))(stacked)
    for i, (name, moved) in enumerate(looped.items()):
        assert_close(at(at(mapped, i), 11), moved, rtol=1e-3, atol=1e-4)
        changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moved, start)
        assert max(jax.tree.leaves(changes)) > 1e-5, f"{name} does nothing"


@pytest.mark.parametrize(
    "case", [c for c in CASES if "weight_decay" in CATALOG[c.name].defaults], ids=lambda c: c.id
)
def test_weight_decay_is_decoupled(case):
    base, rows = spread_of(case)
    decayed, plain = (at(compiled(case)(row)[0], 0) for row in (rows["weight_decay"], base))
    # adafactor's decay is per step, not multiplied by the rate
    rate = 1.0 if case.name == "adafactor" else case.rate
    assert_close(
        jax.tree.map(lambda a, b: a - b, decayed, plain),
        jax.tree.map(lambda p: -rate * 0.3 * p, PARAMS),
        rtol=1e-3,
        atol=1e-6,
    )


@every_case
def test_updates_have_the_gradients_dtype(case):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    tx = case.make()
    update = jax.jit(tx.update)
    updates, state = update(grads, tx.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    again, after = update(grads, state, params)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    assert finite(again)


@functools.cache
def prepared(case):
    """Returns a jitted update without decay, a fresh state, gradients, and their updates."""
    plain = {"weight_decay": 0.0} if "weight_decay" in CATALOG[case.name].defaults else {}
    tx = case.make(**plain)
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    return update, state, GRADS, update(GRADS, state, PARAMS)[0]


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@every_case
def test_zero_gradients_give_zero_updates(case):
    update, state, grads, _ = prepared(case)
    for _ in range(2):
        updates, state = update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))
    assert finite(update(grads, state, PARAMS)[0])


@every_case
def test_nan_stays_in_its_own_parameter(case):
    update, state, grads, healthy = prepared(case)
    broken = {**grads, "first": {"kernel": grads["first"]["kernel"].at[1, 2].set(jnp.nan)}}
    updates, state = update(broken, state, PARAMS)
    assert jnp.isnan(updates["first"]["kernel"]).any()
    for name in ("bias", "head"):
        assert_close(updates[name], healthy[name], rtol=1e-6, atol=1e-7)
    updates, _ = update(grads, state, PARAMS)  # and later steps end too
    assert finite({name: updates[name] for name in ("bias", "head")})


@every_case
def test_a_missing_gradient_leaves_its_parameter_alone(case):
    update, state, grads, whole = prepared(case)
    # of a rule that tells matrices from the rest, one of each
    for gone in ("first", "head") if CATALOG[case.name].takes_labels else ("first",):
        updates, _ = update({**grads, gone: {"kernel": None}}, state, PARAMS)
        assert updates[gone] == {"kernel": None}
        for name in set(PARAMS) - {gone}:
            assert_close(updates[name], whole[name], rtol=1e-5, atol=1e-7)


HYPER = {"b1": jnp.float32(0.9), "b2": jnp.float32(0.95)}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        scale_by_iso,
        functools.partial(scale_by_iso, root="newton"),
        functools.partial(scale_by_isoadam, eps=HYPER["b1"], block_size="shorter"),
        functools.partial(scale_by_adam_atan2, a=HYPER["b1"], b=HYPER["b2"]),
    ],
)
def test_our_own_rules_promote_no_dtype_by_accident(make, x64):
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
        params = {"w": jnp.ones((4, 6), jnp.float64 if x64 else jnp.bfloat16)}

        @jax.jit
        def run(hyper, params):
            rule = make(**hyper)
            updates, state = rule.update(params, rule.init(params), params)
            return rule.update(updates, state, params)

        updates, _ = run(HYPER, params)
        assert updates["w"].dtype == params["w"].dtype
        assert bool(jnp.isfinite(updates["w"]).all())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamm'; known: \['adafactor'"):
        optimizer("adamm", 0.1)
    with pytest.raises(ValueError, match="lion has no eps; it has"):
        optimizer("lion", 0.1, eps=1e-8)
    with pytest.raises(TypeError, match="flavour"):
        optimizer("lion", 0.1, flavour="salt")


@pytest.mark.parametrize("name", ["iso", "isoadam", "adam_atan2"])
def test_the_catalogs_defaults_are_those_of_our_functions(name):
    entry = CATALOG[name]
    own = inspect.signature(entry.build).parameters
    assert entry.defaults == {key: own[key].default for key in entry.defaults}
    assert {"b1", "b2", "weight_decay"} <= set(entry.defaults)
