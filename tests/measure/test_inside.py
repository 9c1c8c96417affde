"""Inside a run: against the run's own steps, against alignment, and against NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from isolab.measure.alignment import alignment
from isolab.measure.inside import SIDES, TOKENS, inspect_run, prepare_inspection
from isolab.model.corpus import load_corpus, validation_windows
from isolab.model.probe import activations, rms
from isolab.model.transformer import next_token_loss
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, by_layer, watch

BASE = RunConfig(
    width=16, base_width=8, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    parameterization="mup", rate_rule="full", learning_rate=0.01, steps=8, warmup_steps=0,
    schedule="constant", evaluate_every=4, validation_windows=8,
    corpus="zipf_markov:vocab_size=16,length=20000", seed=3,
)  # fmt: skip
WINDOWS = TOKENS // BASE.context
LAYERS = [
    "embedding", "positions", "blocks/0/attention_norm", "blocks/0/attention/qkv",
    "blocks/0/attention/out", "blocks/0/mlp_norm", "blocks/0/mlp/up", "blocks/0/mlp/down",
    "final_norm", "readout",
]  # fmt: skip


def variant(**changes):
    return dataclasses.replace(BASE, **changes)


@functools.cache
def state(config, step):
    """Returns a run's state after so many steps."""
    (seen,) = watch(config, [step])
    return seen.state


def numbers(inside, column):
    return dict(inside.layers.select("layer", column).iter_rows())


def test_the_change_is_that_of_the_runs_own_next_step():
    inside = inspect_run(BASE, state(BASE, 4), 4)
    assert inside.step == 4
    assert inside.layers["layer"].to_list() == LAYERS
    assert inside.layers["step"].unique().to_list() == [4]
    before, after = (by_layer(seen.params) for seen in watch(BASE, [4, 5]))
    for layer in LAYERS:
        change = float(rms(after[layer] - before[layer]))
        # float32, compiled in another program; a change is a difference of parameters
        assert numbers(inside, "update_rms")[layer] == pytest.approx(change, rel=1e-3)
        relative = change / float(rms(before[layer]))
        assert numbers(inside, "relative_update")[layer] == pytest.approx(relative, rel=1e-3)


def test_alignment_is_that_of_the_change_with_held_out_inputs():
    inside = inspect_run(BASE, state(BASE, 4), 4)
    before, after = watch(BASE, [4, 5])
    inputs, _ = validation_windows(load_corpus(BASE.corpus), WINDOWS, BASE.context)
    seen = activations(after.model(after.params), inputs)
    first, second = by_layer(before.params), by_layer(after.params)
    expected = {
        layer: float(alignment(second[layer] - first[layer], seen[layer].inputs[0]))
        for layer in LAYERS
        if before.model.roles[layer] in ("hidden", "readout")
    }
    found = {layer: x for layer, x in numbers(inside, "alignment").items() if x is not None}
    assert found == pytest.approx(expected, abs=2e-3)
    assert len(set(found.values())) == 5


def test_the_schedule_is_left_out():
    constant = inspect_run(BASE, state(BASE, 0), 0)
    cosine = variant(schedule="cosine", warmup_steps=4)
    assert numbers(inspect_run(cosine, state(cosine, 0), 0), "update_rms") == pytest.approx(
        numbers(constant, "update_rms"), rel=1e-5
    )
    end = inspect_run(cosine, state(cosine, 8), 8)  # where its rate is 0
    # Adam moves each entry by the rate, about: 0.01 in an embedding, as in others less or more
    assert min(numbers(end, "update_rms").values()) > 1e-4


