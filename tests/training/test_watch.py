"""A watched run is the run that training makes, whatever steps are looked at."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from training.tiny import variant

from isolab.model.corpus import load_corpus, validation_windows
from isolab.model.fields import whole_numbers
from isolab.model.transformer import next_token_loss
from isolab.training.train import train
from isolab.training.watch import ForwardModel, watch

BASE = variant(
    parameterization="mup", rate_rule="full", base_width=8, steps=6, evaluate_every=3, seed=3,
    validation_windows=4, remat=True,
)  # fmt: skip


def test_a_watched_run_has_the_losses_of_training():
    (result,) = train([BASE])
    corpus = load_corpus(BASE.corpus)
    windows = validation_windows(corpus, 4, BASE.context)
    model = ForwardModel.of(BASE, corpus.vocab_size)
    loss = jax.jit(lambda params: next_token_loss(model(params), *windows)[1])
    losses = [float(loss(moment.params)) for moment in watch(BASE, [0, 3, 6])]
    # float32: the same steps, compiled in another program
    assert losses == pytest.approx(result.curve_validation_loss, rel=1e-4)
    assert losses[2] != losses[1] != losses[0]


def test_moments_hold_the_parameters_of_start_and_step_before():
    each = list(watch(BASE, range(4)))
    few = list(watch(BASE, [3, 1]))  # arrays stay valid although steps write over their state
    assert [moment.step for moment in few] == [1, 3]
    for moment in few:
        found = moment.params, moment.initial, moment.previous
        wanted = (each[step].params for step in (moment.step, 0, moment.step - 1))
        jax.tree.map(np.testing.assert_array_equal, found, tuple(wanted))
    assert (each[2].params["embedding"] != each[3].params["embedding"]).any()


def test_a_run_that_measures_factors_starts_from_the_same_parameters():
    moments = [
        next(watch(dataclasses.replace(BASE, optimizer=name), [0])) for name in ("adam", "isoadam")
    ]
    jax.tree.map(np.testing.assert_array_equal, moments[0].params, moments[1].params)
    corpus = load_corpus(BASE.corpus)
    model = ForwardModel.of(dataclasses.replace(BASE, optimizer="isoadam"), corpus.vocab_size)
    tokens, _ = validation_windows(corpus, 2, BASE.context)
    assert model(moments[1].params)(tokens).shape == (2, 8, corpus.vocab_size)


@pytest.mark.parametrize("steps", [[7], [-1], [], [1, 1], [1.5], 3, [True]])
def test_steps_outside_the_run_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps is .*; allowed: 1 or more different whole"):
        next(watch(BASE, steps))


def test_whole_numbers_come_back_sorted_and_plain():
    found = whole_numbers("seeds", np.array([3, 1]), 0)
    assert found == [1, 3]
    assert all(type(value) is int for value in found)
