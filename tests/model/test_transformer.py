"""The decoder-only Transformer: causality, what parameterizations do to it, and its options."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isolab.model.transformer import Transformer, TransformerConfig, next_token_loss, roles
from isolab.theory.parameterization import PARAMETERIZATIONS, parameterization

V, L = 16, 8
TINY = TransformerConfig(vocab_size=V, width=16, depth=1, head_size=8, context=L)
WIDE = dataclasses.replace(TINY, width=64, vocab_size=256, context=64)
TOKENS = jax.random.randint(jax.random.key(7), (2, L), 0, V)
TARGETS = jax.random.randint(jax.random.key(8), (2, L), 0, V)


def make(config=TINY, scaling="standard", seed=0):
    return Transformer(config, scaling, rngs=nnx.Rngs(seed))


@functools.cache
def compiled(graphdef):
    """Jitted by graph: (params, tokens, targets) -> logits, objective, loss, gradients."""

    def objective(params, tokens, targets):
        return next_token_loss(nnx.merge(graphdef, params), tokens, targets)

    @jax.jit
    def run(params, tokens, targets):
        (value, loss), grads = jax.value_and_grad(objective, has_aux=True)(params, tokens, targets)
        return nnx.merge(graphdef, params)(tokens), value, loss, grads

    return run


@nnx.jit
def compiled_forward(model, tokens, targets):
    return model(tokens), next_token_loss(model, tokens, targets)[1]


def forward(model, tokens=TOKENS, targets=TARGETS):
    """Returns logits and loss, by one program however it is called."""
    return compiled_forward(model, tokens, targets)


def run(model, tokens=TOKENS, targets=TARGETS):
    graphdef, params = nnx.split(model)
    return compiled(graphdef)(params, tokens, targets)


# --- causality ---


@pytest.mark.parametrize("qk_norm", [False, True])
def test_no_output_depends_on_a_later_token(qk_norm):
    model = make(dataclasses.replace(TINY, depth=2, qk_norm=qk_norm))
    logits = forward(model)[0]
    for t in range(1, L):
        changed = TOKENS.at[:, t].set((TOKENS[:, t] + 1) % V)
        moved = forward(model, changed)[0] != logits
        assert not moved[:, :t].any()
        assert moved[:, t:].any(axis=-1).all()  # all later ones do: attention is not cut off


def test_sequences_of_a_batch_do_not_meet():
    model = make()
    both = forward(model)[0]
    swapped = forward(model, TOKENS[::-1])[0]
    np.testing.assert_allclose(swapped, both[::-1], rtol=1e-5, atol=1e-6)
    other = forward(model, TOKENS.at[1].set(0))[0]
    np.testing.assert_array_equal(other[0], both[0])


def test_attention_by_hand():
    """One layer of attention in NumPy, from its definition, one query at a time."""
    attention = make(dataclasses.replace(TINY, qk_norm=True)).blocks[0].attention
    x = np.asarray(jax.random.normal(jax.random.key(3), (2 * L, 16)), np.float64)
    got = attention(jnp.float32(x), 2)
    qkv = x @ np.asarray(attention.qkv.kernel[...], np.float64)
    out = np.zeros((2 * L, 16))
    for b in range(2):
        for h in range(2):
            q, k, v = (
                qkv[b * L : (b + 1) * L, part * 16 + h * 8 : part * 16 + (h + 1) * 8]
                for part in range(3)
            )
            q, k = ((y - y.mean(1)[:, None]) / np.sqrt(y.var(1)[:, None] + 1e-6) for y in (q, k))
            for t in range(L):
                score = np.exp(k[: t + 1] @ q[t] / np.sqrt(8))
                out[b * L + t, h * 8 : (h + 1) * 8] = score @ v[: t + 1] / score.sum()
    wanted = out @ np.asarray(attention.out.kernel[...], np.float64)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# --- parameterizations ---


@pytest.mark.parametrize("name", sorted(PARAMETERIZATIONS))
def test_initial_spread_and_multipliers_are_those_of_the_parameterization(name):
    width = WIDE.width
    model, scaling = make(WIDE, name), parameterization(name)
    assert model.embedding_multiplier == scaling.multiplier("embedding", width)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    block = params["blocks"][0]
    fan_ins = {
        "embedding": (params["embedding"], width),
        "positions": (params["positions"], width),
        "readout": (params["readout"]["kernel"], width),
        "qkv": (block["attention"]["qkv"]["kernel"], width),
        "out": (block["attention"]["out"]["kernel"], width),
        "up": (block["mlp"]["up"]["kernel"], width),
        "down": (block["mlp"]["down"]["kernel"], 4 * width),
    }
    for where, (value, fan_in) in fan_ins.items():
        role = {"positions": "embedding"}.get(where, where)
        role = role if role in ("embedding", "readout") else "hidden"
        std = scaling.init_std(role, fan_in)
        # the estimate from n draws has a relative standard error of 1 / sqrt(2 n), its mean
        # one of 1 / sqrt(n); 5 of them are passed once in two million draws
        assert float(value.std()) == pytest.approx(std, rel=5 / np.sqrt(2 * value.size))
        assert abs(float(value.mean())) < 5 * std / np.sqrt(value.size)
    hidden = model.blocks[0].mlp.down
    assert hidden.multiplier == scaling.multiplier("hidden", 4 * width)
    assert model.readout.multiplier == scaling.multiplier("readout", width)
    for norm in (model.final_norm, model.blocks[0].mlp_norm, model.blocks[0].attention_norm):
        np.testing.assert_array_equal(norm.scale[...], 1)


@pytest.mark.parametrize("shifted", ["ntk", "standard shifted by 0.3"])
def test_equivalent_parameterizations_are_one_function_of_rescaled_weights(shifted):
    scaling = (
        parameterization("ntk")
        if shifted == "ntk"
        else parameterization("standard").shifted({"hidden": 0.3, "embedding": 0.3, "readout": 0.3})
    )
    # the same draws: each weight is its standard normal times init_std
    standard, other = make(TINY, "standard"), make(TINY, scaling)
    kernels = [m.blocks[0].mlp.up.kernel[...] for m in (standard, other)]
    ratio = scaling.init_std("hidden", 16) / parameterization("standard").init_std("hidden", 16)
    np.testing.assert_allclose(kernels[1], ratio * kernels[0], rtol=1e-5)
    a, b = run(standard), run(other)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)
    # W' = r W: gradients with respect to W' are 1 / r of those with respect to W
    grads = [nnx.to_pure_dict(r[3])["blocks"][0]["mlp"]["up"]["kernel"] for r in (a, b)]
    np.testing.assert_allclose(grads[1] * ratio, grads[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"), [("standard", 1.0), ("ntk", 1.0), ("mup", 1 / 8), ("mean_field", 1 / 8)]
)
def test_logits_start_with_the_size_that_the_theory_says(name, size):
    # the readout sees layer-normed entries of size 1 and has multiplier n^-a, std n^-b:
    # logits have size n^(1/2 - a - b), which is 1 or n^-1/2
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 256)
    logits, loss = forward(make(WIDE, name), tokens[:, :64], tokens[:, 64:])
    # one independent sum for each of the 256 columns of the readout
    assert float(jnp.mean(logits**2)) ** 0.5 == pytest.approx(size, rel=5 / np.sqrt(2 * 256))
    # cross-entropy of Gaussian logits of variance s^2 against other targets: log V + s^2 / 2,
    # where the 128 targets' own logits have mean 0 and standard error s / sqrt(128)
    expected = np.log(256) + size**2 / 2
    assert float(loss) == pytest.approx(expected, abs=5 * size / np.sqrt(128))


# --- roles and shapes ---


def test_every_parameter_has_its_role_and_heads_keep_their_size():
    model = make(dataclasses.replace(TINY, depth=2, qk_norm=True))
    found = roles(model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    by_role = {}
    jax.tree.map(lambda r, p: by_role.setdefault(r, []).append(p.shape), found, params)
    assert sorted(by_role["embedding"]) == [(L, 16), (V, 16)]
    assert by_role["readout"] == [(16, V)]
    assert sorted(by_role["hidden"]) == sorted(2 * [(16, 48), (16, 16), (16, 64), (64, 16)])
    assert sorted(by_role["vector"]) == sorted(5 * [(16,)] + 4 * [(8,)])
    assert set(by_role) == {"embedding", "hidden", "readout", "vector"}
    wide = make(dataclasses.replace(TINY, width=64, qk_norm=True)).blocks[0].attention
    assert wide.query_norm.scale.shape == (8,) and wide.qkv.kernel.shape == (64, 192)
    model.blocks[0].mlp.up = nnx.Linear(16, 64, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="parameter blocks/0/mlp/up/bias has no role"):
        roles(model)


def test_any_length_up_to_the_context():
    model = make()
    logits = forward(model)[0]
    short = forward(model, TOKENS[:, :3], TARGETS[:, :3])[0]
    np.testing.assert_allclose(short, logits[:, :3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="tokens have length 9; allowed: up to the context, 8"):
        model(jnp.zeros((1, L + 1), jnp.int32))


# --- options ---


def test_loss_by_hand_and_z_loss():
    model = make(dataclasses.replace(TINY, z_loss=0.1))
    logits, objective, loss, _ = run(model)
    z = np.asarray(logits, np.float64)
    partition = np.log(np.exp(z).sum(-1))
    targets = np.take_along_axis(z, np.asarray(TARGETS)[..., None], -1)[..., 0]
    assert float(loss) == pytest.approx((partition - targets).mean(), rel=1e-5)
    assert float(objective) == pytest.approx(float(loss) + 0.1 * (partition**2).mean(), rel=1e-5)
    assert float(run(make())[1]) == float(run(make())[2])


def test_qk_norm_ignores_the_size_of_queries_and_keys():
    for qk_norm in (True, False):
        model = make(dataclasses.replace(TINY, qk_norm=qk_norm))
        before = forward(model)[0]
        qkv = model.blocks[0].attention.qkv
        qkv.kernel = qkv.kernel.replace(qkv.kernel[...].at[:, :32].multiply(64.0))
        # LayerNorm's epsilon, 1e-6, is what is left
        assert bool(jnp.allclose(forward(model)[0], before, rtol=1e-3, atol=1e-3)) == qk_norm


def test_bfloat16_is_close_to_float32():
    exact, rounded = (
        run(make(dataclasses.replace(TINY, dtype=d))) for d in ("float32", "bfloat16")
    )
    assert rounded[0].dtype == jnp.float32
    # eight bits of mantissa, some ten roundings in a row
    np.testing.assert_allclose(rounded[0], exact[0], atol=10 * 2**-8 * float(jnp.std(exact[0])))
    assert np.any(rounded[0] != exact[0])
    assert float(rounded[2]) == pytest.approx(float(exact[2]), rel=2**-8)
    for a, b in zip(jax.tree.leaves(rounded[3]), jax.tree.leaves(exact[3]), strict=True):
        assert a.dtype == jnp.float32
        assert float(jnp.linalg.norm(a - b)) < 10 * 2**-8 * float(jnp.linalg.norm(b))


def test_remat_gives_the_same_gradients():
    plain, remat = (run(make(dataclasses.replace(TINY, remat=r))) for r in (False, True))
    assert float(plain[2]) == pytest.approx(float(remat[2]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(plain[3]), jax.tree.leaves(remat[3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    def text(remat):
        model = make(dataclasses.replace(TINY, remat=remat))
        graphdef, params = nnx.split(model)
        loss = lambda p: next_token_loss(nnx.merge(graphdef, p), TOKENS, TARGETS)[1]  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params))

    assert "remat" in text(True)
    assert "remat" not in text(False)
