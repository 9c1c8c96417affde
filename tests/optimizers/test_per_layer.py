"""Per-layer rates for a foreign model: nothing changes at the base width, the rule's factor else.

The model is a plain ``nnx`` MLP that knows nothing of isolab. At the base width updates are
compared bit for bit. Elsewhere an update is the plain one times a Python float, one float32
rounding: 1e-6 relative is eight units in the last place.
"""

from __future__ import annotations

import math
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings

from isolab.model.transformer import Transformer, TransformerConfig, roles
from isolab.optimizers.catalog import CATALOG, optimizer
from isolab.optimizers.leaves import by_path, map_by_path
from isolab.optimizers.per_layer import parameter_roles, per_layer_optimizer, scale_by_role
from isolab.theory.parameterization import PARAMETERIZATIONS, per_layer_rates


class MLP(nnx.Module):
    """Somebody else's model: inputs and classes of fixed size, everything between grows."""

    def __init__(self, width, rngs, depth=2):
        self.enter = nnx.Linear(8, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.enter(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.norm(x))


ROLES = {"enter": "embedding", "layers": "hidden", "norm": "vector", "head": "readout"}
NESTED = {
    "enter": {"bias": "bias", "kernel": "embedding"},
    "head": {"bias": "fixed", "kernel": "readout"},
    "layers": {i: {"bias": "bias", "kernel": "hidden"} for i in range(2)},
    "norm": {"bias": "vector", "scale": "vector"},
}
BY_PATH = {
    "/".join(map(str, path)): role for path, role in nnx.traversals.flatten_mapping(NESTED).items()
}
RATES = {"sgd": 0.1, "adafactor": 0.1}
X = jax.random.normal(jax.random.key(1), (64, 8))
Y = (jnp.abs(X[:, 0]) + X[:, 1] > 0.5).astype(jnp.int32) + (X[:, 2] > 1)


def model_of(width, depth=2):
    return MLP(width, nnx.Rngs(0), depth)


def loss_of(model):
    return optax.softmax_cross_entropy_with_integer_labels(model(X), Y).mean()


def flat(tree):
    return {
        "/".join(str(k) for k in path): np.asarray(leaf)
        for path, leaf in nnx.to_flat_state(nnx.as_pure(tree))
    }


def steps(tx, model, count=2):
    """The updates of a few steps, each on fresh gradients, by path."""
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    state, seen = tx.init(params), []
    update = jax.jit(tx.update)
    for i in range(count):
        grads = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(flat(updates))
    return seen


# --- what it does ---


@pytest.mark.parametrize("name", CATALOG)
def test_at_the_base_width_nothing_changes(name):
    model, rate = model_of(16, depth=1), RATES.get(name, 0.01)

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "matrix" if "layers" in str(path) and leaf.ndim == 2 else "vector",
            params,
        )

    ours = per_layer_optimizer(model, name, rate, width=16, base_width=16, roles=ROLES)
    plain = optimizer(name, rate, labels=labels)
    for mine, theirs in zip(steps(ours, model), steps(plain, model), strict=True):
        assert len(mine) == 8
        for path in mine:
            np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)


widths = st.integers(4, 4096)
a_role = st.sampled_from(["embedding", "hidden", "readout", "vector", "fixed"])
PARAMS = {"a": {"kernel": jnp.full((3, 2), 0.5)}, "b": jnp.array([2.0, -1.0])}
GRADS = {"a": {"kernel": jnp.array([[1.0, -2.0]] * 3)}, "b": jnp.array([0.3, -4.0])}


