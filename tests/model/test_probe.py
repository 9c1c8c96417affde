"""The probe: every layer's input and output, in order, under transforms, and no trace left."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.model.probe import activations, in_order, rms
from isolab.model.transformer import Linear, Transformer, TransformerConfig

TINY = TransformerConfig(vocab_size=16, width=16, depth=2, head_size=8, context=8)
TOKENS = jax.random.randint(jax.random.key(7), (2, 8), 0, 16)
BLOCK = ("attention_norm", "attention/qkv", "attention/out", "mlp_norm", "mlp/up", "mlp/down")


def mlp(*sizes, seed=0, **options):
    rngs = nnx.Rngs(seed)
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nnx.Linear(fan_in, fan_out, rngs=rngs, **options), jnp.tanh]
    return nnx.Sequential(*layers[:-1])


@functools.partial(nnx.jit, static_argnames=("scaling", "config"))
def transformer(scaling="standard", config=TINY):
    return Transformer(config, scaling, rngs=nnx.Rngs(0))


@functools.cache
def seen_in_transformer(scaling="standard"):
    return jax.jit(lambda: activations(transformer(scaling), TOKENS))()


def names_in_order(seen):
    return [name for name, _ in in_order(seen)]


# --- what is seen ---


@settings(max_examples=15)
@given(st.sampled_from([(2, 3, 2), (2, 3, 2, 3)]), st.integers(0, 2**31 - 1))
def test_an_mlps_layers_are_those_of_a_loop_by_hand(sizes, seed):
    model = mlp(*sizes, seed=seed)
    x = np.random.default_rng(seed).normal(size=(3, sizes[0])).astype(np.float32)
    seen = activations(model, jnp.asarray(x))
    layers = len(sizes) - 1
    assert list(seen) == [*(f"layers/{2 * i}" for i in range(layers)), "logits"]
    for i in range(layers):
        layer = seen[f"layers/{2 * i}"]
        np.testing.assert_allclose(layer.inputs[0], x, rtol=1e-5, atol=1e-6)  # float32, 5 terms
        y = x @ np.asarray(model.layers[2 * i].kernel[...]) + np.asarray(
            model.layers[2 * i].bias[...]
        )
        np.testing.assert_allclose(layer.output, y, rtol=1e-5, atol=1e-6)
        x = np.tanh(np.asarray(layer.output))
    np.testing.assert_array_equal(seen["logits"].output, seen[f"layers/{2 * layers - 2}"].output)


def test_the_transformers_layers_come_in_the_order_of_the_call():
    seen = seen_in_transformer()
    blocks = [f"blocks/{i}{part}" for i in range(2) for part in (*(f"/{b}" for b in BLOCK), "")]
    assert names_in_order(seen) == ["embedding", *blocks, "final_norm", "readout", "logits"]
    assert sorted(layer.order for layer in seen.values()) == list(range(len(seen)))


def test_the_residual_stream_begins_with_the_embedding_and_its_multiplier():
    model = transformer("mup")
    seen = seen_in_transformer("mup")
    summed = np.asarray(model.embedding[...])[TOKENS] + np.asarray(model.positions[...])
    stream = (model.embedding_multiplier * summed).reshape(16, 16)
    # float32, one sum and one product, fused or not
    np.testing.assert_allclose(seen["embedding"].output, stream, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen["blocks/0"].inputs[0], seen["embedding"].output)
    for part in ("blocks/0/attention/out", "blocks/0/mlp/down"):
        stream = stream + seen[part].output
    np.testing.assert_allclose(seen["blocks/0"].output, stream, rtol=1e-5, atol=1e-5)


class Foreign(nnx.Module):
    """Flax layers of many kinds, one of them used twice, its output a tuple."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.conv = nnx.Conv(4, 4, kernel_size=(3,), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs))
        self.head = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, tokens):
        x = self.rnn(self.norm(self.conv(self.embed(tokens))))
        x = self.head(inputs=self.drop(x))
        return self.head(x), x


def test_every_kind_of_flax_layer_is_seen_and_a_second_call_apart():
    model = nnx.jit(lambda: Foreign(nnx.Rngs(0)))()
    before = jax.tree.map(np.array, state_of(model))
    seen = nnx.jit(activations)(model, jnp.zeros((2, 5), jnp.int32))
    assert names_in_order(seen) == ["embed", "conv", "norm", "rnn", "head", "head#2", "logits"]
    np.testing.assert_array_equal(seen["head#2"].inputs[0], seen["head"].output)
    np.testing.assert_array_equal(seen["logits"].output[1], seen["head"].output)
    # neither statistics nor random counters have moved
    jax.tree.map(np.testing.assert_array_equal, before, state_of(model))


