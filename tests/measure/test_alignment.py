"""Alignment: the formula against NumPy float64, its limits, and its measurement in a real run."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.measure.alignment import KINDS, WINDOWS, alignment, measure
from isolab.model.corpus import load_corpus, validation_windows
from isolab.model.probe import activations
from isolab.training.config import RunConfig
from isolab.training.watch import by_layer, watch

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=20, warmup_steps=2, evaluate_every=10, validation_windows=32,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip
LAYERS = [f"blocks/0/{name}" for name in ("attention/qkv", "attention/out", "mlp/up", "mlp/down")]
LAYERS += ["readout"]


def reference(w, z):
    w, z = np.asarray(w, np.float64), np.asarray(z, np.float64)
    size = [np.sqrt(np.mean(x**2)) for x in (z @ w, w, z)]
    return np.log(size[0] / (size[1] * size[2])) / np.log(w.shape[0])


# --- the formula ---


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 3.0), st.integers(-30, 30), st.integers(-30, 30))
def test_alignment_is_the_formula_whatever_the_scales(seed, common, w_scale, z_scale):
    rng = np.random.default_rng(seed)
    along = rng.normal(size=12)
    w = rng.normal(size=(12, 5)) + common * np.outer(along, rng.normal(size=5))
    z = rng.normal(size=(2, 3, 12)) + common * along
    w, z = (w * 10.0**w_scale).astype(np.float32), (z * 10.0**z_scale).astype(np.float32)
    found = float(alignment(w, z))
    # float32: some 1e-6 relative in each rms, divided by log(12)
    assert found == pytest.approx(reference(w, z), abs=1e-5)
    assert found <= 1 + 1e-5


def test_a_zero_matrix_has_no_alignment():
    assert np.isnan(alignment(jnp.zeros((4, 2)), jnp.ones(4)))
    assert np.isnan(alignment(jnp.ones((4, 2)), jnp.zeros(4)))


@pytest.mark.parametrize(("w", "z"), [((4, 2), (3,)), ((4,), (4,)), ((1, 2), (1,)), ((2, 2), ())])
def test_shapes_that_do_not_fit_are_named(w, z):
    with pytest.raises(ValueError, match=r"weights have shape .* allowed: \(n, fan_out\) and"):
        alignment(np.ones(w), np.ones(z))


# --- in a run ---


@pytest.fixture(scope="module")
def measured():
    return measure(BASE, [8, 16], steps=[5, 0, 1], seeds=[0, 1])


def test_there_is_a_row_per_width_seed_step_layer_and_kind(measured):
    assert measured.columns == [
        "width", "seed", "step", "layer", "role", "fan_in", "kind", "alignment",
    ]  # fmt: skip
    for width in (8, 16):
        for seed in (0, 1):
            mine = measured.filter(width=width, seed=seed)
            expected = [
                (step, layer, kind)
                for step in (0, 1, 5)
                for layer in LAYERS
                for kind in (KINDS if step else KINDS[:1])
            ]
            assert mine.select("step", "layer", "kind").rows() == expected
    sizes = measured.select("width", "layer", "fan_in", "role").unique().rows()
    assert all(n == (2 if layer.endswith("down") else 1) * w for w, layer, n, _ in sizes)
    assert {(layer == "readout") == (role == "readout") for _, layer, _, role in sizes} == {True}
    assert measured["alignment"].is_between(-1, 1 + 1e-5).all()


def test_the_first_update_is_the_whole_change_and_a_later_one_is_not(measured):
    kinds = measured.pivot(
        on="kind", values="alignment", index=["width", "seed", "layer", "step"]
    ).filter(pl.col("step") > 0)
    assert ((kinds["change"] == kinds["update"]) == (kinds["step"] == 1)).all()


def test_each_number_is_the_formula_on_the_runs_own_parameters(measured):
    (seen,) = watch(dataclasses.replace(BASE, seed=1), [5])
    corpus = load_corpus(BASE.corpus)
    inputs, _ = validation_windows(corpus, WINDOWS, BASE.context)
    layers = jax.jit(lambda params: activations(seen.model(params), inputs))(seen.params)
    now, first, before = (by_layer(x) for x in (seen.params, seen.initial, seen.previous))
    for layer in LAYERS:
        w, w_0, w_before = (np.asarray(x[layer], np.float64) for x in (now, first, before))
        expected = [reference(m, layers[layer].inputs[0]) for m in (w, w - w_0, w - w_before)]
        found = measured.filter(width=16, seed=1, step=5, layer=layer)["alignment"].to_list()
        # float32; an update is a difference of weights, so relatively coarser: 6e-8 / 0.01
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_matrix_that_did_not_move_has_no_alignment():
    still = dataclasses.replace(BASE, learning_rate=1e-30)
    frame = measure(still, [8], steps=[1], seeds=[0])
    assert frame.filter(kind="weights")["alignment"].is_not_null().all()
    assert frame.filter(pl.col("kind") != "weights")["alignment"].is_null().all()