@settings(max_examples=40)
@given(
    st.fixed_dictionaries({"a/kernel": a_role, "b": a_role}),
    st.sampled_from(["sgd", "adam", "adafactor"]),
    st.sampled_from(list(PARAMETERIZATIONS)),
    st.one_of(st.sampled_from(["full", "none"]), st.floats(0.5, 1)),
    widths,
    widths,
    st.floats(0.1, 10),
)
def test_elsewhere_each_update_is_multiplied_by_its_roles_factor(
    named, name, parameterization, alignment, width, base_width, gamma
):
    plain = optimizer(name, 0.25)
    tx = per_layer_optimizer(
        PARAMS, name, 0.25, width=width, base_width=base_width, roles=named,
        parameterization=parameterization, alignment=alignment, gamma={"hidden": gamma},
    )  # fmt: skip
    factors = {"fixed": 1.0} | per_layer_rates(
        parameterization, name, width, base_width, alignment, {"hidden": gamma}
    )
    ours, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    theirs, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    np.testing.assert_allclose(
        ours["a"]["kernel"], factors[named["a/kernel"]] * theirs["a"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(ours["b"], factors[named["b"]] * theirs["b"], rtol=1e-6)


# --- forms of model, roles and optimizer ---


def test_module_state_and_arrays_get_the_same_updates():
    model = model_of(32)
    state = nnx.state(model, nnx.Param)
    arrays = nnx.as_pure(state)
    nested = nnx.to_pure_dict(state)
    grads = nnx.jit(nnx.grad(loss_of))(model)
    expected = None
    for given_model, params, gradients in (
        (model, state, grads),
        (state, arrays, nnx.as_pure(grads)),
        (arrays, state, grads),
        (nested, nested, nnx.to_pure_dict(grads)),
        (nnx.state(model), nested, nnx.to_pure_dict(grads)),
    ):
        tx = per_layer_optimizer(given_model, "sgd", 0.01, width=32, base_width=8, roles=ROLES)
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(gradients)
        found = [np.asarray(leaf) for leaf in jax.tree.leaves(updates)]
        expected = expected or found
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "muon", "isoadam"])
def test_nnx_optimizer_trains_a_foreign_model_and_traces_it_once(name):
    model = model_of(32)
    schedule = optax.linear_schedule(0.02, 0.0, 60)
    tx = per_layer_optimizer(model, name, schedule, width=32, base_width=16, roles=ROLES)
    trainer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(model, trainer):
        nonlocal traces
        traces += 1
        loss, grads = nnx.value_and_grad(loss_of)(model)
        trainer.update(model, grads)
        return loss

    losses = [float(step(model, trainer)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert traces == 1


def test_metadata_gives_the_roles_of_our_own_models():
    model = Transformer(TransformerConfig(width=32, depth=1), "mup", rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    nested = roles(model)
    assert parameter_roles(model) == parameter_roles(params, nested)
    assert set(parameter_roles(model).values()) == {"embedding", "hidden", "readout", "vector"}

    tx = per_layer_optimizer(model, "sgd", 1.0, width=32, base_width=8, parameterization="mup")
    updates, _ = tx.update(params, tx.init(params), params)
    factors = per_layer_rates("mup", "sgd", 32, 8)
    wanted = jax.tree.map(lambda role, p: -factors[role] * p, nested, params)
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, w, rtol=1e-6), updates, wanted)


def test_roles_by_pattern_by_pytree_and_by_function_agree():
    model = model_of(4)
    seen = {}

    def by_function(path, leaf):
        seen[path] = leaf.shape
        return BY_PATH[path]

    patterns = {"head/bias": "fixed", "norm": "vector", "*bias": "bias", "enter": "embedding",
                "layers/*": "hidden", "*": "readout"}  # fmt: skip
    for given_roles in (ROLES, NESTED, BY_PATH, by_function, patterns):
        assert parameter_roles(model, given_roles) == BY_PATH
    assert seen["enter/kernel"] == (8, 4)
    first = parameter_roles(model, {"layers/0/bias": "hidden", "layers/1": "readout", **ROLES})
    assert first["layers/0/bias"] == first["layers/0/kernel"] == "hidden"  # a whole path is taken
    assert (first["layers/1/bias"], first["layers/1/kernel"]) == ("fixed", "readout")


STACK = {"kernel": jnp.ones((3, 8, 8)), "bias": jnp.ones((3, 8)), "scale": jnp.ones((3, 8))}


@pytest.mark.parametrize(
    ("role", "bias"),
    [("embedding", "bias"), ("hidden", "bias"), ("readout", "fixed"), ("tied", "bias")],
)
@pytest.mark.parametrize("rule", ["adam", "sgd", "spectral"])
def test_a_pattern_gives_a_stack_its_role_and_biases_and_gains_theirs(role, bias, rule):
    wanted = {"blocks/kernel": role, "blocks/bias": bias, "blocks/scale": "vector"}
    params = {"blocks": STACK}
    assert parameter_roles(params, {"blocks": role}) == wanted
    assert parameter_roles(params, {"blocks/*": role}) == wanted
    tx = per_layer_optimizer(
        params, optax.identity(), rule=rule, width=32, base_width=8, roles={"blocks": role}
    )
    updates, _ = tx.update(params, tx.init(params), params)
    rates = per_layer_rates("standard", rule, 32, 8)
    for name, update in updates["blocks"].items():
        np.testing.assert_allclose(update, rates[wanted[f"blocks/{name}"]], rtol=1e-6)


def test_a_hidden_parameter_that_muon_does_not_see_as_a_matrix_has_adams_rate():
    params = {"mid": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    named = {"mid/kernel": "hidden", "mid/bias": "hidden"}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    updates = []
    for width in (8, 32):
        tx = per_layer_optimizer(params, "muon", 0.1, width=width, base_width=8, roles=named)
        updates.append(tx.update(grads, tx.init(params), params)[0]["mid"])
    base, wide = updates
    np.testing.assert_array_equal(wide["kernel"], base["kernel"])
    np.testing.assert_allclose(wide["bias"], base["bias"] / 4, rtol=1e-6)


names = st.text("a/\\", min_size=1, max_size=3) | st.just("value")
trees = st.recursive(
    st.just(1.0), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees)
def test_every_parameter_has_a_path_of_its_own_in_dictionaries_and_in_variables(tree):
    leaves = by_path(tree)
    assert len(leaves) == len(jax.tree.leaves(tree))
    assert list(by_path(nnx.State(jax.tree.map(nnx.Param, tree)))) == list(leaves)
    assert by_path(map_by_path(lambda path, _: path, tree)) == {path: path for path in leaves}


def test_a_slash_in_a_name_is_taken_escaped_or_not():
    w, v = jnp.ones((2, 3)), jnp.ones(2)
    params = {"a": {"b/c": w}, "a/b": {"c": v}, "value": {"value": w}}
    roles = {"a/b\\/c": "hidden", "a\\/b": "vector", "value": "readout"}
    found = {"a/b\\/c": "hidden", "a\\/b/c": "vector", "value/value": "readout"}
    assert parameter_roles(params, roles) == found
    haiku = {"gpt/~/lm_head": {"w": w}, "gpt/~/h0": {"w": w, "b": v}}
    found = parameter_roles(haiku, {"gpt/~/lm_head": "readout", "gpt/*": "hidden"})
    assert sorted(found.values()) == ["bias", "hidden", "readout"]


def test_a_function_or_a_transformation_with_a_rule_will_do():
    model = model_of(16)
    shape = {"width": 16, "base_width": 4, "roles": ROLES}
    made = per_layer_optimizer(model, optax.adam, 0.01, rule="adam", b2=0.9, **shape)
    ready = per_layer_optimizer(model, optax.adam(0.01, b2=0.9), rule="adam", **shape)
    summed = optax.MultiSteps(optax.adam(0.01, b2=0.9), every_k_schedule=1)
    multiple = per_layer_optimizer(model, summed, rule="adam", **shape)
    named = per_layer_optimizer(model, "adam", 0.01, b2=0.9, **shape)
    other = per_layer_optimizer(model, optax.adam, 0.01, rule="sgd", b2=0.9, **shape)
    expected = steps(named, model)[-1]
    for tx in (made, ready, multiple):
        for path, update in steps(tx, model)[-1].items():
            np.testing.assert_allclose(update, expected[path], rtol=1e-6)  # MultiSteps averages
    assert not np.allclose(steps(other, model)[-1]["enter/kernel"], expected["enter/kernel"])


def test_updates_keep_their_dtype_and_a_missing_gradient_stays_missing():
    tx = scale_by_role({"hidden": jnp.float32(0.5)}, {"w": "hidden", "v": "fixed", "u": "hidden"})
    updates = {"w": jnp.ones(2, jnp.bfloat16), "v": jnp.ones(2, jnp.float16), "u": None}
    scaled, _ = tx.update(updates, tx.init(updates))
    assert (scaled["w"].dtype, scaled["v"].dtype) == (jnp.bfloat16, jnp.float16)
    assert scaled["w"].tolist() == [0.5, 0.5] and scaled["u"] is None


def update_of_an_unknown_parameter():
    tx, other = call(), {**GRADS, "new": jnp.ones(2)}
    tx.update(other, tx.init(other), other)


# --- refusals ---


def call(optimizer="adam", rate=0.1, model=PARAMS, **changes):
    given_arguments = {"width": 8, "base_width": 2, "roles": {"a": "hidden", "b": "vector"}}
    return per_layer_optimizer(model, optimizer, rate, **{**given_arguments, **changes})


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: call(roles={"a": "hidden"}), "no role for 'b'; give one of ['bias', 'embedding',"),
        (lambda: call(roles=None), "no role for 'a/kernel', 'b'"),
        (lambda: call(roles={"a": "head", "b": "vector"}), "'a/kernel' has unknown role 'head'"),
        (lambda: call(roles={"a": "hidden", "c": "vector"}), "roles name 'c', no parameter"),
        (lambda: call(roles={"a": {"w": "hidden"}, "b": "vector"}), "roles name 'a/w', no param"),
        (lambda: call(model={}), "the model has no parameters: dict"),
        (lambda: call(width=0), "width must be a positive number, got 0"),
        (lambda: call(base_width=math.nan), "base_width must be a positive number, got nan"),
        (lambda: call("adamm"), "unknown optimizer 'adamm'; known: ['adafactor'"),
        (lambda: call(rate=None), "learning_rate is missing"),
        (lambda: call(rule="sgd"), "rule is 'sgd'; allowed for 'adam': 'adam' or none"),
        (lambda: call(optax.adam), "rule is missing: 'sgd', 'adam'"),
        (lambda: call(optax.adam, rule="lion"), "unknown rule 'lion'; known: ['adafactor', 'adam'"),
        (lambda: call(optax.adam(0.1), rule="adam"), "learning_rate was given with a transfor"),
        (lambda: call(optax.adam(0.1), None, rule="adam", b1=0.5), "b1 was given with a transfor"),
        (lambda: call(gamma={"head": 2.0}), "unknown role 'head'"),
        (update_of_an_unknown_parameter, "'new' has no role: it was not in the model"),
        (lambda: scale_by_role({"hidden": 1.0}, {"w": "readout"}), "'w' has role 'readout'; known"),
    ],
)  # fmt: skip
def test_errors_name_the_parameter_and_what_is_allowed(attempt, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attempt()