def test_spectra_are_those_of_inputs_and_gradients():
    inside = inspect_run(BASE, state(BASE, 4), 4)
    corpus = load_corpus(BASE.corpus)
    model = ForwardModel.of(BASE, corpus.vocab_size)(state(BASE, 4).params)
    inputs, targets = validation_windows(corpus, WINDOWS, BASE.context)
    seen = activations(model, inputs)
    layers = [layer for layer in LAYERS if layer.startswith("blocks") and "norm" not in layer]
    assert inside.spectra["layer"].unique(maintain_order=True).to_list() == layers
    assert inside.note == ""

    class Shifted(nnx.Module):
        """A layer whose output is shifted, to differentiate with respect to it."""

        def __init__(self, layer, shift):
            self.layer, self.shift = layer, shift

        def __call__(self, x):
            return self.layer(x) + self.shift

    def loss(shift):
        shifted = nnx.clone(model)
        shifted.blocks[0].mlp.up = Shifted(shifted.blocks[0].mlp.up, nnx.data(shift))
        return next_token_loss(shifted, inputs, targets)[0]

    gradients = jax.grad(loss)(jnp.zeros((TOKENS, 32)))
    rows = {SIDES[0]: {layer: seen[layer].inputs[0] for layer in layers}}
    rows[SIDES[1]] = {"blocks/0/mlp/up": gradients}
    for side, tokens_of in rows.items():
        for layer, tokens in tokens_of.items():
            tokens = np.asarray(tokens, np.float64)
            expected = np.linalg.eigvalsh(tokens.T @ tokens)[::-1]
            found = inside.spectra.filter(pl.col("layer") == layer, pl.col("side") == side)
            assert found["index"].to_list() == list(range(1, tokens.shape[1] + 1))
            # eigenvalues of a float32 matrix are off by its rounding, of the largest
            np.testing.assert_allclose(found["eigenvalue"], expected / expected[0], atol=1e-5)
            assert found["eigenvalue"][0] == 1.0


def test_inspection_leaves_the_state_as_it_is():
    before = jax.tree.map(np.array, state(BASE, 4))
    first, second = (inspect_run(BASE, state(BASE, 4), 4) for _ in range(2))
    assert first.layers.equals(second.layers)
    assert first.spectra.equals(second.spectra)
    jax.tree.map(np.testing.assert_array_equal, before, state(BASE, 4))


@pytest.mark.slow  # compiles IsoAdam's step
def test_factors_are_measured_for_optimizers_that_do_not_use_them_too():
    config = variant(optimizer="isoadam")
    prepare_inspection(config)
    inside, adams = (
        inspect_run(config, state(config, 0), 0),
        inspect_run(BASE, state(BASE, 0), 0),
    )
    # the same untrained model on the same windows, compiled in another program
    np.testing.assert_allclose(inside.spectra["eigenvalue"], adams.spectra["eigenvalue"], atol=1e-5)
    assert inside.spectra.drop("eigenvalue").equals(adams.spectra.drop("eigenvalue"))
    # IsoAdam's steps are as large as Adam's by design, and go elsewhere.
    sizes = numbers(inside, "update_rms")
    assert sizes == pytest.approx(numbers(adams, "update_rms"), rel=0.01)
    layer = "blocks/0/mlp/up"
    assert abs(numbers(inside, "alignment")[layer] - numbers(adams, "alignment")[layer]) > 0.02


def test_numbers_that_are_not_finite_are_null_and_have_no_spectrum():
    start = state(BASE, 0)
    broken = start._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, start.params))
    inside = inspect_run(BASE, broken, 0)
    assert inside.layers.height == len(LAYERS)
    assert inside.layers["relative_update"].null_count() == len(LAYERS)
    assert inside.spectra.is_empty()


def test_work_is_bounded_for_large_models_and_says_so():
    config = variant(depth=5, mlp_ratio=40, schedule="constant")
    inside = inspect_run(config, state(config, 0), 0)
    spectra = inside.spectra
    blocks = spectra["layer"].str.split("/").list.get(1).unique().sort().to_list()
    assert blocks == ["0", "1", "3", "4"]
    assert spectra["index"].max() <= 512
    long = spectra.filter(pl.col("layer") == "blocks/0/mlp/up")["side"].unique().to_list()
    assert long == [SIDES[0]]  # its output is 640 long
    assert inside.note == (
        "blocks 0, 1, 3, 4 of 5 only; without sides longer than 512: input of down, output of up"
    )
    assert inside.layers.height == 4 + 6 * 5  # each block has four matrices and two norms
