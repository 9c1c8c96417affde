"""The synthetic language: its entropy rate in closed form against its own samples."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from isolab.model.markov import (
    entropy_rate,
    sample_markov,
    stationary_distribution,
    zipf_transitions,
)

vocab_sizes = st.integers(2, 40)
exponents = st.floats(0.0, 4.0)
seeds = st.integers(0, 2**32 - 1)


@given(vocab_sizes, exponents, seeds)
def test_rows_are_zipfs_law_in_some_order(vocab_size, exponent, seed):
    zipf = np.arange(1, vocab_size + 1) ** -exponent
    found = -np.sort(-zipf_transitions(vocab_size, exponent, seed), axis=1)
    np.testing.assert_allclose(
        found, np.tile(zipf / zipf.sum(), (vocab_size, 1)), rtol=1e-12
    )  # a sum of at most 40 terms: relative error below 40 * 2**-53


@given(vocab_sizes, exponents, seeds)
def test_the_entropy_is_zipfs_and_the_stationary_distribution_stays(vocab_size, exponent, seed):
    # The stationary distribution comes from a linear solve; its sum is 1 to about 1e-13.
    p = np.arange(1, vocab_size + 1) ** -exponent
    p /= p.sum()
    transitions = zipf_transitions(vocab_size, exponent, seed)
    np.testing.assert_allclose(entropy_rate(transitions), -(p * np.log(p)).sum(), rtol=1e-10)
    pi = stationary_distribution(transitions)
    np.testing.assert_allclose(pi @ transitions, pi, atol=1e-12)
    np.testing.assert_allclose(pi.sum(), 1.0, rtol=1e-12)
    assert np.all(pi > 0)


def test_entropy_rate_weights_unequal_rows_by_time_spent_in_them():
    # From 0 a fair coin, from 1 always back: pi = (2/3, 1/3), H = 2/3 log 2.
    found = entropy_rate(np.array([[0.5, 0.5], [1.0, 0.0]]))
    np.testing.assert_allclose(found, 2 / 3 * np.log(2), rtol=1e-14)


@pytest.mark.parametrize(("vocab_size", "exponent"), [(64, 1.0), (16, 0.0), (256, 1.5), (8, 3.0)])
def test_samples_cost_the_entropy_rate_under_the_true_matrix(vocab_size, exponent):
    # The rank of a successor is independent of all before it, so the terms of the mean are
    # independent and five standard errors are std / sqrt(N) each.
    transitions = zipf_transitions(vocab_size, exponent, seed=3)
    tokens = sample_markov(transitions, 400_000, np.random.default_rng(3))
    nats = -np.log(transitions[tokens[:-1], tokens[1:]])
    error = 5 * nats.std() / np.sqrt(nats.size)
    assert abs(nats.mean() - entropy_rate(transitions)) <= error + 1e-12


def test_samples_visit_and_follow_tokens_as_often_as_the_matrix_says():
    transitions = zipf_transitions(6, exponent=1.0, seed=1)
    tokens = sample_markov(transitions, 400_000, np.random.default_rng(1))
    counts = np.zeros((6, 6))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    visits = counts.sum(axis=1, keepdims=True)
    # Given the visits a row's counts are multinomial; 36 entries, five standard errors each.
    error = 5 * np.sqrt(transitions * (1 - transitions) / visits)
    assert np.all(np.abs(counts / visits - transitions) < error)
    # Visits are correlated in time; the chain forgets within a few steps, so allow 5 * 3 errors.
    pi = stationary_distribution(transitions)
    assert np.all(np.abs(visits[:, 0] / visits.sum() - pi) < 15 * np.sqrt(pi / visits.sum()))
