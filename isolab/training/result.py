"""A run's outcome: its curve, and whether and when it diverged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isolab.training.config import RunConfig


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


def result_of(
    config: RunConfig, losses: np.ndarray, every: int, held_out: np.ndarray, seconds: float
) -> Result:
    """Returns a run's outcome from the losses of its steps and of its evaluations, from step 0."""
    means = losses.reshape(-1, every).mean(1)
    return Result(
        config,
        [every * i for i in range(len(held_out))],
        [float(losses[0]), *map(float, means)],
        [float(v) for v in held_out],
        divergence_step(losses, held_out, every),
        seconds,
    )


def divergence_step(losses: np.ndarray, held_out: np.ndarray, every: int) -> int | None:
    """Returns the step at which a run diverged, or None.

    Args:
        losses: training loss of each step, shape (steps,).
        held_out: validation losses from step 0 on, each ``every`` steps.
        every: steps between two validation losses.

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
