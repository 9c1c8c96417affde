"""Iso and IsoAdam: the invariance that names them, their values by hand, and how they are used."""

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

from isolab.optimizers.factors import Factors
from isolab.optimizers.iso import (
    growing_interval,
    iso,
    isoadam,
    refresh_due,
    scale_by_iso,
    scale_by_isoadam,
)
from isolab.optimizers.products import value_grad_factors
from isolab.optimizers.whitening import whiten

SEEDS = st.integers(0, 2**32 - 1)
N, M, TOKENS, STEPS = 5, 4, 40, 3


# --- the property: singular values do not change under invertible maps of x and g ---


def invertible(rng, n, condition):
    """Random rotations around a spectrum whose ends are 1 and 1 / condition, times any scale."""
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    inner = rng.uniform(size=n - 2)
    spectrum = condition ** -np.concatenate([[0.0, 1.0], inner])
    return 10 ** rng.uniform(-2, 2) * (u * spectrum[None]) @ v


def samples(rng):
    """Inputs and output gradients of STEPS batches, mixed and correlated as in a network."""
    x = rng.normal(size=(STEPS, TOKENS, N)) @ invertible(rng, N, 3.0)
    g = rng.normal(size=(STEPS, TOKENS, M)) @ invertible(rng, M, 3.0)
    return x, g + 0.3 * np.tanh(x[..., :M]) * g.std()


@functools.cache
def singular_values_of(name, dtype, exact=True):
    """Jitted: (x, g) -> singular values of the update of every step."""
    rule = {
        "iso": lambda: scale_by_iso(damping=0.0),
        "isoadam": lambda: scale_by_isoadam(damping=0.0),
        "adam": lambda: optax.with_extra_args_support(optax.scale_by_adam()),
    }[name]()

    @jax.jit
    def run(x, g):
        params = {"w": jnp.zeros((N, M), dtype)}

        def step(state, batch):
            xt, gt = batch
            factors = Factors((xt.T @ xt / TOKENS)[None], (gt.T @ gt / TOKENS)[None])
            grads = {"w": xt.T @ gt / TOKENS}
            given = {"w": factors} if exact else None
            updates, state = rule.update(grads, state, params, factors=given)
            return state, jnp.linalg.svd(updates["w"], compute_uv=False)

        return jax.lax.scan(step, rule.init(params), (x, g))[1]

    return run


def drawn(seed, condition):
    """Returns x, g and maps P, Q of them of a condition number."""
    rng = np.random.default_rng(seed)
    return (*samples(rng), *(invertible(rng, n, condition) for n in (N, M)))


def change(name, dtype, x, g, P, Q, exact=True):
    """Largest change of a singular value under x -> x P, g -> g Q, relative to the largest one."""
    values = singular_values_of(name, dtype, exact)
    with jax.enable_x64(dtype == "float64"):
        before = np.asarray(values(jnp.asarray(x, dtype), jnp.asarray(g, dtype)), np.float64)
        after = np.asarray(values(jnp.asarray(x @ P, dtype), jnp.asarray(g @ Q, dtype)), np.float64)
    return np.max(np.abs(after - before) / before.max(axis=1, keepdims=True))


@pytest.mark.parametrize("name", ["iso", "isoadam"])
@settings(max_examples=20)
@given(seed=SEEDS, log_condition=st.floats(0, 2))
def test_singular_values_do_not_change_under_invertible_maps(name, seed, log_condition):
    x, g, P, Q = drawn(seed, 10**log_condition)
    # Promised: 1e-3. In float64 the condition numbers of A and B, up to some 1e6, times 1e-16 are
    # all that is lost.
    assert change(name, "float64", x, g, P, Q) < 1e-8


@settings(max_examples=20)
@given(seed=SEEDS, log_condition=st.floats(0, 1.3))
def test_float32_keeps_1e_3_up_to_condition_number_20(seed, log_condition):
    # largest seen in 40 draws each: 3e-6 at condition 3, 4e-5 at 10, 3e-4 at 30, 3e-3 at 100
    assert change("iso", "float32", *drawn(seed, 10**log_condition)) < 1e-3


