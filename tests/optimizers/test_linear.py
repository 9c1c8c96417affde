"""The measuring linear layer: exact factors, no cost when not asked, any flax.nnx model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.linear import (
    Factor,
    FactorDue,
    Factors,
    Linear,
    block_second_moment,
    block_sizes,
    factors_by_kernel,
    measure_factors,
    measured_matmul,
)

SEEDS = st.integers(0, 2**32 - 1)
# float32 sums of up to 40 products against float64: relative error about sqrt(40) * 6e-8
RTOL = 1e-5


class Net(nnx.Module):
    """A foreign model: a stack in a list, an activation in between, with and without biases."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(5, 6, rngs=rngs)
        self.middle = nnx.List([nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)])
        self.last = nnx.Linear(6, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.first(x))
        for layer in self.middle:
            x = x + jnp.tanh(layer(x))
        return self.last(x)


def explicit_factors(kernel, x, token_loss_gradient):
    """E[x x^T], E[g g^T] by a loop over tokens in float64; g by the chain rule of each token."""
    A, B = np.zeros((x.shape[1],) * 2), np.zeros((kernel.shape[1],) * 2)
    for row in x:
        g = np.asarray(token_loss_gradient(row @ kernel), np.float64)
        A += np.outer(row, row) / len(x)
        B += np.outer(g, g) / len(x)
    return A, B


@jax.jit
def measured(x, kernel, target):
    """Factors under the loss mean_t sum(sin(y_t) * target), whose g is cos(y) * target."""

    def loss(factors):
        y = measured_matmul(x, kernel, factors)
        return jnp.mean(jnp.sum(jnp.sin(y) * target, axis=-1))

    n, m = kernel.shape
    dtype = kernel.dtype
    return jax.grad(loss)(Factors(jnp.zeros((1, n, n), dtype), jnp.zeros((1, m, m), dtype)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (17, 5, 2), (40, 7, 7)])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_factors_equal_explicit_per_token_sums(shape, seed):
    tokens, fan_in, fan_out = shape
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(tokens, fan_in)), rng.normal(size=(fan_in, fan_out))
    x, kernel, target = map(np.float32, (x, kernel, rng.normal(size=(1, fan_out))))
    A, B = explicit_factors(
        kernel.astype(np.float64), x.astype(np.float64), lambda y: np.cos(y) * target[0]
    )
    got = measured(x, kernel, target)
    np.testing.assert_allclose(got.input[0], A, rtol=RTOL, atol=RTOL * np.abs(A).max())
    # y is of order sqrt(fan_in) and rounded before its cosine is taken
    np.testing.assert_allclose(got.output[0], B, rtol=RTOL, atol=2 * RTOL * np.abs(B).max())


def test_float64_factors_are_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = rng.normal(size=(300, 4)), rng.normal(size=(4, 3))
        got = measured(x, kernel, np.ones((1, 3)))
        for factor, wanted in zip(got, explicit_factors(kernel, x, np.cos), strict=True):
            assert factor.dtype == jnp.float64
            np.testing.assert_allclose(factor[0], wanted, rtol=1e-12, atol=1e-14)


def test_bfloat16_activations_give_float32_factors():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((64, 4), (4, 3)))
    zeros = Factors(jnp.zeros((1, 4, 4)), jnp.zeros((1, 3, 3)))
    got = jax.grad(lambda f: jnp.mean(measured_matmul(x, kernel, f).astype(jnp.float32)) * 3)(zeros)
    assert got.input.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    # the activations are bfloat16 but their products are summed in float32
    np.testing.assert_allclose(got.input[0], exact.T @ exact / 64, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.output[0], np.ones((3, 3)), rtol=2**-7)  # g is 1, in bfloat16


@pytest.mark.parametrize("blocks", [1, 2, 4])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_blocks_are_the_diagonal_blocks(blocks, seed):
    rows = np.float32(np.random.default_rng(seed).normal(size=(50, 3 * blocks)))
    moment = jax.jit(block_second_moment, static_argnums=1)
    whole, parts = moment(rows, 3 * blocks)[0], moment(rows, 3)
    assert parts.shape == (blocks, 3, 3)
    for i, part in enumerate(parts):
        at = slice(3 * i, 3 * i + 3)
        np.testing.assert_allclose(part, whole[at, at], rtol=RTOL, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "rule", "wanted"),
    [
        ((6, 8), None, (6, 8)),
        ((4, 8), "shorter", (4, 4)),
        ((8, 4), "shorter", (4, 4)),
        ((4, 6), "shorter", (4, 6)),  # 4 does not divide 6
        ((8, 12), 4, (4, 4)),
        ((8, 12), 5, (8, 12)),
        ((8, 12), 16, (8, 12)),
    ],
)
def test_block_sizes(shape, rule, wanted):
    assert block_sizes(*shape, rule) == wanted


