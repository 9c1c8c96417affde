"""Exact factors of anybody's model, and views, read off its products."""

from __future__ import annotations

import os
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers as View

from isolab.model.transformer import Linear
from isolab.optimizers.factors import Factors, block_second_moment, block_sizes
from isolab.optimizers.iso import isoadam
from isolab.optimizers.leaves import by_path
from isolab.optimizers.products import product_views, products, value_grad_factors
from isolab.optimizers.views import Seen

SEEDS = st.integers(0, 2**32 - 1)
# float32 sums of up to 60 products against another order of them: relative error about 60**.5 6e-8
RTOL = 1e-5


def moment(rows):
    """E[r r^T] of rows, in float64."""
    rows = np.asarray(rows, np.float64).reshape(-1, np.shape(rows)[-1])
    return rows.T @ rows / len(rows)


def close(got, wanted, rtol=10 * RTOL):
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def flat(tree):
    return by_path(tree, is_leaf=lambda leaf: isinstance(leaf, Factors | Seen))


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 3, 5), (17, 5, 2), (40, 7, 7)])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_factors_equal_explicit_per_token_sums(shape, seed):
    tokens, fan_in, fan_out = shape
    rng = np.random.default_rng(seed)
    x, kernel = (np.float32(rng.normal(size=s)) for s in ((tokens, fan_in), (fan_in, fan_out)))
    _, grads, factors = PLAIN({"w": kernel}, x)
    close(factors["w"].input[0], moment(x))
    g = np.cos(x.astype(np.float64) @ kernel)  # of each token's loss, sum(sin(y))
    close(factors["w"].output[0], moment(g))
    close(grads["w"], x.T @ g / tokens)


def sines(params, x):
    return jnp.sin(x @ params["w"]).sum(-1).mean()


PLAIN = jax.jit(value_grad_factors(sines))


def test_dtypes_of_activations_and_weights():
    x, w = random(0, 64, 4), random(1, 4, 3)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), ({"w": w}, x))
    factors = PLAIN(*low)[2]["w"]
    assert factors.input.dtype == factors.output.dtype == jnp.float32
    close(factors.input[0], moment(low[1]))  # products of bfloat16 are summed in float32
    with jax.enable_x64(True):
        x, w = (np.asarray(a, np.float64) for a in (x, w))
        factors = PLAIN({"w": w}, x)[2]["w"]
        assert factors.output.dtype == jnp.float64
        close(factors.output[0], moment(np.cos(x @ w)), 1e-12)


@settings(max_examples=10)
@given(power=st.integers(-125, 98), seed=SEEDS)
def test_factors_are_finite_at_any_scale_of_the_loss(power, seed):
    rng = np.random.default_rng(seed)
    x, w = (np.float32(rng.normal(size=s)) for s in ((9, 4), (4, 3)))
    got = SCALED({"w": w}, x, np.float32(2.0) ** power)[2]["w"].output[0]
    plain = PLAIN({"w": w}, x)[2]["w"].output[0]
    assert np.isfinite(got).all()
    if power < -100:  # the gradient itself leaves float32's range
        return
    # where float32 cannot hold the squares, the factor's scale is bounded
    close(got / np.trace(got), plain / np.trace(plain))
    if abs(power) < 45:
        close(got, np.float64(2.0) ** (2 * power) * plain)


SCALED = jax.jit(value_grad_factors(lambda params, x, scale: scale * sines(params, x)))


