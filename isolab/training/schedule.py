"""The learning rate's course over a run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def schedule_factor(kind: str, step: Any, steps: Any, warmup_steps: Any) -> jax.Array:
    """Returns the factor on the peak rate at ``step`` (0 for the first update).

    Linear warm-up to 1 over ``warmup_steps``, then a cosine or a straight line to 0 at ``steps``,
    or 1 for "constant".

    Example:
        >>> [round(float(schedule_factor("linear", t, 6, 2)), 2) for t in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    t = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (t + 1) / jnp.maximum(warmup_steps, 1))
    done = jnp.clip((t - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
    decay = {
        "constant": jnp.ones_like(done),
        "linear": 1 - done,
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
    }[kind]
    return warm * decay