def test_adams_singular_values_do_change_and_so_do_those_by_gradient_factors():
    draws = [drawn(seed, 10.0) for seed in range(10)]
    assert np.median([change("adam", "float64", *draw) for draw in draws]) > 0.1
    assert np.median([change("iso", "float64", *draw, exact=False) for draw in draws]) > 0.02


@pytest.mark.parametrize("name", ["iso", "isoadam"])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_gradient_factors_are_invariant_to_rotations(name, seed):
    rng = np.random.default_rng(seed)
    x, g = samples(rng)
    P, Q = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (N, M))
    # G G^T has rank M only on the first step: what is left of its null space is rounding, which
    # the smallest eigenvalue allowed, eps * largest, makes no larger than the square root of eps.
    assert change(name, "float64", x, g, P, Q, exact=False) < 1e-6


@settings(max_examples=10)
@given(seed=SEEDS)
def test_singular_values_of_one_gradient_are_canonical_correlations(seed):
    rng = np.random.default_rng(seed)
    x, g = samples(rng)
    with jax.enable_x64(True):
        values = singular_values_of("iso", "float64")(jnp.asarray(x), jnp.asarray(g))[0]
    qx, qg = np.linalg.qr(x[0])[0], np.linalg.qr(g[0])[0]
    np.testing.assert_allclose(values, np.linalg.svd(qx.T @ qg, compute_uv=False), rtol=1e-6)


# --- IsoAdam and Adam ---


