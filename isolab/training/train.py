"""Training: configs to loss curves, one evaluation interval after another.

Runs of one program advance together.  Each interval is one call of its compiled scan
(:mod:`isolab.training.program`); what a caller wants to see or to decide comes between two of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  jaxlib calls its LAPACK, and a limit binds only what is loaded
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.model.corpus import Corpus
from isolab.training.config import TRACED, RunConfig
from isolab.training.interrupt import when_ready
from isolab.training.program import Program, TrainState, arguments_of


@dataclass(frozen=True)
class Result:
    """One run's outcome.

    Attributes:
        config: what was run.
        curve_step: steps of the curve's points, from 0.
        curve_train_loss: mean over the interval that ends there (at 0: first batch), nats/token.
        curve_validation_loss: nats/token, on the same held-out windows for every run.
        divergence_step: first step (counted from 1) whose loss was not finite, or first evaluation
            from which the validation loss stayed above its start; None for a run that went well.
        step_seconds: wall time of its batch, per step and run.
    """

    config: RunConfig
    curve_step: list[int]
    curve_train_loss: list[float]
    curve_validation_loss: list[float]
    divergence_step: int | None
    step_seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the run diverged; it then ranks last, with an infinite final loss."""
        return self.divergence_step is not None

    @property
    def final_validation_loss(self) -> float:
        """Validation loss at the end, nats/token; infinite for a diverged run."""
        return math.inf if self.diverged else self.curve_validation_loss[-1]

    @property
    def final_train_loss(self) -> float:
        """Mean training loss of the last interval, nats/token; infinite for a diverged run."""
        return math.inf if self.diverged else self.curve_train_loss[-1]


class Snapshot(NamedTuple):
    """Runs in the midst of training, and their losses so far, nats/token, float32."""

    step: int  # steps done, from 0
    state: TrainState  # of all runs; the next step writes over it
    train_losses: np.ndarray  # (runs, steps done)
    validation_losses: np.ndarray  # (runs, evaluations done), that of step 0 included
    seconds: float  # of training so far

    @property
    def losses(self) -> np.ndarray:
        """Losses of the steps since the last snapshot, (runs, steps); (runs, 0) at step 0."""
        intervals = max(1, self.validation_losses.shape[1] - 1)
        return self.train_losses[:, self.step - self.step // intervals :]

    @property
    def validation_loss(self) -> np.ndarray:
        """Validation losses now, (runs,)."""
        return self.validation_losses[:, -1]

    def run(self, place: int = 0) -> TrainState:
        """Returns a copy of one run's state, which stays valid."""
        state: TrainState = _one_run(self.state, place)
        return state


def train(
    configs: Sequence[RunConfig],
    corpus: Corpus | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> list[Result]:
    """Trains runs that share a program, side by side, to the end of their schedules.

    Args:
        configs: equal in all but the traced fields, and in ``steps``: the runs advance together.
        corpus: the corpus that the configs name, if already loaded.
        on_snapshot: called at step 0 and after each evaluation interval; its time does not count
            as the runs'. What it raises ends training.

    Returns:
        One result a config, in order.  The same configs on the same machine give the same bits.
        Where the losses of all runs have become NaN, the rest of their curves is NaN, untrained.

    Raises:
        ValueError: no configs, or configs that cannot share a program.
    """
    if not configs:
        raise ValueError("train: no configs")
    shared = ["steps", *(f.name for f in fields(RunConfig) if f.name not in TRACED)]
    for config, name in itertools.product(configs[1:], shared):
        one, other = getattr(configs[0], name), getattr(config, name)
        if one != other:
            raise ValueError(f"train: runs of one batch must share {name}: {one!r} and {other!r}")
    results: list[Result] = run_program(configs, *arguments_of(configs, corpus), on_snapshot)
    return results


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # see isolab.optimizers.matrix_roots
def run_program(
    configs: Sequence[RunConfig],
    program: Program,
    arguments: tuple[Any, Any, Any],
    on_snapshot: Callable[[Snapshot], None] | None = None,
    start: Snapshot | None = None,
) -> list[Result]:
    """Trains runs by their program and its arguments, from step 0 or, unseen, from a snapshot.

    A program for a single run may do without the axis of the runs.
    """
    runs, steps, every = len(configs), configs[0].steps, configs[0].evaluate_every
    traced, tokens, validation = arguments
    if start is None:
        begun = time.perf_counter()
        state, first = program.init(traced, validation)
        held_out = _by_run(first, 1, runs)
        none = np.zeros((runs, 0), np.float32)
        start = Snapshot(0, state, none, held_out, time.perf_counter() - begun)
        if on_snapshot is not None:
            on_snapshot(start)
    step, state, losses, held_out, seconds = start
    del start  # its state is written over
    diverged = False
    while step < steps and not diverged:
        begun = time.perf_counter()
        state, *found = when_ready(
            functools.partial(program.advance, state, traced, jnp.int32(step), tokens, validation)
        )
        step += every
        losses = np.concatenate([losses, _by_run(found[0], every, runs)], axis=1)
        held_out = np.concatenate([held_out, _by_run(found[1], 1, runs)], axis=1)
        seconds += time.perf_counter() - begun
        diverged = bool(np.isnan(losses[:, -1]).all() and np.isnan(held_out[:, -1]).all())
        if on_snapshot is not None:
            on_snapshot(Snapshot(step, state, losses, held_out, seconds))
    rest = steps - step  # after divergence: parameters that are NaN stay NaN
    losses = np.pad(losses, ((0, 0), (0, rest)), constant_values=np.nan)
    held_out = np.pad(held_out, ((0, 0), (0, rest // every)), constant_values=np.nan)
    return [
        Result(
            config,
            list(range(0, steps + 1, every)),
            [float(losses[i, 0]), *map(float, losses[i].reshape(-1, every).mean(1))],
            list(map(float, held_out[i])),
            divergence_step(losses[i], held_out[i], every),
            seconds / step / runs,
        )
        for i, config in enumerate(configs)
    ]


def _by_run(values: Any, each: int, runs: int) -> np.ndarray:
    """Returns a program's losses as (runs, each), without those of the runs that fill up."""
    return np.reshape(np.asarray(values), (-1, each))[:runs]


def divergence_step(losses: np.ndarray, held_out: np.ndarray, every: int) -> int | None:
    """Returns the step at which a run diverged, or None, from the training loss of each step.

    ``held_out`` are the validation losses of step 0 and of every ``every`` steps.

    Example:
        >>> divergence_step(np.array([2.0, np.nan]), np.array([2.0, np.nan]), 2)
        2
        >>> divergence_step(np.ones(6), np.array([5.0, 6.0, 4.0, 7.0]), 2)
        6
    """
    broken = np.flatnonzero(~np.isfinite(losses))
    if broken.size:
        return int(broken[0]) + 1
    above = ~(held_out <= held_out[0])
    if not above[-1]:
        return None
    below = np.flatnonzero(~above)
    return int(below[-1] + 1) * every


@jax.jit
def _one_run(state: Any, place: Any) -> Any:
    """Takes a run out of a TrainState, copying also the counters, which all runs share."""
    return jax.tree.map(lambda leaf: leaf[place] if leaf.ndim else jnp.copy(leaf), state)
