"""The coordinate check: sizes as in a loop by hand, exact slopes, and flat where theory is."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import polars.testing
import pytest
from flax import linen, nnx

from isolab.measure.coordinates import coordinate_check, coordinate_check_runs, slopes
from isolab.model.transformer import Linear
from isolab.optimizers.catalog import CATALOG, optimizer
from isolab.optimizers.leaves import path_names
from isolab.optimizers.per_layer import per_layer_optimizer
from isolab.theory.parameterization import parameterization, per_layer_rates
from isolab.training.config import RunConfig

COLUMNS = ["width", "seed", "step", "layer", "order", "activation_rms", "change_rms"]
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 1)).astype(np.float32)
BATCH = (jnp.asarray(X), jnp.asarray(Y))


def make_mlp(width, rngs):
    up = nnx.Linear(4, width, use_bias=False, rngs=rngs)
    return nnx.Sequential(up, jnp.tanh, nnx.Linear(width, 1, use_bias=False, rngs=rngs))


def squared_error(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def check(widths=(4, 8), **changes):
    arguments = {
        "make_model": make_mlp, "loss": squared_error, "batch": BATCH,
        "optimizer": optax.sgd(0.1), "steps": 2, "seeds": (0,),
    }  # fmt: skip
    return coordinate_check(widths=widths, **(arguments | changes))


def by_hand(width, seed, batches, rate):
    """Sizes after each step of gradient descent, in NumPy float64, seen on the first batch."""
    model = make_mlp(width, nnx.Rngs(seed))
    w, v = (np.asarray(model.layers[i].kernel[...], np.float64) for i in (0, 2))

    def forward(x):
        h = x @ w
        return h, np.tanh(h) @ v

    outputs = [forward(batches[0][0])]
    for x, y in batches:
        h, out = forward(x)
        error = 2 * (out - y) / len(x)
        grad_w = x.T @ ((error @ v.T) * (1 - np.tanh(h) ** 2))
        v = v - rate * np.tanh(h).T @ error
        w = w - rate * grad_w
        outputs.append(forward(batches[0][0]))
    rms = [[np.sqrt(np.mean(a**2)) for a in step] for step in outputs]
    change = [
        [np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(step, outputs[0], strict=True)]
        for step in outputs
    ]
    return rms, change


# --- any flax model ---


@pytest.mark.parametrize("several", [False, True])
def test_sizes_are_those_of_a_loop_by_hand(several):
    other = (X[::-1] * 2, Y)
    used = [(X, Y), other, (X, Y)] if several else [(X, Y)] * 3
    batch = [BATCH, tuple(map(jnp.asarray, other))] if several else BATCH
    frame = check(steps=3, batch=batch, seeds=(3, 5))
    assert frame.columns == COLUMNS
    assert frame.height == 2 * 2 * 4 * 3
    for width in (4, 8):
        for seed in (3, 5):
            rms, change = by_hand(width, seed, used, 0.1)
            mine = frame.filter(width=width, seed=seed)
            for order, layer in enumerate(("layers/0", "layers/2", "logits")):
                rows = mine.filter(layer=layer).sort("step")
                assert rows["order"].to_list() == [order] * 4
                at = min(order, 1)
                # float32 against float64; a change is a difference of numbers near 1
                np.testing.assert_allclose(rows["activation_rms"], [r[at] for r in rms], rtol=1e-5)
                assert rows["change_rms"][0] is None
                expected = [c[at] for c in change[1:]]
                np.testing.assert_allclose(rows["change_rms"][1:], expected, rtol=1e-4, atol=1e-6)


def test_an_optimizer_made_for_each_width_is_used_there():
    asked = []

    def optimizer(width, model):
        asked.append((width, type(model).__name__))
        return optax.sgd(0.0 if width == 4 else 0.1)

    frame = check(optimizer=optimizer, seeds=(0, 1)).filter(pl.col("step") > 0)
    assert asked == [(4, "Sequential"), (8, "Sequential")]
    assert (frame.filter(width=4)["change_rms"] == 0).all()
    assert (frame.filter(width=8)["change_rms"] > 0).all()


def test_dropout_and_batch_statistics_are_no_change():
    class Noisy(nnx.Module):
        def __init__(self, width, rngs):
            self.up = nnx.Linear(4, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.out = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.drop(self.norm(self.up(x))))

    frame = check(make_model=Noisy, optimizer=optax.sgd(0.0))
    changes = frame.filter(pl.col("step") > 0)
    assert changes["layer"].unique(maintain_order=True).to_list() == ["up", "norm", "out", "logits"]
    assert (changes["change_rms"] == 0).all()
    assert (frame["activation_rms"] > 0).all()


def test_more_seeds_and_steps_do_not_trace_again():
    traces = []

    def counted(model, batch):
        traces.append(1)
        return squared_error(model, batch)

    check(loss=counted, seeds=(0,), steps=1)
    once = len(traces)
    check(loss=counted, seeds=(0, 1, 2), steps=3)
    assert len(traces) == 2 * once


class LinenMLP(linen.Module):
    """The model of ``make_mlp``."""

    width: int

    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(self.width, use_bias=False, name="up")(x))
        return linen.Dense(1, use_bias=False, name="out")(hidden)


def test_a_linen_model_is_seen_module_by_module():
    def make(width, rngs):
        twin = make_mlp(width, rngs)
        model = nnx.bridge.ToNNX(LinenMLP(width), rngs).lazy_init(X)
        model.up["kernel"], model.out["kernel"] = (layer.kernel for layer in twin.layers[::2])
        return model

    names = {"layers/0": "up", "layers/2": "out", "logits": "logits"}
    expected = check().with_columns(pl.col("layer").replace_strict(names))
    polars.testing.assert_frame_equal(check(make_model=make), expected, rel_tol=1e-5)


def test_a_loss_may_return_more_beside_it_and_models_may_be_stacked_by_vmap():
    assert check(loss=lambda model, batch: (squared_error(model, batch), {"x": 1})).equals(check())

    def make(width, rngs):
        return nnx.vmap(lambda rngs: make_mlp(width, rngs))(rngs.split(2))

    def loss(models, batch):
        call = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
        return squared_error(lambda x: call(models, x).mean(axis=0), batch)

    assert check(make_model=make, loss=loss)["layer"].to_list() == check()["layer"].to_list()


def test_a_diverged_model_is_kept():
    frame = check(optimizer=optax.sgd(1e30), steps=4)
    assert not frame.filter(step=4, layer="logits")["activation_rms"].is_finite().any()
    found = slopes(frame).filter(step=4, layer="logits", quantity="activation").row(0, named=True)
    assert found["slope"] is None
    assert found["note"].startswith("no slope: at width 4, seed 0, it is ")


def mapped_over_the_batch(model, batch):
    each = nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))
    return squared_error(lambda x: each(model, x), batch)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"widths": [8, 8]}, ValueError, r"widths is \[8, 8\]; allowed: 2 or more different"),
        ({"widths": 64}, ValueError, "widths is 64; allowed: 2 or more"),
        ({"seeds": [0.5]}, ValueError, r"seeds is \[0.5\]"),
        ({"steps": -1}, ValueError, "steps is -1; allowed: a whole number of 0 or more"),
        ({"batch": []}, ValueError, r"batch is \[\]"),
        ({"make_model": lambda w, r: "mlp"}, TypeError, "returned a str at width 4; allowed: a f"),
        ({"make_model": lambda w, r: nnx.Dropout(0.5)}, ValueError, "Dropout has no parameters"),
        ({"optimizer": optax.adam}, TypeError, "is adam, which takes a rate; pass adam"),
        ({"loss": lambda m, b: squared_error(jax.vmap(m), b)}, ValueError, "inside jax.vmap or"),
        ({"loss": mapped_over_the_batch}, ValueError, "on the whole batch"),
        ({"make_model": lambda w, r: nnx.bridge.ToNNX(LinenMLP(w), r)}, ValueError, "lazy_init"),
        ({"optimizer": "adam"}, TypeError, "optimizer gives a str; allowed: an optax transf"),
        ({"loss": lambda m, b: m(b[0])}, ValueError, r"loss returned float32 of shape \(6, 1\)"),
        ({"loss": lambda m, b: b[0].mean()}, ValueError, "no layer of Sequential was called"),
    ],
)
def test_errors_name_the_argument_the_value_and_what_is_allowed(changes, error, message):
    with pytest.raises(error, match=message):
        check(**changes)


def test_slopes_of_sizes_and_changes():
    rows = [(n, 1, "up", 3, 2.0 * n**0.5, 0.1 * n) for n in (8, 16, 64)]
    rows += [(n, 0, "up", 3, 2.0, None) for n in (8, 16, 64)]
    names = ["width", "step", "layer", "order", "activation_rms", "change_rms"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(seed=0)
    found = slopes(frame)
    assert found.columns[:4] == ["layer", "order", "step", "quantity"]
    assert found.select("step", "quantity", pl.col("slope").round(9)).rows() == [
        (0, "activation", 0.0), (1, "activation", 0.5), (1, "change", 1.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"missing columns \['change_rms'\]"):
        slopes(frame.drop("change_rms"))


# --- against theory ---


class RoleMLP(nnx.Module):
    """An MLP with a layer of every role, scaled as a parameterization says."""

    def __init__(self, name, width, rngs):
        scaling = parameterization(name)

        def layer(fan_in, fan_out, role):
            return Linear(
                fan_in, fan_out, use_bias=False, rngs=rngs,
                kernel_init=jax.nn.initializers.normal(scaling.init_std(role, width)),
                multiplier=scaling.multiplier(role, width),
            )  # fmt: skip

        self.embedding = layer(4, width, "embedding")
        self.hidden = nnx.List([layer(width, width, "hidden") for _ in range(2)])
        self.readout = layer(width, 1, "readout")

    def __call__(self, x):
        x = self.embedding(x)
        for hidden in self.hidden:
            x = hidden(jax.nn.relu(x))
        return self.readout(jax.nn.relu(x))


def adam_by_role(name, rule):
    def optimizer(width, model):
        rates = per_layer_rates(name, "adam", width if rule == "full" else 16, 16)

        def scale(updates, params):
            return jax.tree_util.tree_map_with_path(
                lambda path, u: rates[path_names(path)[0]] * u, updates
            )

        return optax.chain(optax.adam(0.002), optax.stateless(scale))

    return optimizer


def role_slopes(name, rule):
    frame = coordinate_check(
        lambda width, rngs: RoleMLP(name, width, rngs), [16, 256], loss=squared_error, batch=BATCH,
        optimizer=adam_by_role(name, rule), steps=2, seeds=range(4),
    )  # fmt: skip
    found = slopes(frame).drop_nulls("slope").select("step", "layer", "quantity", "slope").rows()
    return {(step, quantity, layer): slope for step, layer, quantity, slope in found}


HIDDEN = ("hidden/0", "hidden/1")


@pytest.mark.parametrize(
    ("name", "logits"), [("standard", 0.0), ("ntk", 0.0), ("mup", -0.5), ("mean_field", -0.5)]
)
def test_sizes_of_all_parameterizations_are_flat_where_theory_says(name, logits):
    found = role_slopes(name, "full")
    # Untrained: 24 outputs that share 16 random rows, 4 seeds: a spread of log2 of about 0.25 at
    # width 16, over the 4 doublings to 256. A change also has a part without alignment, smaller by
    # n^-1/2 only, which bends the slope downwards by some 0.1.
    for layer in ("embedding", *HIDDEN):
        assert found[0, "activation", layer] == pytest.approx(0.0, abs=0.15)
        for step in (1, 2):
            assert found[step, "change", layer] == pytest.approx(0.0, abs=0.2)
    assert found[0, "activation", "readout"] == pytest.approx(logits, abs=0.3)
    # Hidden layers move along the untrained readout, which adds up n weights of n^-1/2 in standard
    # and NTK and of n^-1 in the other two: at most 1/2 and 0.
    grown = found[1, "change", "readout"]
    assert 0.2 < grown < 0.6 if logits == 0.0 else abs(grown) < 0.2


def test_changes_grow_with_one_rate_for_all():
    found = role_slopes("standard", "global")
    assert found[1, "change", "embedding"] == pytest.approx(0.0, abs=0.15)
    for layer in (*HIDDEN, "readout"):
        assert found[1, "change", layer] > 0.6  # theory: 1, for small changes at large widths


class PlainMLP(nnx.Module):
    """A model of flax alone: created with a spread of 1 / sqrt(fan_in), no multipliers."""

    def __init__(self, width, rngs):
        self.enter = nnx.Linear(8, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.leave = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.leave(jax.nn.relu(self.middle(jax.nn.relu(self.enter(x)))))


def first_changes(made, rate=None, rule=None):
    """The slopes of the hidden layer's first change, with every other parameter at rest."""
    keys = jax.random.split(jax.random.key(0))
    batch = jax.random.normal(keys[0], (64, 8)), 3 * jax.random.normal(keys[1], (64, 4))
    named = {"enter": "embedding", "middle": "hidden", "leave": "readout"}
    rest = dict.fromkeys(["embedding", "bias", "readout", "fixed"], 1e-9)
    frame = coordinate_check(
        PlainMLP, [32, 256], loss=squared_error, batch=batch, steps=1, seeds=range(3),
        optimizer=lambda width, model: per_layer_optimizer(
            model, made, rate, rule=rule, width=width, base_width=32, roles=named, gamma=rest
        ),
    )  # fmt: skip
    return slopes(frame).filter(layer="middle", quantity="change").row(0, named=True)