def test_isoadam_is_adam_where_covariances_are_diagonal():
    tokens, n, m, steps, b1 = 32, 8, 6, 6000, 0.9
    sd_x, sd_g = (jnp.float32(np.geomspace(1, 100, k))[None] for k in (n, m))
    params = {"w": jnp.zeros((n, m))}

    @jax.jit
    def run(b2):
        rules = {
            "isoadam": scale_by_isoadam(b1, b2, refresh_every=1),
            "adam": optax.with_extra_args_support(optax.scale_by_adam(b1, b2, 1e-30)),
        }

        def step(states, key):
            key_x, key_g = jax.random.split(key)
            x = sd_x * jax.random.normal(key_x, (tokens, n))
            g = sd_g * jax.random.normal(key_g, (tokens, m))
            factors = {"w": Factors((x.T @ x / tokens)[None], (g.T @ g / tokens)[None])}
            grads = {"w": x.T @ g / tokens}
            out = {k: r.update(grads, states[k], params, factors=factors) for k, r in rules.items()}
            return {k: out[k][1] for k in out}, {k: out[k][0]["w"] for k in out}

        states = {name: rule.init(params) for name, rule in rules.items()}
        return jax.lax.scan(step, states, jax.random.split(jax.random.key(0), steps))[1]

    for b2 in (0.99, 0.999):
        updates = run(b2)
        ours, adams = (np.asarray(updates[name])[steps // 2 :] for name in ("isoadam", "adam"))
        error = np.sqrt(np.mean((ours - adams) ** 2) / np.mean(adams**2))
        # An average with decay b is worth (1 + b) / (1 - b) independent samples.
        samples_v, samples_m = (1 + b2) / (1 - b2), (1 + b1) / (1 - b1)
        adams_v = 1 / (2 * samples_v)  # relative variance of the root of a mean of squares
        # of U, whose samples are correlated
        our_v = max(1.0, samples_m / 2) / (2 * samples_v * n * m)
        roots = (n + m) / (4 * tokens * samples_v) * 2  # a row of A^-1/2 mixes in n errors of A / 2
        expected = np.sqrt(adams_v + our_v + roots)
        assert 0.5 * expected < error < 1.5 * expected
        assert np.sqrt(np.mean(adams**2)) == pytest.approx(samples_m**-0.5, rel=0.1)


# --- by hand, in NumPy and float64 ---


def hand_root(a, damping):
    values, vectors = np.linalg.eigh(a)
    return (vectors * ((values + damping * values[-1]) ** -0.5)[None]) @ vectors.T


def hand_adam(grads, b1, b2, eps):
    m = v = 0.0
    for t, G in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * G, b2 * v + (1 - b2) * G**2
        yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def hand_isoadam(grads, factors, b1, b2, eps, damping, sizes, size):
    """Loops over steps and blocks; ``factors`` None for those of the gradient."""
    (fan_in, fan_out), (n, m) = grads[0].shape, sizes
    rows = [slice(i, i + n) for i in range(0, fan_in, n)]
    columns = [slice(j, j + m) for j in range(0, fan_out, m)]
    A, B = [0.0] * len(rows), [0.0] * len(columns)
    mu, nu = np.zeros((fan_in, fan_out)), np.zeros((len(rows), len(columns)))
    adams = hand_adam(grads, b1, b2, eps)
    for t, G in enumerate(grads, 1):
        mu = b1 * mu + (1 - b1) * G
        for i, r in enumerate(rows):
            new = factors[t - 1][0][i] if factors else G[r] @ G[r].T
            A[i] = b2 * A[i] + (1 - b2) * new
        for j, c in enumerate(columns):
            new = factors[t - 1][1][j] if factors else G[:, c].T @ G[:, c]
            B[j] = b2 * B[j] + (1 - b2) * new
        U, sized = np.zeros_like(G), np.zeros_like(G)
        shrink = (1 - b1) / (1 + b1) * (1 + b1**t) / (1 - b1**t)
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                left = hand_root(A[i] / (1 - b2**t), damping)
                right = hand_root(B[j] / (1 - b2**t), damping)
                u = U[r, c] = left @ (mu[r, c] / (1 - b1**t)) @ right
                nu[i, j] = b2 * nu[i, j] + (1 - b2) * np.mean(u**2) / shrink
                sized[r, c] = u / (np.sqrt(nu[i, j] / (1 - b2**t)) + eps)
        adam = next(adams)
        free = 1.0 if factors else np.sqrt(sum(np.trace(a) for a in A) / (1 - b2**t))
        yield {
            "iso": U * free,
            "rms": sized,
            "graft": U * np.linalg.norm(adam) / np.linalg.norm(U),
        }[size]


@pytest.mark.parametrize(
    ("size", "block_size", "exact"),
    [
        ("iso", None, True),
        ("iso", "shorter", False),
        ("rms", None, True),
        ("rms", None, False),
        ("rms", "shorter", True),
        ("rms", 2, False),
        ("graft", None, False),
        ("graft", "shorter", True),
    ],
)
def test_three_steps_by_hand(size, block_size, exact):
    rng = np.random.default_rng(0)
    fan_in, fan_out = 4, 8
    sizes = {None: (4, 8), "shorter": (4, 4), 2: (2, 2)}[block_size]
    grads = rng.normal(size=(3, fan_in, fan_out))
    factors = None
    if exact:
        factors = []
        for _ in range(3):
            pair = []
            for side, length in zip((fan_in, fan_out), sizes, strict=True):
                half = rng.normal(size=(side // length, length, 3 * length))
                pair.append(half @ half.transpose(0, 2, 1))
            factors.append(pair)
    b1, b2, eps, damping = 0.8, 0.6, 1e-3, 1e-3
    options = {"damping": damping, "block_size": block_size}
    with jax.enable_x64(True):
        if size == "iso":
            rule = scale_by_iso(b1, b2, **options)
        else:
            rule = scale_by_isoadam(b1, b2, eps, size=size, **options)
        params = {"w": jnp.zeros((fan_in, fan_out), jnp.float64)}
        state, update = rule.init(params), jax.jit(rule.update)
        by_hand = hand_isoadam(grads, factors, b1, b2, eps, damping, sizes, size)
        for t, wanted in enumerate(by_hand):
            given = {"w": Factors(*map(jnp.asarray, factors[t]))} if exact else None
            updates, state = update({"w": jnp.asarray(grads[t])}, state, params, factors=given)
            # corrections 1 - b**t are float32
            np.testing.assert_allclose(updates["w"], wanted, rtol=1e-5, atol=1e-6)


def test_aliases_chain_rule_decay_and_rate():
    rng = np.random.default_rng(1)
    params = {"w": jnp.float32(rng.normal(size=(3, 4))), "bias": jnp.ones(4)}
    grads = {"w": jnp.float32(rng.normal(size=(3, 4))), "bias": jnp.float32([1, -2, 3, 0])}
    same = {"damping": 1e-5, "refresh_every": 10, "block_size": "shorter"}
    for alias, rule, options in (
        (iso, scale_by_iso(**same), same),
        (isoadam, scale_by_isoadam(size="graft", **same), {"size": "graft", **same}),
    ):
        wanted, _ = jax.jit(rule.update)({"w": grads["w"]}, rule.init({"w": params["w"]}))
        tx = alias(0.25, weight_decay=0.5, **options)
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        np.testing.assert_allclose(
            updates["w"], -0.25 * (wanted["w"] + 0.5 * params["w"]), rtol=1e-6, atol=1e-7
        )
        adam = jnp.sign(grads["bias"])  # Adam's first step
        np.testing.assert_allclose(
            updates["bias"], -0.25 * (adam + 0.5 * params["bias"]), rtol=1e-5
        )


# --- when factors are read and roots are made ---


def refreshed(rule_of_steps, steps):
    rule = scale_by_iso(refresh_every=rule_of_steps)
    params = {"w": jnp.zeros((2, 3))}
    grads = jax.random.normal(jax.random.key(0), (steps, 2, 3))

    @jax.jit
    def run(grads):
        def step(state, g):
            _, state = rule.update({"w": g}, state)
            return state, state.matrices["w"]

        return jax.lax.scan(step, rule.init(params), grads)[1]

    kept = run(grads)
    for tree in (kept.roots, kept.factors):
        for x in tree:
            changed = jnp.any(x[1:] != x[:-1], axis=(1, 2, 3))
            yield [0, *(int(t) + 1 for t in jnp.flatnonzero(changed))]


@pytest.mark.parametrize("every", [1, 7])
def test_roots_change_on_refresh_steps_only(every):
    wanted = [t for t in range(40) if t < 10 or t % every == 0]
    for steps in refreshed(every, 40):
        assert steps == wanted
    assert [t for t in range(40) if refresh_due(jnp.int32(t), every)] == wanted


def test_growing_interval_drives_refreshes():
    rule = growing_interval(0.1, 20)
    wanted = np.flatnonzero(jax.vmap(rule)(jnp.arange(300))).tolist()
    for steps in refreshed(rule, 300):
        assert steps == wanted


@settings(max_examples=10)
@given(rate=st.floats(0.02, 0.5), longest=st.integers(5, 200))
def test_growing_interval_grows_as_promised(rate, longest):
    due = np.flatnonzero(jax.vmap(growing_interval(rate, longest))(jnp.arange(3000)))
    assert due[:10].tolist() == list(range(10))
    gaps, at = np.diff(due), due[:-1]
    # A step that passes a whole number comes within one step of where the number is passed; the
    # interval may grow by a factor e**rate while it lasts.
    promised = np.clip(rate * at, 1, longest)
    later = at >= 10
    assert (gaps[later] <= np.ceil(promised * np.exp(rate) + 1)[later]).all()
    if rate * 3000 > 2 * longest:
        assert np.median(gaps[-5:]) == pytest.approx(longest, abs=1)
    expected = (
        np.log(min(3000, longest / rate) / 10) / rate + max(3000 - longest / rate, 0) / longest
    )
    if rate * 10 >= 1 and longest / rate > 10:
        assert len(due) - 10 == pytest.approx(expected, abs=2 + 0.02 * expected)


def test_factors_are_averaged_per_step_between_refreshes():
    # Constant factors: whatever the interval, the corrected average is the constant itself, so the
    # root is its root. A wrong weight of a refresh after a gap would show.
    A = Factors(4 * jnp.eye(2)[None], 9 * jnp.eye(3)[None])
    for every in (1, 5):
        rule = scale_by_iso(b2=0.9, damping=0.0, refresh_every=every)
        state, update = rule.init({"w": jnp.zeros((2, 3))}), jax.jit(rule.update)
        for _ in range(26):
            _, state = update({"w": jnp.ones((2, 3))}, state, factors={"w": A})
        np.testing.assert_allclose(state.matrices["w"].roots.input[0], jnp.eye(2) / 2, rtol=1e-5)
        np.testing.assert_allclose(state.matrices["w"].roots.output[0], jnp.eye(3) / 3, rtol=1e-5)
    # Factors that are passed only in refresh steps give the same as factors in every step.
    rule = scale_by_iso(refresh_every=5)
    state = plain = rule.init({"w": jnp.zeros((2, 3))})
    update = jax.jit(rule.update)
    for t in range(17):
        seen = jax.tree.map(lambda f, t=t: f * (1.0 + t), A)
        hidden = seen if refresh_due(jnp.int32(t), 5) else jax.tree.map(jnp.zeros_like, A)
        g = {"w": jnp.full((2, 3), 1.0 + t)}
        u, state = update(g, state, factors={"w": seen})
        v, plain = update(g, plain, factors={"w": hidden})
        np.testing.assert_array_equal(u["w"], v["w"])


# --- errors ---


def update_with_wrong_factors():
    params = {"layers": [{"kernel": jnp.ones((2, 3))}]}
    tx = isoadam(0.1)
    wrong = {"layers": [{"kernel": Factors(jnp.ones((1, 2, 2)), jnp.ones((3, 1, 1)))}]}
    tx.update(params, tx.init(params), params, factors=wrong)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: scale_by_iso().init({"bias": jnp.ones(3)}), "iso: bias has shape (3,); allowed"),
        (lambda: isoadam(0.1, root="cholesky"), "root is 'cholesky'; allowed: ['eigh', 'newton']"),
        (lambda: isoadam(0.1, size="big"), "size is 'big'; allowed: 'rms', 'graft'"),
        (lambda: isoadam(0.1, block_size=0).init({"w": jnp.ones((2, 3))}), "block_size is 0"),
        (update_with_wrong_factors, "factors['layers/0/kernel'].output has shape (3, 1,"),
    ],
)  # fmt: skip
def test_impossible_choices_and_shapes_are_refused(attempt, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attempt()


# --- with flax.nnx ---


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)])
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(x)