def state_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))


# --- under transforms ---


def test_jit_vmap_and_remat_see_what_a_plain_call_sees():
    plain = seen_in_transformer()
    recomputed = transformer(config=dataclasses.replace(TINY, remat=True))
    graphdef, params = nnx.split(recomputed)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    look = jax.jit(jax.vmap(lambda p: activations(nnx.merge(graphdef, p), TOKENS)))
    batched = look(stacked)
    assert names_in_order(batched) == names_in_order(plain)
    for name, layer in plain.items():
        # float32 in another order of summation; logits are sums of 16 terms of size one
        np.testing.assert_allclose(batched[name].output[0], layer.output, rtol=1e-4, atol=1e-5)
    assert jnp.any(batched["logits"].output[0] != batched["logits"].output[1])


class Stack(nnx.Module):
    """Layers stacked on an axis and scanned over."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda r: nnx.Linear(4, 4, rngs=r), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(3))

    def __call__(self, x):
        step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return step(x, self.layers)


def test_scanned_layers_are_seen_stacked():
    seen = activations(Stack(nnx.Rngs(0)), jnp.ones((2, 4)))
    assert seen["layers"].output.shape == (3, 2, 4)
    np.testing.assert_array_equal(seen["layers"].output[-1], seen["logits"].output)


# --- no trace is left ---


def test_classes_are_as_before_even_after_an_error():
    before = {cls: vars(cls).get("__call__") for cls in (Linear, nnx.Linear, nnx.Sequential)}
    model = nnx.Sequential(Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(9, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="dot_general"):
        activations(model, jnp.ones((2, 3)))
    assert before == {cls: vars(cls).get("__call__") for cls in before}
    assert vars(model.layers[0]).keys() == vars(Linear(3, 4, rngs=nnx.Rngs(0))).keys()


def test_another_model_of_the_same_class_is_not_seen():
    student, teacher = mlp(3, 4, 1), mlp(3, 4, 1, seed=1)
    seen = activations(student, jnp.ones((2, 3)), call=lambda m, x: (teacher(x), m(x)))
    assert list(seen) == ["layers/0", "layers/2", "logits"]
    np.testing.assert_array_equal(seen["logits"].output, student(jnp.ones((2, 3))))
    assert vars(teacher.layers[0]).keys() == vars(mlp(3, 4, 1).layers[0]).keys()


def test_threads_see_their_own_model():
    found = {}

    def look(width):
        for _ in range(20):
            seen = activations(mlp(3, width, 1), jnp.ones((2, 3)))
            found.setdefault(width, set()).add(seen["layers/0"].output.shape)

    threads = [threading.Thread(target=look, args=(width,)) for width in (4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {4: {(2, 4)}, 5: {(2, 5)}}


# --- errors ---


def test_errors_name_what_was_wrong():
    with pytest.raises(TypeError, match="model is a function; allowed: "):
        activations(lambda x: x, jnp.ones(3))
    with pytest.raises(ValueError, match=r"Dropout has no parameters \(nnx.Param\)"):
        activations(nnx.Dropout(0.5), jnp.ones(3))
    with pytest.raises(ValueError, match="no layer of Sequential was called"):
        activations(mlp(3, 4, 1), jnp.ones((2, 3)), call=lambda m, x: x)


# --- rms ---


@given(st.lists(st.floats(-100, 100, width=32), min_size=16, max_size=16))
def test_rms_of_a_tree_is_that_of_all_its_entries(values):
    x = np.array(values, np.float32)
    tree = {"a": x[:5], "b": (x[5:6], x[6:])}
    # 16 squares in float32: relative error of about 16 * 6e-8; squares below 1e-38 underflow
    expected = np.sqrt(np.mean(x.astype(np.float64) ** 2))
    assert float(rms(tree)) == pytest.approx(expected, rel=2e-6, abs=1e-18)


def test_rms_of_bfloat16_is_summed_in_float32():
    assert rms(jnp.full(1000, 1.5, jnp.bfloat16)) == 1.5
