r"""A synthetic language whose entropy rate is known: a Markov chain weighted by Zipf's law.

Every one of the V tokens ranks its V possible successors, and the one at rank
:math:`k = 1, 2, \ldots` follows with probability :math:`k^{-s} / Z`, Zipf's law. Tokens of low
index come early in most of these rankings, so a model can learn the frequencies of single tokens
first and those of pairs after. No model's expected loss is below the entropy rate
:math:`H = -\sum_i \pi_i \sum_j P_{ij} \log P_{ij}`, and what a loss has above H is the mean
Kullback-Leibler divergence of the truth from the model's prediction. Since every row of P holds
the same numbers in another order, H is also the entropy of Zipf's law itself.
"""

from __future__ import annotations

import bisect
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float64]


def zipf_transitions(vocab_size: int, exponent: float, seed: int) -> Matrix:
    """Returns the synthetic language's transition matrix P, (V, V), rows summing to 1.

    Row i holds Zipf's probabilities in an order drawn by adding Gumbel noise to their
    logarithms: successors sampled one after the other without replacement, by Zipf's law.

    Example:
        >>> P = zipf_transitions(4, exponent=1.0, seed=0)
        >>> P.shape, sorted((P[0] / P[0].min()).round(6).tolist())
        ((4, 4), [1.0, 1.333333, 2.0, 4.0])
    """
    rng = np.random.default_rng(seed)
    zipf = np.arange(1, vocab_size + 1, dtype=np.float64) ** -exponent
    noise = rng.gumbel(size=(vocab_size, vocab_size))
    order = np.argsort(-(np.log(zipf)[None, :] + noise), axis=1)
    transitions = np.empty((vocab_size, vocab_size))
    np.put_along_axis(transitions, order, (zipf / zipf.sum())[None, :], axis=1)
    return transitions


def stationary_distribution(transitions: Matrix) -> Matrix:
    """Returns pi, (V,), with ``pi @ P == pi`` and sum 1, of an irreducible chain."""
    system = transitions.T - np.eye(len(transitions))
    system[-1] = 1.0  # the equations are dependent: one gives way to the sum
    return np.linalg.solve(system, np.eye(len(transitions))[-1])


def entropy_rate(transitions: Matrix) -> float:
    r"""Returns :math:`-\sum_i \pi_i \sum_j P_{ij} \log P_{ij}`, nats per token."""
    positive = np.where(transitions > 0, transitions, 1.0)
    row_entropies = -(transitions * np.log(positive)).sum(axis=1)
    return float(stationary_distribution(transitions) @ row_entropies)


def sample_markov(
    transitions: Matrix, length: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Returns one chain of ``length`` tokens, begun at its stationary distribution.

    ``transitions`` are (V, V), V at most 256.

    Example:
        >>> P = zipf_transitions(8, exponent=1.0, seed=0)
        >>> sample_markov(P, 12, np.random.default_rng(0)).tolist()
        [0, 0, 0, 4, 6, 4, 3, 1, 7, 5, 0, 5]
    """
    vocab_size = len(transitions)
    cdf = np.cumsum(transitions, axis=1)
    cdf /= cdf[:, -1:]
    rows = (cdf + np.arange(vocab_size)[:, None]).tolist()  # row i lies in (i, i + 1]
    stationary = np.cumsum(stationary_distribution(transitions))
    state = min(int(np.searchsorted(stationary, rng.random())), vocab_size - 1)
    tokens = bytearray(length)
    for t, uniform in enumerate(rng.random(length).tolist()):
        found = bisect.bisect_right(rows[state], state + uniform)
        tokens[t] = state = min(found, vocab_size - 1)  # state + uniform can round up to state + 1
    return np.frombuffer(tokens, np.uint8)