class Attention(nnx.Module):
    """What people have in a block: attention, LinearGeneral, Einsum, Dropout, BatchNorm, Embed."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, rngs=rngs, decode=False)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.up = nnx.LinearGeneral(16, (4, 8), rngs=rngs)
        self.down = nnx.Einsum("blhd,hdo->blo", (4, 8, 16), rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.dropout(self.attention(x))
        return self.embed.attend(x + self.down(nnx.gelu(self.up(self.norm(x)))))


@pytest.fixture(scope="module")
def attention():
    model = Attention(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, tokens):
        model = nnx.merge(graphdef, params, rest)
        value = optax.softmax_cross_entropy_with_integer_labels(model(tokens), tokens).mean()
        return value, nnx.state(model, nnx.Not(nnx.Param))

    return model, loss, params, rest, jax.random.randint(jax.random.key(2), (3, 5), 0, 11)


def test_views_of_flax_layers(attention):
    _, loss, params, rest, tokens = attention
    views = {path: its.view for path, its in products(loss, params, rest, tokens).items()}
    out, split = View((0, 1), (2,)), View((0,), (1, 2))
    assert views == {
        "embed/embedding": View((1,), (0,)), "up/kernel": split, "down/kernel": out,
        "attention/query/kernel": split, "attention/key/kernel": split,
        "attention/value/kernel": split, "attention/out/kernel": out,
    }  # fmt: skip
    labels = flat(product_views(loss, params, rest, tokens))
    assert labels["embed/embedding"] == Seen(None, "embedding by its name")
    assert labels["up/bias"] == Seen(None, "bias or gain by its name")
    assert labels["up/kernel"] == Seen(split, "by its product")


def test_factors_of_attention_with_dropout_and_batch_norm(attention):
    model, loss, params, rest, tokens = attention
    (value, after), grads, factors = jax.jit(value_grad_factors(loss, has_aux=True))(
        params, rest, tokens
    )

    def again(params, rest):  # jax.grad alone cannot take state that the model changes
        return loss(params, jax.tree.map(lambda leaf: leaf, rest), tokens)

    (plain, state), wanted = jax.jit(jax.value_and_grad(again, has_aux=True))(params, rest)
    assert value == plain
    before, then, expected = (nnx.to_pure_dict(its)["norm"]["mean"] for its in (rest, after, state))
    np.testing.assert_array_equal(then, expected)
    assert not np.array_equal(then, before)
    assert after["dropout"]["rngs"]["count"][...] == 1
    jax.tree.map(lambda a, b: close(a, b, 1e-4), grads, wanted)
    assert any(
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (rest, after)), strict=True)
    )
    factors = flat(factors)
    close(factors["attention/query/kernel"].input[0], moment(model.embed(tokens)))

    def moved(shift):  # the gradient with respect to the query of every token
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        again = nnx.merge(graphdef, *jax.tree.map(lambda leaf: leaf, (params, rest)))
        query = again.attention.query
        again.attention.query = lambda x, **_: query(x) + shift
        logits = again(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    g = 15 * jax.jit(jax.grad(moved))(jnp.zeros((3, 5, 4, 4)))
    close(factors["attention/query/kernel"].output[0], moment(g.reshape(15, 16)), 1e-4)


def test_trains_through_nnx_optimizer(attention):
    model, loss, params, rest, tokens = attention
    model = nnx.clone(model)
    tx = isoadam(0.02, labels=product_views(loss, params, rest, tokens))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        _, params, rest = nnx.split(model, nnx.Param, ...)
        measured = value_grad_factors(loss, product_views(loss, params, rest, tokens), has_aux=True)
        (value, rest), grads, factors = measured(params, rest, tokens)
        nnx.update(model, rest)
        optimizer.update(model, grads, factors=factors)
        return value

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2)(x, x)
        return x + nn.DenseGeneral(8)(nn.gelu(nn.Dense(12, use_bias=False)(x))), None


@pytest.mark.parametrize("block", [Block, nn.remat(Block)], ids=["scan", "scan of remat"])
def test_layers_stacked_by_linen_scan_equal_layers_one_by_one(block):
    x = random(0, 2, 5, 8)
    stacked = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = stacked.init(jax.random.key(1), x, None)["params"]

    def in_scan(params, x):
        return jnp.square(stacked.apply({"params": params}, x, None)[0]).mean()

    def one_by_one(layers, x):
        for layer in layers:
            x, _ = Block().apply({"params": layer}, x)
        return jnp.square(x).mean()

    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3)]
    _, _, together = jax.jit(value_grad_factors(in_scan))(params, x)
    _, _, apart = jax.jit(value_grad_factors(one_by_one))(layers, x)
    for path, factors in flat(together).items():
        each = [flat(layer)[path] for layer in apart]
        for side in Factors._fields:
            got, wanted = getattr(factors, side), [getattr(its, side) for its in each]
            close(got, np.stack(wanted), 1e-4)
            assert np.trace(got[0, 0]) > 0


def to_nnx():
    model = nnx.bridge.ToNNX(nn.Dense(5), rngs=nnx.Rngs(0)).lazy_init(jnp.ones((1, 4)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return params, lambda params, x: nnx.merge(
        graphdef, params, jax.tree.map(lambda leaf: leaf, rest)
    )(x)


def in_equinox():
    model = eqx.nn.Linear(4, 5, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, rest))(x)


@pytest.mark.parametrize("make", [to_nnx, in_equinox])
def test_linen_through_nnx_and_equinox(make):
    params, model = make()
    x = random(1, 7, 4)

    def loss(params, x):
        return jnp.sin(model(params, x)).sum(-1).mean()

    _, grads, factors = value_grad_factors(loss)(params, x)
    ((path, its),) = flat(factors).items()
    view = products(loss, params, x)[path].view
    assert (view == View((0,), (1,))) == (make is to_nnx)  # equinox has outputs first
    close(its.input[0], moment(x))
    close(its.output[0], moment(np.cos(model(params, x))))
    tx = isoadam(0.1, labels=product_views(loss, params, x))
    updates, _ = tx.update(grads, tx.init(params), params, factors=factors)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    with pytest.raises(ValueError, match="factors have 'elsewhere/"):
        tx.update(grads, tx.init(params), params, factors={"elsewhere": factors})


def test_stacks_of_vmap_and_of_experts():
    params = {"w": random(0, 3, 4, 5)}
    x = random(1, 7, 3, 4)

    def vmapped(params, x):
        return jnp.sin(jax.vmap(jnp.dot, (0, 1), 1)(params["w"], x)).sum(-1).mean()

    def layers(params, x):
        layer = nnx.vmap(lambda x, w: x @ w, in_axes=(1, 0), out_axes=1)
        return jnp.sin(layer(x, params["w"])).sum(-1).mean()

    def experts(params, x):
        return jnp.sin(jnp.einsum("bed,edf->bef", x, params["w"])).sum(-1).mean()

    for loss in (layers, experts):
        assert products(loss, params, x)["w"].view == View((1,), (2,))
        factors = value_grad_factors(loss)(params, x)[2]["w"]
        close(factors.input[:, 0], np.stack([moment(x[:, e]) for e in range(3)]))
    assert vmapped  # its products are dot products of vectors: no matrix
    with pytest.raises(ValueError, match="no parameter is in a product"):
        value_grad_factors(lambda params, x: (params["w"].sum() * x).mean())(params, x)


def test_tied_kernels_have_the_mean_over_the_tokens_of_both():
    w, x, z = random(0, 4, 4), random(1, 6, 4), random(2, 2, 4)

    def loss(params, x, z):
        y = jnp.sin(x @ params["w"]).sum() + jnp.sin(z @ params["w"].T.T).sum()
        return y / (len(x) + len(z))

    factors = value_grad_factors(loss)({"w": w}, x, z)[2]["w"]
    both = np.concatenate([x, z])
    close(factors.input[0], moment(both))
    close(factors.output[0], moment(np.cos(both @ w)))
    # used along its other side as well it is no one matrix
    assert not products(lambda p, x: (x @ p["w"] @ p["w"].T).mean(), {"w": w}, x)


@pytest.mark.parametrize(
    "kernel",
    [lambda w: 1 / w, lambda w: w * w, lambda w: w * w[:1], lambda w: w.ravel()[:8].reshape(4, 2)],
)
def test_what_is_made_of_a_kernel_is_no_kernel(kernel):
    params = {"w": random(0, 4, 5)}
    assert not products(lambda params, x: (x @ kernel(params["w"])).mean(), params, random(1, 3, 4))


def test_scans_over_merged_axes_or_out_of_order_are_left_out():
    params, x = {"w": random(0, 2, 3, 4, 4)}, random(1, 2, 7, 4)  # experts, layers, matrices

    def merged(params, x):
        layers = params["w"].reshape(6, 4, 4)
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0].mean()

    def crossed(params, x):
        layers = params["w"].swapaxes(0, 1)
        step = lambda x, w: (jnp.tanh(jnp.einsum("ebd,edf->ebf", x, w)), None)  # noqa: E731
        return jax.lax.scan(step, x, layers)[0].mean()

    for loss in (merged, crossed):
        assert not products(loss, params, x)


def test_a_kernel_that_scan_shares_over_time():
    x = random(1, 6, 3, 4)

    def loss(params, x):
        return jax.lax.scan(lambda c, x: (c + jnp.sin(x @ params["w"]).sum(), 0), 0.0, x)[0] / 18

    params = {"w": random(0, 4, 5)}
    assert products(loss, params, x)["w"].tokens == 18
    got, wanted = (
        value_grad_factors(loss)(params, x)[2]["w"],
        PLAIN(params, x.reshape(18, 4))[2]["w"],
    )
    jax.tree.map(close, got, wanted)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_factors_of_a_convolution_are_those_of_its_patches(padding):
    x, kernel = random(0, 2, 6, 5, 3), random(1, 3, 2, 3, 4)
    names = ("NHWC", "HWIO", "NHWC")

    def loss(params, x):
        y = jax.lax.conv_general_dilated(x, params["w"], (2, 1), padding, dimension_numbers=names)
        return jnp.sin(y).sum(-1).mean()

    cut = jax.lax.conv_general_dilated_patches(x, (3, 2), (2, 1), padding, dimension_numbers=names)
    patches = cut.reshape(-1, 3, 3, 2).transpose(0, 2, 3, 1).reshape(-1, 18)
    wanted = PLAIN({"w": kernel.reshape(18, 4)}, patches)[2]["w"]
    jax.tree.map(close, value_grad_factors(loss)({"w": kernel}, x)[2]["w"], wanted)


def test_blocks_largest_sides_sampled_tokens_and_steps_that_are_not_due():
    params, x = {"w": random(0, 4, 6)}, random(1, 64, 4)
    whole = PLAIN(params, x)[2]["w"]
    blocks = value_grad_factors(sines, block_size=2)(params, x)[2]["w"]
    assert blocks.input.shape == (2, 2, 2) and blocks.output.shape == (3, 2, 2)
    close(blocks.output[2], whole.output[0, 4:, 4:])
    bounded = value_grad_factors(sines, max_side=4)(params, x)[2]["w"]
    assert bounded.output is None
    close(bounded.input, whole.input)
    sampled = value_grad_factors(sines, max_tokens=16)(params, x)[2]["w"]
    close(sampled.input[0], moment(x[::4]))
    _, grads, factors = jax.jit(value_grad_factors(sines))(params, x, due=jnp.array(False))
    assert not any(map(np.any, factors["w"]))
    close(grads["w"], PLAIN(params, x)[1]["w"])
    with pytest.raises(ValueError, match=r"'v' is in no product; in products are: \['w'\]"):
        value_grad_factors(sines, ["v"])(params, x)


MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from isolab.optimizers.products import value_grad_factors

params = {"w": jnp.sin(jnp.arange(24.0)).reshape(6, 4)}
params["v"] = jnp.cos(jnp.arange(32.0)).reshape(4, 8)
x = jax.random.normal(jax.random.key(2), (8, 5, 6))

def loss(params, x):
    hidden = jnp.tanh(x @ params["w"])
    if columns:
        hidden = jax.sharding.reshard(hidden, P())
    return jnp.square(jnp.tanh(hidden @ params["v"])).sum(-1).mean()

columns = False
wanted = value_grad_factors(loss)(params, x)
mesh = jax.make_mesh((2,), ("data",))  # explicit, JAX's default

def check(function, weights, data):
    with jax.set_mesh(mesh):
        data = jax.device_put(x, NamedSharding(mesh, data))
        got = jax.jit(function)(jax.device_put(params, NamedSharding(mesh, weights)), data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, wanted)

def on_each(params, x):  # the mean over the mesh, of all three
    return value_grad_factors(lambda p, x: jax.lax.pmean(loss(p, x), "data"))(params, x)

check(value_grad_factors(loss), P(), P("data"))
check(jax.shard_map(on_each, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()), P(), P("data"))
columns = True
check(value_grad_factors(loss), P(None, "data"), P())
print("the same")
"""