@pytest.mark.parametrize("exact", [False, True])
def test_trains_an_nnx_model_through_nnx_optimizer(exact):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, isoadam(0.03, block_size="shorter", refresh_every=10), wrt=nnx.Param
    )
    assert set(optimizer.opt_state[0].matrices.iso.matrices) == {
        "layers/0/kernel",
        "layers/1/kernel",
    }
    x = jax.random.normal(jax.random.key(1), (32, 4))
    y = jnp.sin(3 * x[:, :2])

    @nnx.jit
    def step(model, optimizer):
        graphdef, params = nnx.split(model)

        def loss(params):
            return jnp.mean(jnp.sum((nnx.merge(graphdef, params)(x) - y) ** 2, axis=-1))

        measured = [f"layers/{i}/kernel" for i in (0, 1)]
        measure = value_grad_factors(loss, measured, block_size="shorter")
        value, grads, factors = measure(params)
        factors = factors if exact else None
        optimizer.update(model, grads, factors=factors)
        return value

    losses = [float(step(model, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    matrices = optimizer.opt_state[0].matrices.iso.matrices
    factor = matrices["layers/0/kernel"].factors.input
    if exact:  # E[x x^T] of the first layer's inputs, the same in every step
        corrected = np.asarray(factor[...][0]) / (1 - 0.95**31)  # last refresh: step 30 of 0..39
        np.testing.assert_allclose(corrected, x.T @ x / 32, rtol=1e-4, atol=1e-5)


# --- whitening ---


@settings(max_examples=15)
@given(seed=SEEDS, blocks=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 3)]))
def test_whiten_equals_block_diagonal_products(seed, blocks):
    rng = np.random.default_rng(seed)
    mu = np.float32(rng.normal(size=(4, 6)))
    roots = [np.float32(rng.normal(size=(k, n // k, n // k))) for k, n in zip(blocks, mu.shape)]  # noqa: B905
    dense = []
    for root in roots:
        whole = np.zeros((len(root) * root.shape[1],) * 2, np.float32)
        for i, block in enumerate(root):
            at = slice(i * len(block), (i + 1) * len(block))
            whole[at, at] = block
        dense.append(whole)
    got = jax.jit(whiten)(mu, Factors(*roots))
    np.testing.assert_allclose(got, dense[0] @ mu @ dense[1], rtol=1e-4, atol=1e-4)