# The size of Iso's update without measured factors follows the gradient's scale, not a rule.
@pytest.mark.parametrize("name", [name for name in CATALOG if name != "iso"])
def test_hidden_changes_are_flat_under_the_rule_of_every_optimizer(name):
    rate = {"sgd": 0.05, "adafactor": 0.02, "muon": 0.02, "iso": 0.02}.get(name, 0.001)
    found = first_changes(name, rate)
    print(name, {end: found[end] for end in ("slope", "slope_low", "slope_high")})
    # Exponents of rules come in steps of 1/2.
    assert abs(found["slope"]) < 0.25


def test_muons_hidden_changes_vanish_under_adams_rule():
    found = first_changes(optimizer("muon", 0.02), rule="adam")
    assert found["slope"] < -0.75  # theory: -1


BRIEF = RunConfig(
    parameterization="mup", rate_rule="full", base_width=16, depth=1, head_size=8, context=16,
    batch_size=8, learning_rate=0.01, corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip


def test_a_run_under_mup_is_flat_but_for_its_logits_and_seen_without_its_warm_up():
    slow = dataclasses.replace(BRIEF, warmup_steps=400, schedule="cosine")
    frame = coordinate_check_runs(slow, (16, 64), seeds=[0, 1, 2])
    found = slopes(frame)
    assert frame.columns == COLUMNS
    assert frame.height == 2 * 3 * 5 * 11
    assert frame.filter(step=0, layer="embedding")["order"].unique().to_list() == [0]
    # Three seeds: untrained activations of 128 tokens and 16 to 64 channels, over two doublings.
    # Changes as above.
    inner = found.filter(~pl.col("layer").is_in(["readout", "logits"]))
    assert inner.filter(step=0)["slope"].abs().max() < 0.15
    assert inner.filter(quantity="change")["slope"].abs().max() < 0.2
    first = dict(found.filter(step=0).select("layer", "slope").rows())
    assert first["logits"] == pytest.approx(-0.5, abs=0.2)
    assert first["readout"] == pytest.approx(first["logits"], abs=1e-5)
    # Adam's first step moves an entry of both embeddings by the whole rate at the base width, times
    # the multiplier sqrt(16), each up or down: by sqrt(2) in the root mean square of their sum.
    moved = frame.filter(step=1, layer="embedding", width=16)["change_rms"]
    assert moved.to_list() == pytest.approx([4 * 0.01 * math.sqrt(2)] * 3, rel=0.2)