def test_meshes_with_explicit_axes_and_shard_map():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", MESH], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "the same\n", done.stderr


# --- blocks, and our own linear layer ---


@pytest.mark.parametrize("blocks", [1, 2, 4])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_blocks_are_the_diagonal_blocks(blocks, seed):
    rows = np.float32(np.random.default_rng(seed).normal(size=(50, 3 * blocks)))
    second_moment = jax.jit(block_second_moment, static_argnums=1)
    whole, parts = second_moment(rows, 3 * blocks)[0], second_moment(rows, 3)
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


@pytest.mark.parametrize("rule", ["longer", 0, 2.5])
def test_impossible_block_sizes_are_refused(rule):
    with pytest.raises(ValueError, match=r"block_size is .*; allowed: None, 'shorter'"):
        block_sizes(4, 8, rule)


def test_multiplier_scales_the_output_and_its_gradient_but_not_the_input_factor():
    x, factors = random(0, 8, 5), {}
    for multiplier in (1.0, 0.5):
        layer = Linear(5, 3, use_bias=False, multiplier=multiplier, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(layer(x), multiplier * (x @ layer.kernel[...]), rtol=1e-5)
        graphdef, params = nnx.split(layer)

        def loss(params, x, graphdef=graphdef):
            return jnp.square(nnx.merge(graphdef, params)(x)).sum(-1).mean()

        factors[multiplier] = flat(value_grad_factors(loss)(params, x)[2])["kernel"]
    np.testing.assert_array_equal(factors[1.0].input, factors[0.5].input)
    # loss sum(y^2): g = 2 y m, and y holds m once more, so g goes as m^2 and g g^T as m^4
    np.testing.assert_allclose(factors[0.5].output, factors[1.0].output / 16, rtol=1e-5)
    with pytest.raises(ValueError, match="takes multiplier 1"):
        Linear(5, 3, multiplier=0.5, rngs=nnx.Rngs(0))
