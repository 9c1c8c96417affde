"""Other people's models: how parameters come, how they lie, how steps are taken and differentiated.

Each test stands for reports on the field's trackers; every optimizer that it concerns is tried.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import isolab
from isolab.optimizers import CATALOG, optimizer, scale_by_iso
from isolab.optimizers.factors import Factors

KEY = jax.random.key(0)
PARAMS = {
    "up": {"kernel": jax.random.normal(KEY, (4, 6)), "bias": jnp.zeros(6)},
    "query": {"kernel": jax.random.normal(KEY, (6, 2, 3))},
    "stack": {"kernel": jax.random.normal(KEY, (3, 4, 4)), "bias": jnp.zeros((3, 4))},
}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.cos(3 * p + 1), PARAMS)
OURS = ("adamw", "adam_atan2", "iso", "isoadam")
BY_VIEW = ("iso", "isoadam", "muon")
every = pytest.mark.parametrize("name", CATALOG)
ours = pytest.mark.parametrize("name", OURS)
by_view = pytest.mark.parametrize("name", BY_VIEW)


def make(name, rate=0.1, **options):
    """The optimizer without decay; damped, as gradients of low rank would amplify rounding."""
    usual = {"weight_decay": 0.0} if "weight_decay" in CATALOG[name].defaults else {}
    usual |= {"damping": 1e-2} if name in ("iso", "isoadam") else {}
    return optimizer(name, rate, **usual | options)


def first_updates(tx, grads=GRADS, params=PARAMS, **extra):
    return jax.jit(tx.update)(grads, tx.init(params), params, **extra)[0]


def steps(tx, grads, params=PARAMS, count=3):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(grads, state, params)
    return updates


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


# --- how parameters come ---


@by_view
def test_a_stack_is_its_matrices_one_by_one_and_a_projection_is_one_matrix(name):
    updates = steps(make(name), GRADS)
    for i in range(3):
        of = lambda tree, i=i: {"w": tree["stack"]["kernel"][i]}  # noqa: E731
        alone = steps(make(name), of(GRADS), of(PARAMS))["w"]
        assert_close(updates["stack"]["kernel"][i], alone, rtol=2e-3, atol=1e-4)
    flat = {"w": GRADS["query"]["kernel"].reshape(6, 6)}
    whole = steps(make(name), flat, flat)["w"].reshape(6, 2, 3)
    assert_close(updates["query"]["kernel"], whole, rtol=2e-3, atol=1e-4)
    adam = steps(make("adam"), GRADS)["stack"]["bias"]
    assert_close(jnp.sign(updates["stack"]["bias"]), jnp.sign(adam))  # and biases are none


@every
def test_none_leaves_are_passed_over_and_missing_gradients_leave_their_parameter(name):
    tx = make(name)
    wanted = first_updates(tx)
    updates = first_updates(tx, {**GRADS, "act": None}, {**PARAMS, "act": None})
    assert updates["act"] is None
    assert_close({k: updates[k] for k in GRADS}, wanted, rtol=1e-5, atol=1e-7)


@every
def test_numbers_and_numpy_arrays_are_parameters_as_with_optax(name):
    params = {"a": 1.0, "w": np.ones((2, 3), np.float32)}
    updates = make(name).update(params, make(name).init(params), params)[0]
    assert finite(updates)
    assert updates["w"].shape == (2, 3)


@by_view
def test_labels_of_another_container_are_matched_by_path_under_nnx(name):
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    for labels in ({"kernel": "vector", "bias": "vector"}, {"kernel": "matrix", "bias": "vector"}):
        opt = nnx.Optimizer(model, make(name, labels=labels), wrt=nnx.Param)
        grads = nnx.grad(lambda m: jnp.sum(m(jnp.arange(8.0).reshape(2, 4)) ** 2))(model)
        before = model.kernel[...]
        opt.update(model, grads)
        step = np.abs(model.kernel[...] - before)
        entrywise = bool(step.max() < 1.05 * step.min())  # the first step of Adam: all equal
        assert entrywise == (labels["kernel"] == "vector")


def test_unknown_arrays_get_the_entrywise_rule_with_one_warning():
    params = {"a": jnp.ones((2, 3, 4)), "b": {"kernel": jnp.ones((2, 3))}}
    with pytest.warns(UserWarning, match=r"entrywise rule, .*: a\. labels= says it"):
        state = make("isoadam").init(params)
    assert set(state[0].matrices.iso.matrices) == {"b/kernel"}


# --- factors ---


def pair(stack, n, m):
    return Factors(jnp.broadcast_to(jnp.eye(n), (*stack, 1, n, n)),
                   jnp.broadcast_to(4 * jnp.eye(m), (*stack, 1, m, m)))  # fmt: skip


def test_exact_factors_of_stacks_and_projections_are_read_and_others_are_passed_over():
    factors = {
        "up": {"bias": Factors(None, None)},
        "query": {"kernel": pair((), 6, 6)},
        "stack": {"kernel": pair((3,), 4, 4)},
    }
    updates = first_updates(make("iso", damping=0.0), factors=factors)
    for part in ("query", "stack"):  # whitened by 1 and 1/2
        assert_close(updates[part]["kernel"], -0.1 * GRADS[part]["kernel"] / 2)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"model": {"up": {"kernel": pair((), 4, 6)}}}, "factors have 'model/up/kernel', which is"),
        ({"up": {"input_factor": jnp.eye(4)}}, "factors have 'up/input_factor', which is no"),
        ({"stack": {"kernel": pair((), 4, 4)}}, "factors['stack/kernel'].input has shape (1, 4, 4"),
    ],
)
def test_factors_that_match_nothing_are_refused(factors, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        first_updates(make("isoadam"), factors=factors)


def test_a_side_longer_than_max_side_is_not_whitened_and_two_are_entrywise():
    state = make("isoadam", max_side=4).init({"w": jnp.ones((4, 6)), "v": jnp.ones((5, 6))})
    kept = state[0].matrices.iso.matrices
    assert set(kept) == {"w"}
    assert kept["w"].factors.input.shape == (1, 4, 4)
    assert kept["w"].factors.output is kept["w"].roots.output is None
    tx, g = make("iso", max_side=4, damping=0.0), jax.random.normal(KEY, (4, 6))
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    # (G G^T)^{-1/2} G: all singular values are 1
    assert_close(first_updates(tx, {"w": g}, {"w": g})["w"], -0.1 * u @ vt, rtol=1e-2, atol=1e-4)


# --- numerics ---

SCALED = functools.cache(lambda name: jax.jit(lambda g: steps_of(name, g)))


def steps_of(name, scale):
    tx = make(name, **({"eps": 0.0} if name == "adam" else {}))
    state = tx.init(PARAMS)
    for t in range(3):
        grads = jax.tree.map(lambda g, t=t: scale * (g + 0.03 * t), GRADS)
        updates, state = tx.update(grads, state, PARAMS)
    return {k: updates[k]["kernel"] for k in updates}


@pytest.mark.parametrize("name", ["iso", "isoadam", "adam_atan2", "muon"])
@settings(max_examples=10)
@given(power=st.integers(-38, 30))
def test_finite_over_the_gradients_scales_and_free_of_them(name, power):
    updates = SCALED(name)(jnp.float32(10.0**power))
    assert finite(updates)
    free = power >= -30 if name in ("iso", "isoadam") else abs(power) < 3
    if free and name != "muon":
        assert_close(updates, SCALED(name)(jnp.float32(1.0)), rtol=2e-2, atol=2e-3)


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_stay_finite_and_their_moments_are_wide(name, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = make(name)
    update, state = jax.jit(tx.update), tx.init(params)
    for size in (0.0, 1e-4, 1e2):
        grads = jax.tree.map(lambda p, s=size: jnp.full_like(p, s), params)
        updates, state = update(grads, state, params)
        assert finite(updates), size
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    if name != "sgd":
        floats = [s.dtype for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["isoadam", "muon", "adam"])
def test_a_constant_gradient_in_bfloat16_gives_steps_of_one(name):
    tx, params = make(name, 1.0, b2=0.999), {"bias": jnp.zeros(3, jnp.bfloat16)}
    grads = {"bias": jnp.full(3, 0.01, jnp.bfloat16)}
    step = lambda state, _: tx.update(grads, state, params)[::-1]  # noqa: E731
    _, updates = jax.jit(lambda: jax.lax.scan(step, tx.init(params), length=2000))()
    assert_close(np.float32(updates["bias"][-1]), np.full(3, -1.0), rtol=0.01)


# --- how steps are taken ---


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"adafactor", "adamw"}))
def test_an_update_without_decay_needs_no_parameters(name):
    tx = make(name)
    assert_close(tx.update(GRADS, tx.init(PARAMS))[0], first_updates(tx), rtol=1e-5, atol=1e-6)


@ours
def test_strict_promotion_with_plain_and_traced_hyperparameters(name):
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.ones(3)}
    with jax.numpy_dtype_promotion("strict"):

        @jax.jit
        def run(rate, decay):
            tx = optimizer(name, rate, b1=decay, weight_decay=decay)
            return tx.update(params, tx.init(params), params)[0]

        assert finite(run(0.1, jnp.float32(0.5)))


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"adafactor"}))
def test_injected_hyperparameters_give_the_same_update(name):
    build = functools.partial(make, name)
    ours, options = {"iso": isolab.iso, "isoadam": isolab.isoadam}, {"learning_rate": 0.1}
    options |= {"damping": 1e-2} if name in ours else {}
    injected = optax.inject_hyperparams(ours.get(name, lambda learning_rate: build(learning_rate)))
    assert_close(first_updates(injected(**options)), first_updates(build(0.1)), rtol=1e-3)


@every
def test_map_params_finds_every_copy_of_the_parameters(name):
    tx = make(name)
    state = tx.init(PARAMS)
    doubled = optax.tree.map_params(tx, lambda s: s + 1, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    grown = jax.tree.map(lambda a, b: bool((a != b).any()), doubled, state)
    if name != "adafactor":  # optax's has no copies
        assert sum(jax.tree.leaves(grown)) >= len(jax.tree.leaves(PARAMS))
    assert finite(tx.update(GRADS, doubled, PARAMS)[0])


@pytest.mark.parametrize("root", ["eigh", "newton"])
@pytest.mark.parametrize("name", BY_VIEW)
def test_learned_optimizers_differentiate_through_updates(name, root):
    tx = make(name, **({"root": root, "damping": 1e-3} if name != "muon" else {}))
    params = {"w": PARAMS["up"]["kernel"], "bias": jnp.ones(6)}

    @jax.jit
    def after(scale):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + scale), params)
        updates, state = tx.update(grads, tx.init(params), params)
        updates, _ = tx.update(jax.tree.map(lambda g: g + scale * g**2, grads), state, params)
        return sum(jnp.sum(jnp.cos(k + u)) for k, u in enumerate(jax.tree.leaves(updates)))

    slope = jax.jit(jax.grad(after))(1.0)
    numeric = (after(1.0 + 3e-3) - after(1.0 - 3e-3)) / 6e-3
    assert float(slope) == pytest.approx(float(numeric), rel=0.05, abs=0.02)


@pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("name", ["adam", "adam_atan2", "iso", "isoadam", "lion", "sgd"])
def test_columns_divided_over_a_mesh_have_moments_and_updates_that_lie_as_they_do(name, axes):
    mesh = jax.make_mesh((1,), ("m",), axis_types=(axes,))
    tx = make(name)

    def placed(x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), "m")))

    with jax.set_mesh(mesh):
        params, grads = jax.tree.map(placed, PARAMS), jax.tree.map(placed, GRADS)
        state = tx.init(params)
        updates, after = jax.jit(tx.update)(grads, state, params)
    place = params["up"]["kernel"].sharding
    assert {x.sharding for x in jax.tree.leaves(state) if x.shape == (4, 6)} == {place}
    if axes is AxisType.Explicit:
        jax.tree.map(lambda u, p: u.sharding == p.sharding or pytest.fail(str(u)), updates, params)
        assert {x.sharding for x in jax.tree.leaves(after) if x.shape == (4, 6)} == {place}
    assert_close(updates, first_updates(tx), rtol=1e-4, atol=1e-5)


# --- decay, and what is refused ---


@pytest.mark.parametrize("name", [*OURS, "sgd", "lion", "muon"])
def test_masked_and_independent_decay(name):
    def moved(**options):
        updates = first_updates(make(name, **options))
        plain = first_updates(make(name))
        return jax.tree.map(lambda a, b: a - b, updates, plain)

    mask = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    for options, share in (
        ({"weight_decay": 0.3}, 0.03),
        ({"independent_weight_decay": 0.3}, 0.3),
        ({"independent_weight_decay": lambda count: 0.2 + 0.0 * count}, 0.2),
    ):
        wanted = jax.tree.map(lambda p, s=share: -s * p, PARAMS)
        assert_close(moved(**options), wanted, atol=1e-5)
        kept = moved(**options, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree))
        assert_close(kept, jax.tree.map(lambda m, w: m * w, mask, wanted), atol=1e-5)


REFUSED = [
    ("isoadam", {"b1": 1.0}, "b1 is 1.0; allowed: 0 or more, below 1"),
    ("adam_atan2", {"b2": 1}, "b2 is 1; allowed"),
    ("iso", {"damping": -1.0}, "damping is -1.0; allowed: 0 or more"),
    ("adam", {"eps": float("nan")}, "eps is nan; allowed"),
    ("muon", {"momentum": -0.1}, "momentum is -0.1; allowed"),
    ("isoadam", {"refresh_every": 0}, "refresh_every is 0; allowed: a whole number of 1 or more"),
    ("isoadam", {"refresh_every": 2.5}, "refresh_every is 2.5"),
    ("iso", {"block_size": 0}, "block_size is 0"),
    ("iso", {"max_side": 0}, "max_side is 0"),
    *((name, {"learning_rate": None}, "learning_rate is None; allowed") for name in CATALOG),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_hyperparameters_out_of_range_are_refused_by_name_and_value(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer(name, **{"learning_rate": 0.1} | options)
    traced = {key: jnp.float32(0.5) for key in options if key in ("b1", "b2", "damping", "eps")}
    optimizer(name, 0.1, **traced)


def test_scale_by_iso_alone_takes_views():
    rule = scale_by_iso(views={"w": isolab.optimizers.views.View((1,), (0,))})
    g = {"w": jax.random.normal(KEY, (6, 4))}
    turned, _ = scale_by_iso().update({"w": g["w"].T}, scale_by_iso().init({"w": g["w"].T}))
    assert_close(rule.update(g, rule.init(g))[0]["w"], turned["w"].T, rtol=1e-3, atol=1e-3)