def test_gradients_are_those_of_a_plain_product():
    key_x, key_w = jax.random.split(jax.random.key(0))
    x, w = jax.random.normal(key_x, (2, 7, 4)), jax.random.normal(key_w, (4, 5))
    zeros = Factors(jnp.zeros((1, 4, 4)), jnp.zeros((1, 5, 5)))
    ours = jax.grad(lambda x, w: jnp.mean(jnp.sin(measured_matmul(x, w, zeros))), (0, 1))(x, w)
    plain = jax.grad(lambda x, w: jnp.mean(jnp.sin(x @ w)), (0, 1))(x, w)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def measure(model, x):
    graphdef, factors, rest = nnx.split(model, Factor, ...)

    @jax.jit
    def gradient(factors):
        def loss(factors):
            return jnp.mean(jnp.sum(nnx.merge(graphdef, factors, rest)(x) ** 2, axis=-1))

        return jax.grad(loss)(factors)

    return nnx.to_pure_dict(gradient(factors))


@functools.cache
def inputs(tokens=8):
    return jax.random.normal(jax.random.key(1), (tokens, 5))


def test_any_model_measures_without_being_edited():
    model, x = Net(nnx.Rngs(0)), inputs()
    before = model(x)
    paths = measure_factors(model)
    assert {str(path) for path in paths} == {
        str(path) for path in (("first",), ("middle", 0), ("middle", 1), ("last",))
    }
    # the same product, compiled into another program
    np.testing.assert_allclose(model(x), before, rtol=1e-6, atol=1e-6)
    grads = measure(model, x)
    np.testing.assert_allclose(grads["first"]["input_factor"][0], x.T @ x / 8, rtol=1e-5, atol=1e-6)
    g = 2 * before  # of the loss sum(y ** 2)
    np.testing.assert_allclose(grads["last"]["output_factor"][0], g.T @ g / 8, rtol=1e-4, atol=1e-5)
    by_kernel = factors_by_kernel(grads)
    assert by_kernel["middle"][1]["kernel"].input.shape == (1, 6, 6)
    assert set(by_kernel["first"]) == {"kernel"}


def test_where_and_blocks_choose_what_is_measured():
    model = Net(nnx.Rngs(0))
    paths = measure_factors(model, where=lambda path, _: path[0] == "last", block_size="shorter")
    assert paths == [("last",)] and type(model.first) is nnx.Linear
    assert model.last.input_factor.shape == (2, 3, 3)
    assert model.last.output_factor.shape == (1, 3, 3)


def test_multiplier_scales_the_output_and_its_gradient_but_not_the_input_factor():
    x = inputs()
    factors = {}
    for multiplier in (1.0, 0.5):
        layer = Linear(5, 3, use_bias=False, multiplier=multiplier, rngs=nnx.Rngs(0))
        plain = layer(x)
        np.testing.assert_allclose(plain, multiplier * (x @ layer.kernel[...]), rtol=1e-5)
        measure_factors(layer)
        np.testing.assert_allclose(layer(x), plain, rtol=1e-6)
        factors[multiplier] = measure(layer, x)
    full, half = factors[1.0], factors[0.5]
    np.testing.assert_array_equal(full["input_factor"], half["input_factor"])
    # loss sum(y^2): g = 2 y m, and y holds m once more, so g goes as m^2 and g g^T as m^4
    np.testing.assert_allclose(half["output_factor"], full["output_factor"] / 16, rtol=1e-5)


def test_tokens_are_sampled_and_a_side_that_is_not_due_measures_zero():
    model, x = Net(nnx.Rngs(0)), inputs(64)
    measure_factors(model, max_tokens=16, scheduled=True)
    model.first.output_due = FactorDue(jnp.zeros((), bool))
    grads, fourth = measure(model, x)["first"], x[::4]
    wanted = fourth.T @ fourth / 16
    np.testing.assert_allclose(grads["input_factor"][0], wanted, rtol=1e-5, atol=1e-6)
    assert not jnp.any(grads["output_factor"])


@pytest.mark.parametrize("use_bias", [True, False])
def test_unmeasured_layer_compiles_to_the_same_program_as_nnx_linear(use_bias):
    def program(layer):
        lowered = jax.jit(lambda x: layer(x)).lower(jnp.ones((8, 5)))
        return lowered.as_text(), lowered.compile().cost_analysis()["flops"]

    plain, ours = (kind(5, 6, use_bias=use_bias, rngs=nnx.Rngs(0)) for kind in (nnx.Linear, Linear))
    assert program(plain) == program(ours)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        *((lambda rule=rule: block_sizes(4, 8, rule), "block_size is .*; allowed: None, 'shorter'")
          for rule in ("longer", 0, 2.5)),
        (lambda: measure_factors(nnx.LayerNorm(3, rngs=nnx.Rngs(0))), r"no nnx\.Linear"),
        (lambda: Linear(5, 3, multiplier=0.5, rngs=nnx.Rngs(0))(inputs()), "takes multiplier 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_subclass_with_its_own_forward_pass_is_left_alone():
    class Doubled(nnx.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model = nnx.Sequential(Doubled(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    assert measure_factors(model) == [("layers", 1)]
    assert type(model.layers[0]) is Doubled
