"""An interval of a training run, by the project's own compiled program, to call again and again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isolab.model.corpus import load_corpus, validation_windows
from isolab.optimizers.iso import refresh_due
from isolab.training.config import RunConfig
from isolab.training.program import (
    compile_program,
    device_tokens,
    program_of,
    refresh_rule,
    stack_traced,
)

RUN_STEPS = 400
"""Length of the run whose share of refresh steps an interval should have."""
SETTLED = 100
"""Intervals start here or later, past the warm-up and the first steps, which all refresh."""


class Interval:
    """``config.evaluate_every`` steps of training; each call trains on from where the last ended.

    The step counters go back to the start before each call, so every call has the same refresh
    steps.  Before the first one the run trains an interval from step 0, so that the optimizer's
    state is a real one (an eigendecomposition's time depends on the matrix).

    Args:
        config: the run; its evaluation has one window, as a step's time is wanted.
        start: first step; by default where the share of refresh steps is nearest to a run's.
    """

    def __init__(self, config: RunConfig, start: int | None = None) -> None:
        every = config.evaluate_every
        self.config = dataclasses.replace(
            config,
            steps=every * -(-max(config.steps, SETTLED + every) // every),
            validation_windows=1,
        )
        self.steps = every
        self.start = representative_start(refresh_steps(self.config), every, start)
        corpus = load_corpus(config.corpus)
        windows = validation_windows(corpus, 1, config.context)
        self._program = compile_program(program_of(self.config), corpus.vocab_size)
        self._traced = stack_traced([self.config])
        self._tokens = device_tokens(corpus)
        self._validation = tuple(jnp.asarray(w, jnp.int32) for w in windows)
        self._state: Any = None

    def __call__(self) -> float:
        """Trains, waits for the end, and returns the mean training loss, nats/token."""
        if self._state is None:
            self._state, _ = self._program.init(self._traced, self._validation)
            self._advance(0)
        self._state = with_counters(self._state, self.start)
        return self._advance(self.start)

    def _advance(self, start: int) -> float:
        self._state, losses, _ = self._program.advance(
            self._state, self._traced, jnp.int32(start), self._tokens, self._validation
        )
        jax.block_until_ready(self._state)
        return float(np.asarray(losses).mean())


def refresh_steps(config: RunConfig) -> np.ndarray:
    """Returns, for each step of the run, whether IsoAdam's factors would be refreshed in it."""
    return np.asarray(refresh_due(jnp.arange(config.steps), refresh_rule(config)))


def representative_start(due: np.ndarray, length: int, start: int | None = None) -> int:
    """Returns where an interval's share of true steps is nearest to that of all; the first such.

    Args:
        due: bools, shape (steps,).
        length: of the interval, at most ``steps``.
        start: returned as it is, if given.

    Example:
        >>> due = np.array([1, 1, 1, 0, 0, 1, 0, 0, 1, 0]) > 0  # 1 of 2
        >>> representative_start(due, 2)
        2
    """
    if start is not None:
        return start
    first = min(SETTLED, len(due) - length) if len(due) > SETTLED else 0
    sums = np.concatenate([[0], np.cumsum(due)])
    counts = (sums[length:] - sums[:-length])[first:]
    return first + int(np.argmin(np.abs(counts - due.mean() * length)))


def with_counters(state: Any, step: int) -> Any:
    """Returns the training state with its step counters (whole scalars) at ``step``."""

    def moved(leaf: Any) -> Any:
        counter = leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.full_like(leaf, step) if counter else leaf

    return jax.tree.map(moved, state)
